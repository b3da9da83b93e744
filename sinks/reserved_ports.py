# SPDX-License-Identifier: Apache-2.0
"""Ports that are had and not listened on: whether they are free is known, and nobody who asks one meanwhile is answered by something that is
not ready to. Neighbours: `sinks.listener`, which listens; `hauberk.ports`, which looks at the ports of a role."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from types import TracebackType
from typing import Any

_ANY = frozenset(("0.0.0.0", "::"))


class ReservedPorts:
    """`await reserve(...)` inside of `with`; all are let go at its end."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def __enter__(self) -> ReservedPorts:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._held:
            self._held.pop().close()

    async def reserve(self, host: str, port: int) -> None:
        """Have `port` of all addresses of `host`; 0 is any. OSError when somebody listens there, one of these has it, or there is no such address."""
        loop = asyncio.get_running_loop()
        addresses = await loop.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, kind, protocol, _, address in dict.fromkeys(addresses):
            one = socket.socket(family, kind, protocol)
            self._held.append(one)
            # As `create_server` has it: what a connection that ended a moment ago has left is in nobody's way.
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            # With that the kernel gives one port to as many as ask, until one of them listens.
            if any(_same(other.getsockname(), address) for other in self._held[:-1]):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            one.bind(address)


def _same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return one[1] == other[1] and (one[0] == other[0] or not _ANY.isdisjoint((one[0], other[0])))
