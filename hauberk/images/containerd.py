# SPDX-License-Identifier: Apache-2.0
"""Images in containerd's store, read where it lies: names in its database, blobs as they came. Its socket need not answer.

Of its namespaces Kubernetes' is asked first. Neighbours: `bolt` reads the database, `image` what a manifest leads to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from hauberk.images.archives import architecture
from hauberk.images.bolt import BoltBucket, BoltDatabase, ask
from hauberk.images.image import BlobDescriptor, ImageManifest, ReadImage, from_manifest
from hauberk.images.references import reference, spellings
from hauberk.images.streams import ByteSource, ImageLimits
from schemas.errors import SettingsError

_DATABASE: Final = "io.containerd.metadata.v1.bolt/meta.db"
_BLOBS: Final = "io.containerd.content.v1.content/blobs/sha256"
_FIRST: Final = b"k8s.io"


class ContainerdStore:
    """The store below `root`, containerd's `root` in its configuration."""

    def __init__(self, root: Path, limits: ImageLimits = ImageLimits()) -> None:  # noqa: B008
        self.place = str(root)
        self._root, self._limits = root, limits

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether there is one."""
        return (root / _DATABASE).exists()

    def image(self, text: str, wanted: str = "") -> ReadImage | None:
        """The image of a reference; None when the store has none of that name. SettingsError when it cannot be read."""
        names = [name.encode() for name in spellings(text)]
        digest = reference(text).digest
        try:
            found = ask(self._root / _DATABASE, lambda database: _digest(database, names, digest.encode()))
            if not found:
                return None
            manifest = ImageManifest(manifests=[BlobDescriptor(digest=found)])
            return from_manifest(self, manifest, text, (text,), wanted or architecture(), self._limits)
        except OSError as error:
            raise SettingsError(
                f"expected to read `{text}` in the store at `{self.place}`, got: {error.strerror or error} (`{error.filename}`)"
            ) from error

    @contextmanager
    def open(self, digest: str) -> Iterator[ByteSource]:
        """A blob. SettingsError when it is not kept."""
        try:
            file = (self._root / _BLOBS / digest.removeprefix("sha256:")).open("rb")
        except FileNotFoundError as error:
            raise SettingsError(
                f"expected the blob {digest[:19]} in the store at `{self.place}`, it is not kept there (containerd throws packed layers away "
                "with `discard_unpacked_layers`); read the image from its registry"
            ) from error
        with file:
            yield file


def _digest(database: BoltDatabase, names: list[bytes], wanted: bytes) -> str:
    """Of the image with the first of `names` that there is, else of one whose own digest is `wanted`; "" for none."""
    spaces = database.bucket(b"v1")
    if spaces is None:
        return ""
    some = [key for key, value in database.items(spaces) if isinstance(value, BoltBucket)]
    matching = ""
    for space in sorted(some, key=lambda name: (name != _FIRST, name)):
        images = database.bucket(b"v1", space, b"images")
        if images is None:
            continue
        known = {key: value for key, value in database.items(images) if isinstance(value, BoltBucket)}
        for name in names:
            if name in known and (found := _target(database, known[name])):
                return found.decode("ascii", "replace")
        if wanted and not matching:
            targets = (_target(database, one) for one in known.values())
            matching = next((found.decode() for found in targets if found == wanted), "")
    return matching


def _target(database: BoltDatabase, image: BoltBucket) -> bytes:
    inside = next((value for key, value in database.items(image) if key == b"target"), None)
    if not isinstance(inside, BoltBucket):
        return b""
    found = next((value for key, value in database.items(inside) if key == b"digest"), b"")
    return found if isinstance(found, bytes) else b""
