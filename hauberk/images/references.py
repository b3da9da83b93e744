# SPDX-License-Identifier: Apache-2.0
"""Names of images: where their registry answers, and how stores of engines spell them. Pure."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from schemas.errors import SettingsError

_REFERENCE: Final = re.compile(
    r"(?:(?P<host>[A-Za-z0-9.-]+\.[A-Za-z0-9.-]+(?::[0-9]+)?|localhost(?::[0-9]+)?|[A-Za-z0-9.-]+:[0-9]+|\[[0-9a-f:]+\](?::[0-9]+)?)/)?"
    r"(?P<name>[a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::(?P<tag>[\w][\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
HUB: Final = "registry-1.docker.io"
LOOPBACK: Final = re.compile(r"(?:localhost|127(?:\.[0-9]+){3}|\[::1\])(?::[0-9]+)?")


class ImageReference(msgspec.Struct, frozen=True):
    """`host/name:tag@digest`, whole."""

    host: str
    name: str
    tag: str
    digest: str

    @property
    def base(self) -> str:
        """Where its registry answers."""
        scheme = "http" if LOOPBACK.fullmatch(self.host) else "https"
        return f"{scheme}://{self.host}/v2/{self.name}"


def reference(text: str) -> ImageReference:
    """SettingsError for what is no reference."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        raise SettingsError(f"expected a file or an image such as `registry.example/team/app:1.2`, got `{text[:200]}`")
    host, name = match["host"] or "docker.io", match["name"]
    if host in ("docker.io", "index.docker.io"):
        host, name = HUB, name if "/" in name else f"library/{name}"
    return ImageReference(host, name, match["tag"] or "latest", match["digest"] or "")


def spellings(text: str) -> tuple[str, ...]:
    """The names under which a store may have the image of a reference, the likeliest first: whole ones, and what was built here."""
    of = reference(text)
    host = "docker.io" if of.host == HUB else of.host
    end = f"@{of.digest}" if of.digest else f":{of.tag}"
    found = [text, f"{host}/{of.name}{end}"]
    match = _REFERENCE.fullmatch(text)
    if match is not None and not match["host"]:
        found.append(f"localhost/{match['name']}{end}")
    return tuple(dict.fromkeys(found))
