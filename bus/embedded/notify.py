# SPDX-License-Identifier: Apache-2.0
"""How processes that share a log tell each other that something was written: one datagram per commit, no polling.

Each open bus binds a unix datagram socket in `DIR/wake/`; who commits sends the topic's name to the sockets of the others.
A datagram is a hint, never the truth: one that is lost (other user, no sockets on this file system) only means that the reader
finds the record at its next look, `LOOK_SECONDS` later. None is lost to a full buffer: whoever finds many looks at everything.
Neighbour: `bus`.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from bus.permissions import private_directory

# The backstop when hints work, and the pace when they do not.
LOOK_SECONDS = 5.0
LOOK_SECONDS_WITHOUT_HINTS = 0.02
# Linux keeps eleven datagrams for a socket (net.unix.max_dgram_qlen 10); distributions raise it.
_MANY = 8


class WriteNotifier:
    """This process's ear and mouth in `directory`. Belongs to one event loop. `heard(topic)`: something was written there; None:
    anywhere."""

    def __init__(self, directory: Path, heard: Callable[[str | None], None]) -> None:
        self._directory = directory / "wake"
        self._heard = heard
        self._socket: socket.socket | None = None
        self._descriptor = -1
        self._name = ""

    @property
    def look_seconds(self) -> float:
        return LOOK_SECONDS if self._socket is not None else LOOK_SECONDS_WITHOUT_HINTS

    def open(self) -> None:
        private_directory(self._directory)
        # Socket paths end at 108 bytes; through the descriptor any directory is short.
        self._descriptor = os.open(self._directory, os.O_PATH | os.O_CLOEXEC)
        self._name = f"{os.getpid()}-{os.urandom(4).hex()}"
        ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            ear.bind(self._address(self._name))
            os.chmod(self._directory / self._name, 0o700)
        except OSError:
            ear.close()
            return
        self._socket = ear
        asyncio.get_running_loop().add_reader(ear, self._hear)

    def tell(self, topics: Iterable[str]) -> None:
        """Hint to the other processes that `topics` have new records. Never blocks, never fails."""
        if self._socket is None:
            return
        others = [name for name in os.listdir(self._directory) if name != self._name]
        for name in others:
            for topic in topics:
                try:
                    self._socket.sendto(topic.encode(), self._address(name))
                except ConnectionRefusedError:
                    # Its owner died without cleaning up.
                    (self._directory / name).unlink(missing_ok=True)
                    break
                except OSError:
                    continue

    def close(self) -> None:
        ear, self._socket = self._socket, None
        if ear is not None:
            asyncio.get_running_loop().remove_reader(ear)
            (self._directory / self._name).unlink(missing_ok=True)
            ear.close()
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._descriptor}/{name}"

    def _hear(self) -> None:
        if self._socket is None:
            return
        topics: set[str] = set()
        hints = 0
        while True:
            try:
                topics.add(self._socket.recv(256).decode("utf-8", "replace"))
            except OSError:
                break
            hints += 1
        if hints >= _MANY:
            # The buffer may have been full when another one came.
            self._heard(None)
            return
        for topic in topics:
            self._heard(topic)
