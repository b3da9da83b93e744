# SPDX-License-Identifier: Apache-2.0
"""Ports that are had and not listened on: whether they are free is known, and nobody who asks one meanwhile is answered by something that is
not ready to. Neighbours: `sinks.listener`, which listens; `hauberk.ports`, which looks at the ports of a role."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from types import TracebackType

_ANY = frozenset(("0.0.0.0", "::"))


class ReservedPorts:
    """`await reserve(...)` inside of `with`; all are let go at its end."""

    def __init__(self) -> None:
        self._held: list[asyncio.Server] = []

    def __enter__(self) -> ReservedPorts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._held:
            self._held.pop().close()

    async def reserve(self, host: str, port: int) -> None:
        """Have `port` of all addresses of `host`; 0 is any. OSError when somebody listens there, one of these has it, or there is no such address."""
        # Bound as a listener binds, and never told to listen.
        new = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, host, port, reuse_address=True, start_serving=False
        )
        others = [sock for server in self._held for sock in server.sockets]
        self._held.append(new)
        # The kernel gives one port to as many as ask so, until one of them listens.
        if any(_same(one, other) for one in new.sockets for other in others):
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _same(one: socket.socket, other: socket.socket) -> bool:
    mine, its = one.getsockname(), other.getsockname()
    return (
        one.family == other.family
        and mine[1] == its[1]
        and (mine[0] == its[0] or not _ANY.isdisjoint((mine[0], its[0])))
    )
