# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 GET over a unix socket: all that the Docker API needs of HTTP.

By hand because importing aiohttp costs the resident agent 12 MB of the 40 it may use (measured; docs/identity.md). One
connection a request, no keep-alive, no redirects, no TLS. It must never leave this room. Neighbour: `docker`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from schemas.errors import PermissionMissing, Unavailable

HEADER_LIMIT = 64 * 1024
"""Longest header line taken, bytes: asyncio's own default, far over what dockerd sends."""


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to the unix socket at `path`, closed on leaving. OS errors come out as ours."""
    try:
        reader, writer = await asyncio.open_unix_connection(path, limit=HEADER_LIMIT)
    except PermissionError as error:
        raise PermissionMissing(
            f"expected to read {path}, got `{error.strerror}`; run as root or join the group that owns the socket",
            operation="connect", target=path, errno=error.errno or 0,
        ) from error  # fmt: skip
    except OSError as error:
        raise Unavailable(f"expected a server on {path}, got `{error.strerror}`; is it running?") from error
    try:
        yield reader, writer
    except (OSError, EOFError, ValueError, LookupError, asyncio.LimitOverrunError) as error:
        raise Unavailable(f"{path} broke off in the middle of an answer ({error or type(error).__name__})") from error
    finally:
        writer.close()


async def get(path: str, target: str, timeout: float) -> tuple[int, bytes]:
    """Status and whole body of `GET target`. Raises `Unavailable` (also after `timeout` seconds) and `PermissionMissing`."""
    try:
        async with asyncio.timeout(timeout), stream(path, target) as (status, chunks):
            return status, b"".join([chunk async for chunk in chunks])
    except TimeoutError as error:
        raise Unavailable(f"{path} gave no answer to `GET {target}` in {timeout:g} s") from error


@asynccontextmanager
async def stream(path: str, target: str) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
    """Status and the body as it arrives. The connection lives as long as the `async with`."""
    async with connect(path) as (reader, writer):
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        await writer.drain()
        status = int((await reader.readuntil(b"\r\n")).split(b" ")[1])
        headers: dict[bytes, bytes] = {}
        while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip().lower()
        yield status, _body(reader, headers)


async def _body(reader: asyncio.StreamReader, headers: dict[bytes, bytes]) -> AsyncIterator[bytes]:
    if headers.get(b"transfer-encoding") == b"chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            yield await reader.readexactly(size)
            await reader.readexactly(2)
    elif b"content-length" in headers:
        yield await reader.readexactly(int(headers[b"content-length"]))
    else:
        while chunk := await reader.read(HEADER_LIMIT):
            yield chunk
