# SPDX-License-Identifier: Apache-2.0
"""A listening HTTP port that anybody on the machine may reach, and that cannot take the agent's descriptors away.

What it does: serves an aiohttp application, or protocols of our own; at most `most` connections at a time, and a time limit for each that asks
nothing. When the port is full the connection that has asked nothing for longest makes room, so that whoever holds idle ones
keeps nobody out. What it never does: end the process or wait for a client. A port in use is a settings error when it is
opened; a port that is lost while it is served (somebody destroyed the socket, `ss -K`) is logged, counted and opened again.
Neighbours: `endpoint` and `web.page` (which answer on it).
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Collection
from typing import TYPE_CHECKING, Any, Final

import msgspec

from schemas.stats import Gauge, Label

if TYPE_CHECKING:
    import ssl

    from aiohttp import web

CONNECTIONS: Final = 64
"""Connections of one port at a time: a dozen scrapers or browsers with six each."""
BACKLOG: Final = 16
"""Connections that asyncio accepts at once, before any is counted: each costs a descriptor until it is."""
HEADER_SECONDS: Final = 10.0
"""From the connection, or from the first thing after a request, to a whole request."""
IDLE_SECONDS: Final = 60.0
"""A connection is kept so long after its last request: scrapers come again within a minute as a rule."""
LOOK_SECONDS: Final = 5.0
"""Between two looks at whether the socket still listens. asyncio logs an error at each turn of the loop until then."""
LONGEST_PAUSE: Final = 30.0
"""Seconds between two attempts to open a lost port again, doubled from LOOK_SECONDS."""

log = logging.getLogger("hauberk.sinks")


class ListenerStats(msgspec.Struct, kw_only=True):
    """One listening port. `connections` now; `evicted`: asked nothing when room was needed; `late`: asked nothing in time;
    `refused`: came when all others were being answered; `malformed`: requests that were no HTTP; `up`: 0 while the port is lost; `reopened`: times it was opened again."""

    listener: Label
    connections: Gauge = 0
    evicted: int = 0
    late: int = 0
    refused: int = 0
    malformed: int = 0
    up: Gauge = 0
    reopened: int = 0


class Listener:
    """`await open()`, then `await close()`. `port` and `url` are known after `open`. `most`: connections at a time."""

    def __init__(self, name: str, host: str, port: int, most: int = CONNECTIONS) -> None:
        self.stats = ListenerStats(listener=name)
        self.host, self.port = host, port
        self.url = ""
        self._most = most
        self._tls: ssl.SSLContext | None = None
        self._visitors: dict[asyncio.BaseTransport, _Visitor | _Handshake] = {}
        self.shaking: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None
        self._server: asyncio.Server | None = None
        self._watching: asyncio.Task[None] | None = None

    async def open(self, application: web.Application, tls: ssl.SSLContext | None = None, **options: Any) -> None:
        """Listen, and answer with `application`. OSError when the port cannot be had; `why` says it in words."""
        from aiohttp import web

        @web.middleware
        async def busy(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            visitor = self._visitors.get(request.transport) if request.transport is not None else None
            if not isinstance(visitor, _Visitor):
                return await handler(request)
            visitor.begins()
            try:
                return await handler(request)
            finally:
                visitor.ends()

        application.middlewares.insert(0, busy)
        runner = web.AppRunner(
            application, access_log=None, handle_signals=False, keepalive_timeout=IDLE_SECONDS, logger=_Complaints(self.stats), **options
        )  # fmt: skip
        await runner.setup()
        assert runner.server is not None
        self._tls = tls
        try:
            await self.open_protocol(runner.server)
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner

    async def open_protocol(self, serving: Callable[[], Any]) -> None:
        """Listen, and answer with the protocols that `serving` makes; they call `answered`. OSError as for `open`."""
        await self._listen(serving)
        self._watching = asyncio.create_task(self._watch(serving), name=f"listener-{self.stats.listener}")
        shown = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"{'https' if self._tls else 'http'}://{shown}:{self.port}"

    async def close(self) -> None:
        """Let go of the port and of everybody. Twice is once."""
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            await asyncio.wait({watching})
        server, self._server = self._server, None
        runner, self._runner = self._runner, None
        if server is not None:
            server.close()
        if runner is not None:
            await runner.cleanup()
        for visitor in list(self._visitors.values()):
            visitor.leave()
        if self.shaking:
            await asyncio.wait(self.shaking)

    def answered(self, transport: asyncio.BaseTransport) -> None:
        """A protocol has answered a request of this connection."""
        visitor = self._visitors.get(transport)
        if isinstance(visitor, _Visitor):
            visitor.ends()

    async def _listen(self, serving: Callable[[], Any]) -> None:
        def arrives() -> asyncio.Protocol:
            visitor = _Visitor(self, serving())
            # Not `ssl` of `create_server`: that says nothing of a connection before its handshake is over.
            return visitor if self._tls is None else _Handshake(self, visitor, self._tls)

        self._server = await asyncio.get_running_loop().create_server(
            arrives, self.host, self.port, reuse_address=True, backlog=BACKLOG
        )
        # A free port that was found once is the one that is said, so it is taken again.
        self.port = self._server.sockets[0].getsockname()[1]
        self.stats.up = 1

    async def _watch(self, serving: Callable[[], Any]) -> None:
        """Open the port again when it is lost, until cancelled. Those who are connected stay."""
        pause = LOOK_SECONDS
        while True:
            # On the same moments as others that look (`bus.rest`): one wake-up serves all.
            await asyncio.sleep(pause - asyncio.get_running_loop().time() % pause)
            if self._server is not None:
                if all(_listens(one) for one in self._server.sockets):
                    continue
                log.error("port %d of `%s` was lost and is opened again", self.port, self.stats.listener)
                self.stats.up = 0
                self._server.close()
                self._server = None
            try:
                await self._listen(serving)
            except OSError as error:
                pause = min(pause * 2, LONGEST_PAUSE)
                log.warning("port %d of `%s` cannot be opened: %s", self.port, self.stats.listener, why(error))
                continue
            pause = LOOK_SECONDS
            self.stats.reopened += 1

    def admit(self, visitor: _Visitor | _Handshake, transport: asyncio.BaseTransport) -> bool:
        """Whether there is room, or somebody who asks nothing makes it."""
        if len(self._visitors) >= self._most:
            idle = [one for one in self._visitors.values() if not one.busy]
            if not idle:
                self.stats.refused += 1
                return False
            self.stats.evicted += 1
            min(idle, key=lambda one: one.since).leave()
        self._visitors[transport] = visitor
        self.stats.connections = len(self._visitors)
        return True

    def gone(self, transport: asyncio.BaseTransport) -> None:
        """A connection has ended, or is about to."""
        self._visitors.pop(transport, None)
        self.stats.connections = len(self._visitors)


def is_loopback(host: str) -> bool:
    """Whether a port bound to `host` is reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def names_us(host: str, names: Collection[str], transport: asyncio.BaseTransport | None) -> bool:
    """Whether the Host header `host` is an address of ours or one of `names` (lower case). A site that made its own name resolve
    to 127.0.0.1 (DNS rebinding) has that name there. `transport`: the connection it came by."""
    host = host.lower()
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    if name in names or is_loopback(name):
        return True
    own = transport.get_extra_info("sockname") if transport is not None else None
    return isinstance(own, tuple) and name == own[0]


