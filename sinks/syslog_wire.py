# SPDX-License-Identifier: Apache-2.0
"""The socket under the syslog sink: TCP, TLS, UDP, unix. It connects, writes, notices its end; it never tries twice.

Neighbour: `syslog` decides when to connect again and what to send again.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import Annotated, Literal

import msgspec

from bus.secret import Secret
from bus.tls import client_context
from schemas.errors import HauberkError, SettingsError, Unavailable

_SEND_BUFFER_BYTES = 256 << 10
"""Kernel send buffer, which Linux doubles: bounds what may be under way, so that the resend window can cover it."""

_DEAD_PEER_MS = 30_000


class Tls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificates. The server is always verified."""

    ca_file: Annotated[
        str,
        msgspec.Meta(
            description="CA that signed the server's certificate; the system's when empty.", examples=["ca.pem"]
        ),
    ] = ""
    cert_file: Annotated[
        str, msgspec.Meta(description="Our certificate, for servers that ask for one.", examples=["client.pem"])
    ] = ""
    key_file: Annotated[
        str,
        msgspec.Meta(description="Key of `cert_file`; one that others may read is refused.", examples=["client.key"]),
    ] = ""
    key_password: Annotated[
        Secret, msgspec.Meta(description="Password of `key_file`.", examples=[{"env": "SYSLOG_KEY_PASSWORD"}])
    ] = Secret()
    server_name: Annotated[
        str,
        msgspec.Meta(
            description="Name in the server's certificate; the host when empty.", examples=["siem.example.org"]
        ),
    ] = ""

    def context(self) -> ssl.SSLContext:
        """Ready to use; SettingsError names the file that is wrong."""
        return client_context("syslog", self.ca_file, self.cert_file, self.key_file, self.key_password)


Transport = Literal["tcp", "tls", "udp", "unix"]


class SyslogConnection(asyncio.Protocol, asyncio.DatagramProtocol):
    """One connection. `lost`: why it cannot be used any more, "" while it can. Datagrams go one by one: `write` each."""

    def __init__(self, *, stream: bool = True) -> None:
        self.lost = ""
        self.stream = stream
        self._transport: asyncio.Transport | None = None
        self._room = asyncio.Event()
        self._room.set()
        self._gone = asyncio.Event()

    def write(self, data: bytes) -> None:
        """Hand over; nothing is waited for."""
        if self._transport is not None:
            (self._transport.write if self.stream else self._transport.sendto)(data)  # type: ignore[attr-defined]

    async def drain(self) -> None:
        """Until everything written is with the kernel. Unavailable when the connection ended meanwhile."""
        # One turn of the loop, so that an end that is already here is seen.
        await asyncio.sleep(0)
        await self._room.wait()
        if self.lost:
            raise Unavailable(f"syslog: expected the connection to stay open, got {self.lost}")

    def abort(self) -> None:
        """End it now; what is not with the kernel yet is dropped."""
        self.lost = self.lost or "it was given up"
        if self._transport is not None:
            self._transport.abort()

    async def close(self) -> None:
        """Send what is written, then end; two seconds at most. Twice is once."""
        try:
            async with asyncio.timeout(2.0):
                await self._room.wait()
                if self._transport is not None:
                    self._transport.close()
                    await self._gone.wait()
        except TimeoutError:
            self.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # asyncio's datagram transport inherits from Transport, and from DatagramTransport only since 3.12.
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        if self.stream:
            # No buffer of ours: `drain` means "with the kernel". 1, not 0: asyncio's TLS pauses at `size >= high`,
            # so 0 would pause for ever.
            transport.set_write_buffer_limits(high=1, low=0)

    def data_received(self, data: bytes) -> None:
        """A syslog server says nothing; whatever it says is not for us."""

    def eof_received(self) -> None:
        self._end("the server closed it")

    def error_received(self, exc: Exception) -> None:
        self._end(_words(exc))

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(_words(exc) if exc else "it was closed")
        self._gone.set()

    def pause_writing(self) -> None:
        self._room.clear()

    def resume_writing(self) -> None:
        self._room.set()

    def _end(self, why: str) -> None:
        self.lost = self.lost or why
        self._room.set()


async def connect(transport: Transport, address: str, tls: Tls) -> SyslogConnection:
    """A connection to `host:port` or to a socket's path. SettingsError for what a person must change (address, files,
    a certificate that is not the server's), Unavailable when the server is away."""
    loop = asyncio.get_running_loop()
    try:
        if transport == "unix":
            return await _connect_unix(address)
        host, port = host_and_port(address)
        if transport == "udp":
            _, datagrams = await loop.create_datagram_endpoint(_datagrams, remote_addr=(host, port))
            return datagrams
        context = tls.context() if transport == "tls" else None
        _, wire = await loop.create_connection(
            SyslogConnection, host, port, ssl=context, server_hostname=(tls.server_name or host) if context else None
        )
        _tune(wire)
    except ssl.SSLCertVerificationError as error:
        raise SettingsError(
            f"syslog: expected a certificate for `{tls.server_name or address}` signed by "
            f"`{tls.ca_file or 'a CA of the system'}`, got: {error.verify_message}; set `ca_file` or `server_name`"
        ) from error
    except OSError as error:
        raise away(address, error) from error
    return wire


def away(address: str, error: OSError) -> HauberkError:
    """The sentence for a server that does not answer."""
    if error.errno == errno.EACCES:
        return SettingsError(f"syslog: expected permission to write to `{address}`, this user has none")
    return Unavailable(f"syslog: expected a server at `{address}`, got {_words(error)}; nothing is lost meanwhile")


def host_and_port(address: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`; SettingsError otherwise."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise SettingsError(f"syslog: expected `address` as `host:port`, got `{address}`")
    return host.strip("[]"), int(port)


async def _connect_unix(path: str) -> SyslogConnection:
    loop = asyncio.get_running_loop()
    try:
        _, wire = await loop.create_datagram_endpoint(_datagrams, remote_addr=path, family=socket.AF_UNIX)
    except OSError as error:
        # /dev/log is a datagram socket nearly everywhere; where it is a stream, the kernel says so.
        if error.errno != errno.EPROTOTYPE:
            raise
        _, wire = await loop.create_unix_connection(SyslogConnection, path)
    return wire


def _datagrams() -> SyslogConnection:
    return SyslogConnection(stream=False)


def _tune(wire: SyslogConnection) -> None:
    assert wire._transport is not None
    sock = wire._transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    # Unacknowledged for this long is dead: without it a silent peer is noticed after a quarter of an hour.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_PEER_MS)


def _words(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
