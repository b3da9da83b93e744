# SPDX-License-Identifier: Apache-2.0
"""Images in the store of this machine's container engine: over its socket with Docker's API, which Podman speaks too, or where it lies,
of containerd, CRI-O and Podman.

`GET /images/NAME/get` is what `docker save` asks. Its archive has the layers in an order of its own, so it lies in a temporary file
without a name while it is read. Neighbours: `archives` reads it; `containerd` and `containers_storage` read stores.
"""

from __future__ import annotations

import http.client
import os
import socket
import stat
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

import msgspec

from hauberk.images.archives import read_file
from hauberk.images.containerd import ContainerdStore
from hauberk.images.containers_storage import ContainersStorage
from hauberk.images.image import ReadImage
from hauberk.images.references import reference
from hauberk.images.spool import spooled
from hauberk.images.streams import PIECE, ImageLimits
from schemas.errors import SettingsError

_TIMEOUT: Final = 60.0
"""Seconds until the engine must have sent more: it may pack a large image first."""
STORES: Final = ("/var/lib/containerd", "/var/lib/rancher/k3s/agent/containerd", "/var/lib/containers/storage")
"""Of containerd, of that in k3s, of CRI-O and Podman."""
_OTHER_APIS: Final = ("containerd.sock", "crio.sock")


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


class ImageStore(Protocol):
    """Where an engine has its images. `place`: a socket or a directory."""

    place: str

    def image(self, text: str, wanted: str = "") -> ReadImage | None: ...


def image_store(given: str) -> ImageStore:
    """That of the socket or the directory that was named, or the first of the usual ones that there is. SettingsError when there is none."""
    if given and given != "auto":
        path = given.removeprefix("unix://")
        found = _at(path)
        if found is None and _is_socket(path):
            raise SettingsError(
                f"expected Docker's API, or the directory of a store, got `{path}`, over which containerd and CRI-O give no images away; name "
                f"the directory, as in --engine {' or --engine '.join(STORES)}"
            )
        if found is None:
            raise SettingsError(
                f"expected the socket of a container engine or the directory of its store at `{path}`, there is none"
            )
        return found
    places = usual()
    for path in places:
        if (found := _at(path)) is not None:
            return found
    raise SettingsError(
        f"expected a container engine on this machine, none of {', '.join(places)} is its socket or its store; name it with --engine PLACE "
        "(of Podman: `systemctl start podman.socket`)"
    )


def _at(path: str) -> ImageStore | None:
    root = Path(path)
    if _is_socket(path):
        return None if root.name in _OTHER_APIS else EngineSocket(path)
    try:
        if ContainerdStore.is_at(root):
            return ContainerdStore(root)
        return ContainersStorage(root) if ContainersStorage.is_at(root) else None
    except (OSError, ValueError) as error:
        raise SettingsError(f"expected to read the store of a container engine at `{path}`, got: {error}") from error


def usual() -> list[str]:
    """Where engines are: $DOCKER_HOST, the sockets of Docker and Podman, those of this user, stores."""
    named = os.environ.get("DOCKER_HOST", "")
    own = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.getuid()}")
    data = os.environ.get("XDG_DATA_HOME", str(Path.home() / ".local/share"))
    places = [named.removeprefix("unix://")] if named.startswith("unix://") else []
    return [
        *places,
        "/run/docker.sock",
        "/var/run/docker.sock",
        "/run/podman/podman.sock",
        f"{own}/docker.sock",
        f"{own}/podman/podman.sock",
        f"{data}/containers/storage",
        *STORES,
    ]


class EngineSocket:
    """Docker's API at `place`."""

    def __init__(self, place: str) -> None:
        self.place = place

    def image(self, text: str, wanted: str = "") -> ReadImage | None:
        """See `from_engine`."""
        return from_engine(self.place, text, wanted)


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
        with spooled(_pieces(answer), f"the engine at `{path}`", limits) as file:
            found = read_file(file, f"{text} of the engine at {path}", wanted, limits)
    except (OSError, http.client.HTTPException) as error:
        said = getattr(error, "strerror", None) or error or type(error).__name__
        raise SettingsError(f"expected the container engine at `{path}` to give `{text}`, got: {said}") from error
    finally:
        connection.close()
    if not found:
        return None
    return msgspec.structs.replace(found[0], origin=text, names=tuple(dict.fromkeys((text, *found[0].names))))


def _pieces(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := answer.read(PIECE):
        yield piece
    if answer.length:
        # Of an answer that ends too early `read` only gives less.
        raise http.client.IncompleteRead(b"", answer.length)


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
