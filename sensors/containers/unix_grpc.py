# SPDX-License-Identifier: Apache-2.0
"""One unary gRPC call over a unix socket: the small part of HTTP/2 that the CRI needs.

By hand because grpcio is a 36 MB package in an agent that may use 40 MB of memory. One connection a call, so there is no
flow control to share and no header table to remember: request headers go out as literals, of the answer's headers only
`grpc-status` and `grpc-message` are read. It must never grow streams or TLS. Neighbours: `wire` (protobuf), `cri`.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from urllib.parse import unquote

from schemas.errors import DecodeError, Refused, Unavailable
from sensors.containers.unix_http import connect

UNIMPLEMENTED = 12
NOT_FOUND = 5

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY = 1, 1, 4, 8, 32
_WINDOW_SIZE = 0x7FFFFFFF - 65535  # RFC 9113 6.9.1: the largest window; a unary answer never fills it.
ANSWER_LIMIT = 64 << 20
"""Largest answer taken, bytes: a node with 1,000 containers lists in under 2 MB."""


class Status(Refused):
    """The server answered with a gRPC status other than OK; `code` is its number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


async def call(path: str, method: str, request: bytes, timeout: float) -> bytes:
    """Bytes of the answer to `method` (`/package.Service/Name`). Raises `Status`, `Unavailable`, `PermissionMissing`."""
    try:
        async with asyncio.timeout(timeout), connect(path) as (reader, writer):
            writer.write(
                _PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_WINDOW, 0, 0, struct.pack(">I", _WINDOW_SIZE))
            )
            writer.write(_frame(_SETTINGS, 0, 0, struct.pack(">HI", 4, 0x7FFFFFFF)))
            writer.write(_frame(_HEADERS, _END_HEADERS, 1, _request_headers(method)))
            writer.write(_frame(_DATA, _END_STREAM, 1, struct.pack(">BI", 0, len(request)) + request))
            await writer.drain()
            return await _answer(reader, writer, path, method)
    except TimeoutError as error:
        raise Unavailable(f"{path} gave no answer to `{method}` in {timeout:g} s") from error


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, method: str) -> bytes:
    data, headers = bytearray(), bytearray()
    fields: dict[str, str] = {}
    while True:
        head = await reader.readexactly(9)
        size, kind, flags = int.from_bytes(head[:3]), head[3], head[4]
        payload = await reader.readexactly(size)
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            writer.write(_frame(_PING, _ACK, 0, payload))
        elif kind in (_GOAWAY, _RESET):
            raise Unavailable(f"{path} closed the connection during `{method}`")
        elif kind == _DATA:
            data += _unpadded(payload, flags)
            if len(data) > ANSWER_LIMIT:
                raise Unavailable(f"expected at most {ANSWER_LIMIT} bytes from {path} for `{method}`, got more")
        elif kind in (_HEADERS, _CONTINUATION):
            part = _unpadded(payload, flags) if kind == _HEADERS else payload
            headers += part[5:] if kind == _HEADERS and flags & _PRIORITY else part
            if flags & _END_HEADERS:
                fields.update(_fields(bytes(headers), fields))
                headers.clear()
        else:
            continue
        if kind in (_DATA, _HEADERS) and flags & _END_STREAM and not headers:
            break
    code = int(fields.get("grpc-status", "2"))
    if code:
        raise Status(
            f"{path} answered `{method}` with gRPC status {code}: {unquote(fields.get('grpc-message', ''))}", code
        )
    if len(data) < 5 or len(data) != 5 + int.from_bytes(data[1:5]):
        raise DecodeError(f"expected one gRPC message from {path} for `{method}`, got {len(data)} bytes")
    return bytes(data[5:])


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes((kind, flags)) + stream.to_bytes(4) + payload


def _unpadded(payload: bytes, flags: int) -> bytes:
    return payload[1 : len(payload) - payload[0]] if flags & _PADDED else payload


def _request_headers(method: str) -> bytes:
    pairs = (
        (":method", "POST"), (":scheme", "http"), (":path", method), (":authority", "localhost"),
        ("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "hauberk"),
    )  # fmt: skip
    # RFC 7541 6.2.2: literal without indexing, new name, no Huffman; every length here is under 127.
    return b"".join(b"\0" + bytes((len(k),)) + k.encode() + bytes((len(v),)) + v.encode() for k, v in pairs)


def _fields(block: bytes, known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Literal fields of an HPACK block (RFC 7541). Indexed ones are skipped but for the dynamic entries of this call."""
    table: list[str] = list(known)
    at = 0
    while at < len(block):
        first = block[at]
        if first & 0x80:
            _, at = _integer(block, at, 7)
            continue
        if first & 0xE0 == 0x20:
            _, at = _integer(block, at, 5)
            continue
        index, at = _integer(block, at, 6 if first & 0x40 else 4)
        name = "" if index else None
        if name is None:
            name, at = _text(block, at)
        elif index > 61 and index - 62 < len(table):
            name = table[-1 - (index - 62)]
        value, at = _text(block, at)
        if first & 0x40:
            table.append(name)
        yield name or f"static-{index}", value


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    mask = (1 << bits) - 1
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return value, at


def _text(block: bytes, at: int) -> tuple[str, int]:
    packed = bool(block[at] & 0x80)
    size, at = _integer(block, at, 7)
    raw = block[at : at + size]
    return (_unpacked(raw) if packed else raw.decode("latin-1")), at + size


# RFC 7541 appendix B. The code is canonical, so lengths say it all; symbols with codes over 15 bits never appear in the
# percent-encoded ASCII of gRPC headers.
_LENGTHS = {
    5: "012aceiost",
    6: " %-./3456789=A_bdfghlmnpru",
    7: ":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: "&*,;XZ",
    10: "!\"()?",
    11: "'+|",
    12: "#>",
    13: "\0$@[]~",
    14: "^}",
    15: "<`{",
}  # fmt: skip


def _codes() -> dict[tuple[int, int], str]:
    codes, code, last = {}, 0, 0
    for length, symbols in _LENGTHS.items():
        code <<= length - last
        last = length
        for symbol in symbols:
            codes[length, code] = symbol
            code += 1
    return codes


_CODES = _codes()


def _unpacked(raw: bytes) -> str:
    out, code, length = [], 0, 0
    for byte in raw:
        for bit in range(7, -1, -1):
            code, length = code << 1 | byte >> bit & 1, length + 1
            if (symbol := _CODES.get((length, code))) is not None:
                out.append(symbol)
                code = length = 0
    return "".join(out)
