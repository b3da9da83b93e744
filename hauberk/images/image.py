# SPDX-License-Identifier: Apache-2.0
"""An image as it is described: manifest, configuration, layers; and where it may be read from (`BlobStore`)."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

import msgspec

from hauberk.images.layers import LayerReader
from hauberk.images.streams import ByteSource, ImageLimits
from policy.recommend.contents import ImageContents
from schemas.errors import SettingsError

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_INDEXES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class ReadImage(msgspec.Struct, frozen=True, kw_only=True):
    """`names`: references it goes by. `commands`: words of what it runs: entry point, command, health check."""

    origin: str
    names: tuple[str, ...]
    architecture: str
    contents: ImageContents
    commands: tuple[str, ...] = ()


class BlobStore(Protocol):
    """Blobs by digest."""

    def open(self, digest: str) -> AbstractContextManager[ByteSource]: ...


def read_json(source: ByteSource, what: str, limits: ImageLimits) -> Any:
    """A manifest or a configuration. SettingsError when it is too large or no JSON object."""
    parts, got = [], 0
    while piece := source.read(1 << 16):
        got += len(piece)
        if got > limits.json_bytes:
            raise SettingsError(f"expected {what} of at most {limits.json_bytes:,} bytes, got more")
        parts.append(piece)
    try:
        found = json.loads(b"".join(parts))
    except (ValueError, RecursionError) as error:
        raise SettingsError(f"expected {what} to be JSON, got: {error}") from error
    if not isinstance(found, dict | list):
        raise SettingsError(f"expected {what} to be a JSON object, got {type(found).__name__}")
    return found


def from_manifest(
    store: BlobStore, manifest: Any, origin: str, names: tuple[str, ...], architecture: str, limits: ImageLimits
) -> ReadImage:
    """The image of a manifest; of an index the one for `architecture` (as Go calls it)."""
    manifest = _of_platform(store, manifest, origin, architecture, limits)
    layers = manifest.get("layers")
    config = manifest.get("config")
    if not isinstance(layers, list) or not isinstance(config, dict):
        raise SettingsError(f"expected an image in `{origin}`, its manifest names no layers or no configuration")
    with store.open(_digest(config, origin)) as source:
        configuration = read_json(source, f"the configuration of `{origin}`", limits)
    reader = LayerReader(limits)
    for layer in layers:
        digest = _digest(layer, origin)
        with store.open(digest) as source:
            reader.add(source, f"layer {digest[7:19]} of `{origin}`", digest)
    return described(reader.contents(), configuration, origin, names)


def described(contents: ImageContents, configuration: Any, origin: str, names: tuple[str, ...]) -> ReadImage:
    """With what the configuration says. SettingsError for an image that is not of Linux."""
    if not isinstance(configuration, dict):
        raise SettingsError(f"expected the configuration of `{origin}` to be an object")
    system = configuration.get("os", "linux")
    if system != "linux":
        raise SettingsError(f"expected an image of Linux in `{origin}`, got one of {system}")
    run = configuration.get("config") or {}
    words = [word for key in ("Entrypoint", "Cmd") for word in run.get(key) or ()]
    words += (run.get("Healthcheck") or {}).get("Test") or ()
    return ReadImage(
        origin=origin, names=names, architecture=str(configuration.get("architecture", "")), contents=contents,
        commands=tuple(part for word in words if isinstance(word, str) for part in split(word)),
    )  # fmt: skip


def split(command: str) -> list[str]:
    """Words of a command, also of one that a shell reads."""
    return [word for word in re.split(r"[\s;|&()`\"'<>]+", command) if word]


def _of_platform(store: BlobStore, manifest: Any, origin: str, architecture: str, limits: ImageLimits) -> Any:
    for _ in range(4):
        if not isinstance(manifest, dict):
            raise SettingsError(f"expected a manifest in `{origin}`, got a list")
        below = manifest.get("manifests")
        if below is None and manifest.get("mediaType") not in _INDEXES:
            return manifest
        images = [
            one
            for one in below or ()
            if isinstance(one, dict) and (one.get("platform") or {}).get("os", "linux") == "linux"
        ]
        mine = [one for one in images if (one.get("platform") or {}).get("architecture", architecture) == architecture]
        if not mine:
            known = (
                ", ".join(sorted({str((one.get("platform") or {}).get("architecture")) for one in images})) or "none"
            )
            raise SettingsError(f"expected an image for linux/{architecture} in `{origin}`, it has {known}")
        with store.open(_digest(mine[0], origin)) as source:
            manifest = read_json(source, f"a manifest of `{origin}`", limits)
    raise SettingsError(f"expected an image in `{origin}`, its indexes lead to indexes")


def _digest(descriptor: Any, origin: str) -> str:
    found = descriptor.get("digest") if isinstance(descriptor, dict) else None
    if not isinstance(found, str) or not DIGEST.fullmatch(found):
        raise SettingsError(f"expected digests of sha256 in `{origin}`, got `{str(found)[:80]}`")
    return found
