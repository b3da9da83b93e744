# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 of an endpoint that only answers GET: as much of RFC 9112 as scrapers, probes and browsers use.

For the agent on a node, which has no 25 MB for an HTTP library. A request is its line and headers, `MOST` bytes at most; one
with a body, a second Host or a folded header is refused and the connection closed. It must never keep more for a client than
one answer and what was received at once, nor answer more than one request of a connection per turn of the loop. Neighbours: `listener` (connections and time limits), `endpoint` (the answers).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

MOST: Final = 8192
"""Bytes of a request line with its headers."""
UNREAD: Final = 1 << 20
"""Bytes of answers that a client may leave unread before it is dropped."""

log = logging.getLogger("hauberk.sinks")


class Request(NamedTuple):
    """`path` without the query; `headers` by lower-case name; `transport`: the connection it came by."""

    path: str
    headers: Mapping[str, str]
    transport: asyncio.BaseTransport


class Response(NamedTuple):
    """What is sent, with its length."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200


class GetProtocol(asyncio.Protocol):
    """One connection. `answer` must be quick and not block; `answered(transport)` is called after each answer."""

    def __init__(
        self, answer: Callable[[Request], Response], answered: Callable[[asyncio.BaseTransport], None]
    ) -> None:
        self._answer, self._answered = answer, answered
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._turn: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._buffer.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._turn is None:
            self._next()

    def _next(self) -> None:
        """Answer one request. Ten thousand fit into what is received at once: each of the others waits for a turn of the loop,
        which is the node's own, and nothing more is received meanwhile."""
        self._turn = None
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        end = self._buffer.find(b"\r\n\r\n", 0, MOST)
        if end >= 0:
            head = bytes(self._buffer[:end]).decode("latin-1")
            del self._buffer[: end + 4]
            self._handle(head)
        elif len(self._buffer) >= MOST:
            self._refuse(431, f"expected a request of at most {MOST} bytes")
        if transport.is_closing():
            return
        if end >= 0 and self._buffer:
            transport.pause_reading()
            self._turn = asyncio.get_running_loop().call_soon(self._next)
        else:
            transport.resume_reading()

    def _handle(self, head: str) -> None:
        assert self._transport is not None
        line, *rest = head.split("\r\n")
        method, _, target = line.partition(" ")
        target, _, version = target.rpartition(" ")
        headers: dict[str, str] = {}
        for header in rest:
            name, colon, value = header.partition(":")
            name = name.lower()
            if not colon or not name or name != name.strip() or (name == "host" and name in headers):
                self._refuse(400, "expected headers of the form `Name: value`, with one Host")
                return
            headers[name] = value.strip()
        if version not in ("HTTP/1.1", "HTTP/1.0") or not target.startswith("/"):
            self._refuse(400, "expected `GET /path HTTP/1.1`")
        elif method not in ("GET", "HEAD"):
            self._refuse(405, "expected GET or HEAD")
        elif "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
            self._refuse(400, "expected a request without a body")
        else:
            request = Request(target.partition("?")[0], headers, self._transport)
            wish = headers.get("connection", "").lower()
            close = wish == "close" or (version == "HTTP/1.0" and wish != "keep-alive")
            self._send(self._made(request), close=close, body=method == "GET")

    def _made(self, request: Request) -> Response:
        try:
            return self._answer(request)
        except Exception:
            log.exception("no answer could be made for `%s`", request.path)
            return Response(b"this is a bug in Hauberk; its log says more\n", status=500)

    def _refuse(self, status: int, why: str) -> None:
        self._buffer.clear()
        self._send(Response(f"{why}\n".encode(), status=status), close=True)

    def _send(self, response: Response, *, close: bool, body: bool = True) -> None:
        transport = self._transport
        assert transport is not None
        if transport.get_write_buffer_size() > UNREAD:
            transport.abort()
            return
        lines = [
            f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}",
            f"Content-Type: {response.content_type}",
            f"Content-Length: {len(response.body)}",
            "Cache-Control: no-store",
            "X-Content-Type-Options: nosniff",
            *(["Allow: GET, HEAD"] if response.status == 405 else []),
            f"Connection: {'close' if close else 'keep-alive'}",
        ]
        transport.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (response.body if body else b""))
        self._answered(transport)
        if close:
            transport.close()
