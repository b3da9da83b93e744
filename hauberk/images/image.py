# SPDX-License-Identifier: Apache-2.0
"""An image as it is described: manifest, configuration, layers; and where it may be read from (`BlobStore`)."""

from __future__ import annotations

import hashlib
import re
from contextlib import AbstractContextManager
from typing import Final, Protocol, TypeVar

import msgspec

from hauberk.images.layers import LayerReader
from hauberk.images.streams import ByteSource, ImageLimits
from policy.recommend.contents import ImageContents
from schemas.errors import SettingsError

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_T = TypeVar("_T")
ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class ReadImage(msgspec.Struct, frozen=True, kw_only=True):
    """`names`: references it goes by. `commands`: words of what it runs: entry point, command, health check."""

    origin: str
    names: tuple[str, ...]
    architecture: str
    contents: ImageContents
    commands: tuple[str, ...] = ()


class ImagePlatform(msgspec.Struct, frozen=True):
    """What a manifest of an index is for, as Go calls it; None: not said."""

    os: str | None = None
    architecture: str | None = None


class BlobDescriptor(msgspec.Struct, frozen=True):
    """A blob, and what is said of it."""

    digest: str = ""
    platform: ImagePlatform | None = None
    annotations: dict[str, str] | None = None


class ImageManifest(msgspec.Struct, frozen=True):
    """An index (`manifests`) or an image (`config`, `layers`)."""

    manifests: list[BlobDescriptor] | None = None
    config: BlobDescriptor | None = None
    layers: list[BlobDescriptor] | None = None


class _Health(msgspec.Struct, frozen=True):
    Test: list[str] | str | None = None


class _Run(msgspec.Struct, frozen=True):
    Entrypoint: list[str] | str | None = None
    Cmd: list[str] | str | None = None
    Healthcheck: _Health | None = None


class ImageConfiguration(msgspec.Struct, frozen=True):
    """What an image is run with."""

    os: str | None = None
    architecture: str | None = None
    config: _Run | None = None


class BlobStore(Protocol):
    """Blobs by digest."""

    def open(self, digest: str) -> AbstractContextManager[ByteSource]: ...


def read_json(source: ByteSource, what: str, form: type[_T], limits: ImageLimits, digest: str = "") -> _T:
    """A manifest or a configuration. SettingsError when it is too large, not that of `digest`, no JSON or not of this form."""
    parts, got = [], 0
    while piece := source.read(1 << 16):
        got += len(piece)
        if got > limits.json_bytes:
            raise SettingsError(f"expected {what} of at most {limits.json_bytes:,} bytes, got more")
        parts.append(piece)
    whole = b"".join(parts)
    found = f"sha256:{hashlib.sha256(whole).hexdigest()}"
    if digest and found != digest:
        raise SettingsError(
            f"expected {what} to have the digest {digest}, it has {found}; it is damaged or not what it says"
        )
    try:
        return msgspec.json.decode(whole, type=form)
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"expected {what} to be JSON of its form, got: {error}") from error


def from_manifest(
    store: BlobStore,
    manifest: ImageManifest,
    origin: str,
    names: tuple[str, ...],
    architecture: str,
    limits: ImageLimits,
) -> ReadImage:
    """The image of a manifest; of an index the one for `architecture` (as Go calls it)."""
    manifest = _of_platform(store, manifest, origin, architecture, limits)
    layers, config = manifest.layers, manifest.config
    if layers is None or config is None:
        raise SettingsError(f"expected an image in `{origin}`, its manifest names no layers or no configuration")
    digest = _digest(config, origin)
    with store.open(digest) as source:
        configuration = read_json(source, f"the configuration of `{origin}`", ImageConfiguration, limits, digest)
    reader = LayerReader(limits)
    for layer in layers:
        digest = _digest(layer, origin)
        with store.open(digest) as source:
            reader.add(source, f"layer {digest[7:19]} of `{origin}`", digest)
    return described(reader.contents(), configuration, origin, names)


def described(
    contents: ImageContents, configuration: ImageConfiguration, origin: str, names: tuple[str, ...]
) -> ReadImage:
    """With what the configuration says. SettingsError for an image that is not of Linux."""
    if (configuration.os or "linux") != "linux":
        raise SettingsError(f"expected an image of Linux in `{origin}`, got one of {configuration.os}")
    run = configuration.config or _Run()
    words: list[str] = []
    for some in (run.Entrypoint, run.Cmd, (run.Healthcheck or _Health()).Test):
        words += [some] if isinstance(some, str) else some or ()
    return ReadImage(
        origin=origin, names=names, architecture=configuration.architecture or "", contents=contents,
        commands=tuple(part for word in words for part in split(word)),
    )  # fmt: skip


def split(command: str) -> list[str]:
    """Words of a command, also of one that a shell reads."""
    return [word for word in re.split(r"[\s;|&()`\"'<>]+", command) if word]


def _of_platform(
    store: BlobStore, manifest: ImageManifest, origin: str, architecture: str, limits: ImageLimits
) -> ImageManifest:
    for _ in range(4):
        if manifest.manifests is None:
            return manifest
        images = [(one, one.platform or ImagePlatform()) for one in manifest.manifests]
        images = [(one, of) for one, of in images if (of.os or "linux") == "linux"]
        mine = [one for one, of in images if (of.architecture or architecture) == architecture]
        if not mine:
            known = ", ".join(sorted({str(of.architecture) for _, of in images})) or "none"
            raise SettingsError(f"expected an image for linux/{architecture} in `{origin}`, it has {known}")
        digest = _digest(mine[0], origin)
        with store.open(digest) as source:
            manifest = read_json(source, f"a manifest of `{origin}`", ImageManifest, limits, digest)
    raise SettingsError(f"expected an image in `{origin}`, its indexes lead to indexes")


def _digest(descriptor: BlobDescriptor, origin: str) -> str:
    if not DIGEST.fullmatch(descriptor.digest):
        raise SettingsError(f"expected digests of sha256 in `{origin}`, got `{descriptor.digest[:80]}`")
    return descriptor.digest