def _listens(one: socket.socket) -> bool:
    """Whether the kernel still takes connections on this socket."""
    try:
        return bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def why(error: OSError) -> str:
    """What keeps the port from being had."""
    return "it is in use" if error.errno == errno.EADDRINUSE else (error.strerror or str(error))


class _Complaints(logging.LoggerAdapter[logging.Logger]):
    """What aiohttp says of requests. One that is no HTTP is counted: logged, it would be twenty lines, as often as anybody likes."""

    def __init__(self, stats: ListenerStats) -> None:
        super().__init__(log, {})
        self._stats = stats

    def log(self, level: int, msg: object, *args: object, **how: Any) -> None:
        from aiohttp.http_exceptions import HttpProcessingError

        if isinstance(how.get("exc_info"), HttpProcessingError):
            self._stats.malformed += 1
        else:
            super().log(level, msg, *args, **how)


class _Visitor(asyncio.Protocol):
    """One connection, between the transport and aiohttp's protocol: its time limits, and whether it is being answered."""

    def __init__(self, listener: Listener, inner: Any) -> None:
        self._listener, self._inner = listener, inner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._early: list[bytes] = []
        self.busy = False
        self.since = 0.0

    def begins(self) -> None:
        """A whole request has come."""
        self.busy = True
        self._limit(None)

    def ends(self) -> None:
        """It is answered, but for what the client has yet to read: that has the limit too."""
        self.busy = False
        self._limit(IDLE_SECONDS)

    def leave(self) -> None:
        """Have done with it, whatever is in its buffers."""
        if self._transport is not None:
            self._listener.gone(self._transport)
            self._transport.abort()

    def _limit(self, seconds: float | None) -> None:
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else loop.call_later(seconds, self._late)

    def _late(self) -> None:
        self._listener.stats.late += 1
        self.leave()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        if not self._listener.admit(self, transport):
            self._inner = None
            transport.abort()
            return
        self._transport = transport
        self._limit(HEADER_SECONDS)
        self._inner.connection_made(transport)
        early, self._early = self._early, []
        for data in early:
            self._inner.data_received(data)

    def data_received(self, data: bytes) -> None:
        if self._transport is None:
            # What came with the end of a TLS handshake; at most what the transport reads before it is handed over.
            self._early.append(data)
        elif self._inner is not None:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._inner is None or self._transport is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._listener.gone(self._transport)
            if self._inner is not None:
                self._inner.connection_lost(exc)


class _Handshake(asyncio.Protocol):
    """A connection until its TLS handshake is over: it has a place like one that asks nothing, and makes room like one."""

    busy = False

    def __init__(self, listener: Listener, visitor: _Visitor, tls: ssl.SSLContext) -> None:
        self._listener, self._visitor, self._tls = listener, visitor, tls
        self._transport: asyncio.Transport | None = None
        self.since = 0.0

    def leave(self) -> None:
        """Have done with it."""
        if self._transport is not None:
            self._listener.gone(self._transport)
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        loop = asyncio.get_running_loop()
        self.since = loop.time()
        if not self._listener.admit(self, transport):
            transport.abort()
            return
        self._transport = transport
        # Until then nothing is read: the first bytes are the handshake's.
        transport.pause_reading()
        task = loop.create_task(self._shake(transport))
        self._listener.shaking.add(task)
        task.add_done_callback(self._listener.shaking.discard)

    async def _shake(self, transport: asyncio.Transport) -> None:
        if transport.is_closing():
            return
        try:
            made = await asyncio.get_running_loop().start_tls(
                transport, self._visitor, self._tls, server_side=True, ssl_handshake_timeout=HEADER_SECONDS,
                ssl_shutdown_timeout=1.0,
            )  # fmt: skip
        except OSError as error:
            # Too late, cut off, or no TLS.
            self._listener.stats.late += isinstance(error, ConnectionAbortedError)
            made = None
            transport.abort()
        finally:
            self._listener.gone(transport)
        if made is not None and not made.is_closing():
            # In the same turn: the place that it had is its own.
            self._visitor.connection_made(made)
