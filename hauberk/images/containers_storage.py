# SPDX-License-Identifier: Apache-2.0
"""Images in the store of Podman, CRI-O and Buildah (containers/storage), read where it lies: CRI-O's socket gives no images away.

`overlay-images/images.json` has names and each image's top layer, `overlay-layers/layers.json` what a layer lies on, `overlay/ID/diff` its
files. Of `vfs` each layer is the whole tree. Nothing is locked: a file of names takes the place of the one before by rename(2).
"""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from hauberk.images.image import ImageConfiguration, ImageManifest, ReadImage, described, read_json
from hauberk.images.layers import LayerReader
from hauberk.images.references import reference, spellings
from hauberk.images.streams import ImageLimits
from hauberk.images.unpacked import add_unpacked
from schemas.errors import SettingsError

_DRIVERS: Final = ("overlay", "vfs")
_IDENT: Final = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


class _Image(msgspec.Struct, frozen=True, rename="kebab"):
    id: str
    digest: str = ""
    names: list[str] | None = None
    layer: str = ""
    big_data_digests: dict[str, str] | None = None


class _Layer(msgspec.Struct, frozen=True):
    id: str
    parent: str = ""


class ContainersStorage:
    """The store below `root`."""

    def __init__(self, root: Path, limits: ImageLimits = ImageLimits()) -> None:  # noqa: B008
        self.place = str(root)
        self._root, self._limits = root, limits
        # Of all images of the node: 2 KB each, and half a KB for each layer.
        self._lists = msgspec.structs.replace(limits, json_bytes=8 * limits.json_bytes)

    @staticmethod
    def is_at(root: Path) -> bool:
        """Whether there is one."""
        return any((root / f"{driver}-images/images.json").exists() for driver in _DRIVERS)

    def image(self, text: str, wanted: str = "") -> ReadImage | None:
        """The image of a reference, of whatever architecture it is; None when the store has none of that name. SettingsError when it
        cannot be read."""
        names, digest = spellings(text), reference(text).digest
        try:
            for driver in _DRIVERS:
                if (one := self._named(driver, names, digest)) is not None:
                    return self._read(driver, one, text)
        except OSError as error:
            raise SettingsError(
                f"expected to read `{text}` in the store at `{self.place}`, got: {error.strerror or error} (`{error.filename}`)"
            ) from error
        return None

    def _json(self, path: Path, form: type[_T], what: str) -> _T:
        with path.open("rb") as file:
            return read_json(file, f"{what} at `{self.place}`", form, self._lists)

    def _named(self, driver: str, names: tuple[str, ...], digest: str) -> _Image | None:
        path = self._root / f"{driver}-images/images.json"
        if not path.exists():
            return None
        images = self._json(path, list[_Image], "the images of the store")
        for name in names:
            for one in images:
                if name in (one.names or ()) or name == f"sha256:{one.id}":
                    return one
        known = ((one, {one.digest, *(one.big_data_digests or {}).values()}) for one in images)
        return next((one for one, digests in known if digest and digest in digests), None)

    def _read(self, driver: str, one: _Image, text: str) -> ReadImage:
        home = self._root / f"{driver}-images" / _ident(one.id, self.place)
        manifest = self._json(home / "manifest", ImageManifest, f"the manifest of `{text}`")
        if manifest.config is None:
            raise SettingsError(f"expected an image in `{text}` of the store at `{self.place}`, its manifest has none")
        # What is no plain word is the name of a file in base64 (containers/storage, makeBigDataBaseName).
        named = f"={base64.b64encode(manifest.config.digest.encode()).decode()}"
        configuration = self._json(home / named, ImageConfiguration, f"the configuration of `{text}`")
        reader = LayerReader(self._limits)
        for ident in self._chain(driver, one.layer):
            directory = self._directory(driver, ident)
            if (directory.parent / "composefs-data").exists():
                raise SettingsError(
                    f"expected layers in directories in the store at `{self.place}`, those of `{text}` are composefs, which is not read; take its "
                    "socket or its registry"
                )
            add_unpacked(reader, directory, f"layer {ident[:12]} of `{text}`")
        return described(reader.contents(), configuration, text, tuple(dict.fromkeys((text, *(one.names or ())))))

    def _directory(self, driver: str, ident: str) -> Path:
        return self._root / (f"vfs/dir/{ident}" if driver == "vfs" else f"overlay/{ident}/diff")

    def _chain(self, driver: str, top: str) -> list[str]:
        """Layers, the lowest first."""
        if not top:
            return []
        if driver == "vfs":
            return [_ident(top, self.place)]
        layers = self._json(self._root / f"{driver}-layers/layers.json", list[_Layer], "the layers of the store")
        parents = {one.id: one.parent for one in layers}
        found: list[str] = []
        while top and len(found) <= self._limits.layers:
            found.append(_ident(top, self.place))
            top = parents.get(top, "")
        return found[::-1]


def _ident(text: str, place: str) -> str:
    if not _IDENT.fullmatch(text):
        raise SettingsError(f"expected the id of a layer or an image in the store at `{place}`, got `{text[:80]}`")
    return text
