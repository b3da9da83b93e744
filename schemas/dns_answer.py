# SPDX-License-Identifier: Apache-2.0
"""What an answer of a name server says: which addresses the name that was asked for has, and for how long (RFC 1035, 3596). Pure.

The bytes come from whoever a workload listens to, so nothing in them is believed to be in range: each pointer goes backwards, a name has
255 bytes at most and few pointers, a message few records, and only records that the question leads to count. `parse` raises
nothing. A message whose end is missing says what is whole of it.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

NAME_BYTES: Final = 255
"""Of a name on the wire (RFC 1035, section 2.3.4)."""
TEXT_MOST: Final = 253
"""Characters of a name as text; one that needs more, because of what had to be escaped, is no host's and is not told."""
POINTERS: Final = 16
"""Of one name; by feel: servers write one."""
RECORDS: Final = 64
"""Records of a message that are looked at; by feel: 1,232 bytes hold 76 of the shortest."""
CHAIN: Final = 16
"""Aliases that lead from one to the next; resolvers give up before (unbound after 11)."""

_HEAD: Final = struct.Struct(">HHHHHH").unpack_from
_RECORD: Final = struct.Struct(">HHIH").unpack_from
_A, _CNAME, _AAAA, _IN = 1, 5, 28, 1
_RESPONSE, _OPCODE, _CUT, _CODE = 0x8000, 0x7800, 0x0200, 0x000F
_HOST: Final = b"abcdefghijklmnopqrstuvwxyz0123456789-_"
_LOWER: Final = bytes(range(256)).lower()


class DnsAnswer(msgspec.Struct, frozen=True):
    """`name`: what was asked for, in lower case without the last dot, what no host's name has as `\\DDD` (RFC 1035, section 5.1).
    `addresses`: (4 or 16 bytes, seconds that it holds by the record and the aliases before it; 0 to 2^31 - 1). `cut`: there was more."""

    name: str
    addresses: tuple[tuple[bytes, int], ...]
    cut: bool


def parse(message: bytes, length: int = 0) -> DnsAnswer | None:
    """The answer in `message`; None when it is none that gives an address, or not well formed. `length`: bytes that the message had."""
    if len(message) < 12:
        return None
    _, flags, questions, records, _, _ = _HEAD(message)
    if flags & (_RESPONSE | _OPCODE | _CODE) != _RESPONSE or questions != 1:
        return None
    found = _name(message, 12)
    if found is None or found[1] + 4 > len(message):
        return None
    asked, at = found
    name = _text(asked)
    if not name or message[at + 2 : at + 4] != b"\0\1":
        return None
    aliases: dict[bytes, tuple[bytes, int]] = {}
    hosts: list[tuple[bytes, bytes, int]] = []
    at += 4
    whole = min(records, RECORDS)
    for number in range(whole):
        found = _name(message, at)
        if found is None or found[1] + 10 > len(message):
            whole = number
            break
        owner, at = found
        kind, class_, ttl, size = _RECORD(message, at)
        at += 10
        if at + size > len(message):
            whole = number
            break
        ttl = ttl if ttl < 1 << 31 else 0  # RFC 2181, section 8
        if class_ == _IN and kind == _CNAME:
            target = _name(message, at)
            if target is None or target[1] != at + size:
                return None
            aliases.setdefault(owner, (target[0], ttl))
        elif class_ == _IN and (kind, size) in ((_A, 4), (_AAAA, 16)):
            hosts.append((owner, message[at : at + size], ttl))
        at += size
    led = _led(asked, aliases)
    addresses = tuple((address, min(ttl, led[owner])) for owner, address, ttl in hosts if owner in led)
    if not addresses:
        return None
    return DnsAnswer(name, addresses, whole < records or length > len(message) or bool(flags & _CUT))


def _led(asked: bytes, aliases: dict[bytes, tuple[bytes, int]]) -> dict[bytes, int]:
    """The names that the question leads to, and for how long it does."""
    led = {asked: (1 << 31) - 1}
    name = asked
    for _ in range(CHAIN):
        if name not in aliases or aliases[name][0] in led:
            break
        target, ttl = aliases[name]
        led[target] = min(ttl, led[name])
        name = target
    return led


def _name(message: bytes, at: int) -> tuple[bytes, int] | None:
    """(the name at `at` in lower case, its labels with their lengths; where what follows it begins); None when it is none."""
    labels: list[bytes] = []
    size, after, pointers, end = 0, 0, 0, len(message)
    begin = at
    while at < end:
        length = message[at]
        if length == 0:
            return b"".join(labels), after or at + 1
        if length < 64:
            size += length + 1
            if size >= NAME_BYTES or at + 1 + length > end:
                return None
            labels.append(message[at : at + 1] + message[at + 1 : at + 1 + length].translate(_LOWER))
            at += 1 + length
            continue
        pointers += 1
        if length < 192 or at + 2 > end or pointers > POINTERS:
            return None
        target = (length & 63) << 8 | message[at + 1]
        # Strictly backwards, before all that was read of this name: so it ends.
        if target >= begin or target < 12:
            return None
        after = after or at + 2
        begin = at = target
    return None


def _text(name: bytes) -> str:
    """As people write it; "" for the root, and for what would be longer than any host's name."""
    labels: list[bytes] = []
    at = 0
    while at < len(name):
        labels.append(name[at + 1 : at + 1 + name[at]])
        at += 1 + name[at]
    if b"".join(labels).translate(None, _HOST):
        labels = [
            b"".join(byte if byte in _HOST else b"\\%03d" % ord(byte) for byte in _bytes(label)) for label in labels
        ]
    text = b".".join(labels).decode()
    return text if len(text) <= TEXT_MOST else ""


def _bytes(label: bytes) -> list[bytes]:
    return [label[at : at + 1] for at in range(len(label))]
