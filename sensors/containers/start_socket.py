# SPDX-License-Identifier: Apache-2.0
"""The socket at which the OCI hook of a container asks for its rules and waits until they are in force.

Only root is answered (SO_PEERCRED). A request is 4 bytes of length, most significant first, and the state of the container; the
answer is one line, `held` or why not. What the hook left in the file `unheld` while nobody answered is told and counted here.
Neighbours: `start_hook` (the other side), `starts` (who it is), `enforcers.holding` (whether it is held).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import socket
import stat
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import msgspec

from bus.paced_log import PacedLog
from bus.rest import until_look
from schemas.errors import HauberkError, SettingsError
from schemas.stats import Gauge
from sensors.containers.starts import OciState, decode_state

log = logging.getLogger(__name__)

MOST: Final = 256 << 10
"""Bytes of a state; the hook cuts a longer one down."""
AT_ONCE: Final = 64
"""Hooks that are answered at a time."""
REQUEST: Final = 2.0
"""Seconds for a request to come whole."""
LONGEST: Final = 60.0
"""Seconds until a hook is answered, whatever it waits for itself."""
_LOOK: Final = 10.0
_UNHELD: Final = 64 << 10
_SHOWN: Final = 3


class StartStats(msgspec.Struct):
    """Containers that hooks asked for since start. `held`: their rules were in force before their first program; `left`: the hook had no
    more time; `refused`: it could not be told what to hold, or the rules could not be put in force; `unanswered`: started, or not, while nobody
    answered, as the hook says; `strangers`: connections of others than root; `waiting`: now."""

    held: int = 0
    left: int = 0
    refused: int = 0
    strangers: int = 0
    started_unheld: int = 0
    kept_out: int = 0
    waiting: Gauge = 0


class StartSocket:
    """`run` until cancelled. `begin(state)`: tell who starts, and give its cgroup; `held(cgroup)`: "" once its rules are in force, else
    why they are not."""

    def __init__(
        self, path: str, begin: Callable[[OciState], Awaitable[int]], held: Callable[[int], Awaitable[str]]
    ) -> None:
        self.path = path
        self.stats = StartStats()
        self._begin = begin
        self._held = held
        self._log = PacedLog(log)
        self._serving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve. SettingsError when the socket cannot be made."""
        server = await asyncio.start_unix_server(self._serve, sock=self._bound(), limit=MOST)
        try:
            async with server:
                while True:
                    self._unanswered()
                    await asyncio.sleep(until_look(_LOOK))
        finally:
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            with contextlib.suppress(OSError):
                os.unlink(self.path)

    def _bound(self) -> socket.socket:
        made = socket.socket(socket.AF_UNIX)
        try:
            os.makedirs(os.path.dirname(self.path), 0o700, exist_ok=True)
            # Of a process before this one: nobody listens there. Anything but a socket stays.
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.lstat(self.path).st_mode):
                    os.unlink(self.path)
            made.bind(self.path)
            os.chmod(self.path, 0o600)
        except OSError as error:
            made.close()
            raise SettingsError(
                f"expected to make the socket `{self.path}` of `inventory.start_socket`, got: {error.strerror or error}; name one in a directory "
                "that this process may write, of at most 107 bytes"
            ) from error
        return made

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            answer = await self._answer(reader, writer)
            if answer is not None:
                writer.write(f"{' '.join(answer.split())[:1024]}\n".encode("utf-8", "replace"))
                await writer.drain()
        except (OSError, asyncio.CancelledError):
            # Only `run` cancels it, at its end: whoever waits finds the connection closed.
            pass
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str | None:
        credentials = writer.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        if (uid := struct.unpack("=3i", credentials)[1]) != 0:
            self.stats.strangers += 1
            await self._read_over(reader)
            return f"expected root to ask, got uid {uid}"
        if self.stats.waiting >= AT_ONCE:
            self.stats.refused += 1
            await self._read_over(reader)
            return f"expected at most {AT_ONCE} containers to start at a time, got more"
        self.stats.waiting += 1
        try:
            return await self._asked(reader)
        finally:
            self.stats.waiting -= 1

    @staticmethod
    async def _read_over(reader: asyncio.StreamReader) -> None:
        """Take what is there: a connection that is closed with unread data is reset, and the answer lost."""
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(REQUEST):
                await reader.readexactly(min(MOST, int.from_bytes(await reader.readexactly(4), "big")))

    async def _asked(self, reader: asyncio.StreamReader) -> str | None:
        """The answer; None when the hook is gone."""
        who = "?"
        try:
            async with asyncio.timeout(REQUEST):
                size = int.from_bytes(await reader.readexactly(4), "big")
                if size > MOST:
                    return self._refuse(who, f"expected a state of at most {MOST} bytes, got {size}")
                state = decode_state(await reader.readexactly(size))
            who = state.id[:64]
            cgroup = await self._begin(state)
            # A hook that has no more time closes: then nobody waits.
            gone = asyncio.ensure_future(reader.read(1))
            waiting = asyncio.ensure_future(self._held(cgroup))
            try:
                await asyncio.wait((gone, waiting), timeout=LONGEST, return_when=asyncio.FIRST_COMPLETED)
                if waiting.done():
                    why = waiting.result()
                    if why:
                        return self._refuse(who, why)
                    self.stats.held += 1
                    return "held"
            finally:
                gone.cancel()
                waiting.cancel()
                await asyncio.gather(gone, waiting, return_exceptions=True)
        except asyncio.IncompleteReadError:
            return self._refuse(who, "expected a whole state, the connection ended before")
        except TimeoutError:
            return self._refuse(who, f"expected a whole state within {REQUEST:g} s")
        except HauberkError as error:
            return self._refuse(who, str(error))
        self.stats.left += 1
        self._log.say(
            logging.WARNING,
            f"container {who}: its hook had no more time to wait for its rules (`--seconds`); whether it started is for the hook's `--unanswered` to say",
        )
        return None

    def _refuse(self, who: str, why: str) -> str:
        self.stats.refused += 1
        self._log.say(logging.WARNING, f"container {who}: its rules are not in force before its start: {why}")
        return why

    def _unanswered(self) -> None:
        """Tell and count what hooks could tell nobody."""
        path = Path(self.path).with_name("unheld")
        try:
            with open(
                path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
            ) as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lines = file.read(_UNHELD + 2048).decode("utf-8", "replace").splitlines()
                os.unlink(path)
        except FileNotFoundError:
            return
        except OSError as error:
            self._log.say(logging.WARNING, f"expected to read {path}, got: {error.strerror}")
            return
        kept_out = sum(line.startswith("refused ") for line in lines)
        self.stats.kept_out += kept_out
        self.stats.started_unheld += len(lines) - kept_out
        for line in lines[:_SHOWN]:
            log.warning("a container's rules were not in force before its start: %s", line)
        if len(lines) > _SHOWN:
            log.warning("and %d more containers, of which the hook says the same", len(lines) - _SHOWN)
