# SPDX-License-Identifier: Apache-2.0
"""Images in the store of this machine's container engine: Docker's API over its socket, which Podman speaks too.

`GET /images/NAME/get` is what `docker save` asks. Its archive has the layers in an order of its own, so it lies in a temporary file
without a name while it is read. Neighbours: `archives` reads it, `registry` knows references.
"""

from __future__ import annotations

import http.client
import os
import shutil
import socket
import stat
import tempfile
import urllib.parse
from pathlib import Path
from typing import Final

import msgspec

from hauberk.images.archives import read_file
from hauberk.images.image import ReadImage
from hauberk.images.registry import reference
from hauberk.images.streams import PIECE, ImageLimits
from schemas.errors import SettingsError

_TIMEOUT: Final = 60.0
"""Seconds until the engine must have sent more: it may pack a large image first."""
_SPARE: Final = 64 << 20
"""Bytes of the disk that are left to others."""


class _Refusal(msgspec.Struct, frozen=True):
    message: str = ""


class _SocketConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def engine_socket(given: str) -> str:
    """The socket that was named, or the first of the usual ones that there is. SettingsError when there is none."""
    if given and given != "auto":
        path = given.removeprefix("unix://")
        if not _is_socket(path):
            raise SettingsError(f"expected the socket of a container engine at `{path}`, there is none")
        return path
    places = usual()
    for path in places:
        if _is_socket(path):
            return path
    raise SettingsError(
        f"expected a container engine on this machine, none of {', '.join(places)} is a socket; name its with --engine SOCKET "
        "(of Podman: `systemctl start podman.socket`)"
    )


def usual() -> list[str]:
    """Where engines listen: $DOCKER_HOST, Docker's, Podman's, those of this user."""
    named = os.environ.get("DOCKER_HOST", "")
    own = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    places = [named.removeprefix("unix://")] if named.startswith("unix://") else []
    return [
        *places,
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        f"{own}/docker.sock",
        f"{own}/podman/podman.sock",
    ]


def from_engine(path: str, text: str, wanted: str = "", limits: ImageLimits = ImageLimits()) -> ReadImage | None:  # noqa: B008
    """The image of a reference; None when the engine has none of that name. SettingsError when it does not answer as an engine."""
    reference(text)
    connection = _SocketConnection(path)
    try:
        connection.request(
            "GET",
            f"/images/{urllib.parse.quote(text, safe='/:@')}/get",
            headers={"Host": "localhost", "User-Agent": "hauberk"},
        )
        answer = connection.getresponse()
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise _refusal(answer, text, path)
        with tempfile.TemporaryFile(prefix="hauberk-") as file:
            got = 0
            while piece := answer.read(PIECE):
                got += len(piece)
                if got > limits.plain_bytes:
                    raise SettingsError(
                        f"expected an image of at most {limits.plain_bytes:,} bytes of the engine at `{path}`, got more"
                    )
                if not got % (PIECE << 8) and shutil.disk_usage(tempfile.gettempdir()).free < _SPARE:
                    raise SettingsError(
                        f"expected room for the image `{text}` in `{tempfile.gettempdir()}`, the disk is full; set TMPDIR"
                    )
                file.write(piece)
            if answer.length:
                # Of an answer that ends too early `read` only gives less.
                raise http.client.IncompleteRead(b"", answer.length)
            file.seek(0)
            found = read_file(file, f"{text} of the engine at {path}", wanted, limits)
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or error or type(error).__name__
        raise SettingsError(f"expected the container engine at `{path}` to give `{text}`, got: {said}") from error
    finally:
        connection.close()
    if not found:
        return None
    return msgspec.structs.replace(found[0], origin=text, names=tuple(dict.fromkeys((text, *found[0].names))))


def _refusal(answer: http.client.HTTPResponse, text: str, path: str) -> SettingsError:
    try:
        said = msgspec.json.decode(answer.read(4096), type=_Refusal).message
    except (ValueError, OSError):
        said = ""
    return SettingsError(
        f"expected the container engine at `{path}` to give `{text}`, it answers {answer.status} {said or answer.reason}"
    )


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except (OSError, ValueError):
        return False
