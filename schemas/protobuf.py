# SPDX-License-Identifier: Apache-2.0
"""The protobuf wire form, without generated code: fields by number. Runtimes (CRI) are read with it.

Pure. Unknown fields are kept and ignored, as protobuf asks. Field numbers come from the CRI's `api.proto`.
"""

from __future__ import annotations

from typing import Any

from schemas.errors import DecodeError

Message = dict[int, list[Any]]
"""Field number -> its values in order: int for varints and fixed, bytes for the rest."""


def parse(data: bytes) -> Message:
    """Fields of one message; `DecodeError` when `data` is none."""
    fields: Message = {}
    at = 0
    try:
        while at < len(data):
            tag, at = _varint(data, at)
            value: Any
            if tag & 7 == 0:
                value, at = _varint(data, at)
            elif tag & 7 == 2:
                size, at = _varint(data, at)
                if at + size > len(data):
                    raise IndexError
                value, at = data[at : at + size], at + size
            elif tag & 7 in (1, 5):
                size = 8 if tag & 7 == 1 else 4
                value, at = int.from_bytes(data[at : at + size], "little"), at + size
            else:
                raise DecodeError(f"expected a protobuf field, got wire type {tag & 7} at byte {at}")
            fields.setdefault(tag >> 3, []).append(value)
    except IndexError:
        raise DecodeError(f"expected a protobuf message, {len(data)} bytes end in the middle of a field") from None
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7


def text(message: Message, number: int) -> str:
    """The string field `number`, "" when absent."""
    value = message.get(number, [b""])[-1]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


def number(message: Message, number: int) -> int:
    """The integer field `number`, 0 when absent."""
    value = message.get(number, [0])[-1]
    return value if isinstance(value, int) else 0


def sub(message: Message, number: int) -> Message:
    """The message field `number`, empty when absent."""
    value = message.get(number, [b""])[-1]
    return parse(value) if isinstance(value, bytes) else {}


def pairs(message: Message, number: int) -> dict[str, str]:
    """The `map<string, string>` field `number`."""
    entries = [parse(entry) for entry in message.get(number, ())]
    return {text(entry, 1): text(entry, 2) for entry in entries}


def string(number: int, value: str) -> bytes:
    """A string field, ready to be joined with others; nothing for ""."""
    return nested(number, value.encode()) if value else b""


def nested(number: int, value: bytes) -> bytes:
    """A length-delimited field."""
    return _encoded(number << 3 | 2) + _encoded(len(value)) + value


def integer(number: int, value: int) -> bytes:
    """A varint field."""
    return _encoded(number << 3) + _encoded(value)


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
