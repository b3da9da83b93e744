# SPDX-License-Identifier: Apache-2.0
"""A frame: a chunk of the occurrences ring as it lay there, and the definitions of the ids it uses. One record of `events.raw.v1`.

Self-contained, so processors stay stateless. `occurrences` is a table of `schemas.kernel.STRIDE` bytes a row, ring headers
included; row field offsets are `RING_HEADER + OCCURRENCE.offsets[...]`. `definitions` is a run of definition records, each
`DEFINITION` header + bytes, padded to 8; those of the cgroups come first. `folded` holds rows of `FOLDED` for behaviours whose repeats were counted on the
node instead of being sent one by one (under flood, or in edge mode): counted, never hidden. `answers` is a run of ANSWER definitions:
what name servers said before the rows of this frame, or early in its time.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from schemas.decoding import Count, Name, Nanoseconds, Word, decoder
from schemas.errors import DecodeError, Incompatible
from schemas.kernel import DEFINITION, OCCURRENCE, RING_HEADER, STRIDE

VERSION: Final = 1
"""Bumped only when an old reader would misread; appended fields do not bump it."""

FOLDED: Final = struct.Struct("=QQQQQQ")
"""id, count, first boot time ns, last boot time ns, first sequence, process of the first."""


class FrameHeader(msgspec.Struct, array_like=True, kw_only=True, frozen=True):
    """`number` counts frames of this agent run, from 0; a hole in it is a lost frame. `clock_offset_ns` + a row's time is
    Unix ns. `lost`: losses since the last frame, indexed by `schemas.kernel.Loss`. `undefined`: ids in this frame whose
    definition the agent did not get. `events`: rows plus folded counts. `lost_by`: (cgroup id, `Loss`, count), the part of
    `lost` whose container is known."""

    version: int = VERSION
    node: Name
    boot: Word
    run: Word
    number: Count
    clock_offset_ns: Nanoseconds
    events: Count
    lost: tuple[Count, ...] = ()
    undefined: Count = 0
    architecture: Word = "x86_64"
    origin: Word = "ring"
    layout: int = 1
    lost_by: tuple[tuple[int, int, int], ...] = ()


class Frame(msgspec.Struct, array_like=True, kw_only=True, frozen=True):
    """What travels. See the module's text for the tables."""

    header: FrameHeader
    occurrences: bytes
    definitions: bytes
    folded: bytes = b""
    answers: bytes = b""


_encode = msgspec.msgpack.Encoder().encode
_decode = decoder(Frame, "a frame")

_TOP_BYTE: Final = RING_HEADER + OCCURRENCE.offsets["time"] + 7
_SMALL: Final = bytes(range(16))
LONGEST_NS: Final = 1 << 60
"""Boot time of a row stays below it: 36 years without a reboot. Looked for in the top bytes of a whole column at once."""
_MANY: Final = 1 << 48
"""Repeats that one folded row may stand for: at ten million a second, a year."""


def encode(frame: Frame) -> bytes:
    """msgpack of a frame."""
    return _encode(frame)


def decode(data: bytes) -> Frame:
    """The frame in `data`; DecodeError when it is cut, padded or not a frame, or when a value in it can be of no node;
    Incompatible when it is of a later version. Definitions are not looked into (`definitions`)."""
    frame = _decode(data)
    if frame.header.version < 1:
        raise DecodeError(f"expected a frame version from 1 on, got {frame.header.version}")
    if frame.header.version > VERSION:
        raise Incompatible(
            f"frame version {frame.header.version} is newer than {VERSION}, the newest this build reads; upgrade hauberk"
        )
    if len(frame.occurrences) % STRIDE:
        raise DecodeError(
            f"expected occurrences in rows of {STRIDE} bytes, got {len(frame.occurrences)} bytes in frame {frame.header.number}"
        )
    if len(frame.folded) % FOLDED.size:
        raise DecodeError(
            f"expected folded rows of {FOLDED.size} bytes, got {len(frame.folded)} bytes in frame {frame.header.number}"
        )
    if frame.occurrences[_TOP_BYTE::STRIDE].translate(None, _SMALL):
        raise DecodeError(
            f"expected times of less than {LONGEST_NS} ns since the boot, got a later one in frame {frame.header.number} of "
            f"`{frame.header.node}`"
        )
    for ident, many, first, last, _, _ in FOLDED.iter_unpack(frame.folded):
        if not (0 < many <= _MANY and first <= last < LONGEST_NS):
            raise DecodeError(
                f"expected a folded count of 1 to {_MANY} and times in order, got {many} from {first} to {last} ns for id "
                f"{ident} in frame {frame.header.number} of `{frame.header.node}`"
            )
    return frame


def definition(kind: int, ident: int, body: bytes) -> bytes:
    """One definition record: header, body, padding to 8."""
    return DEFINITION.struct.pack(ident, kind, len(body)) + body + bytes(-len(body) % 8)


def definitions(data: bytes) -> list[tuple[int, int, bytes]]:
    """(id, kind, body) of every record in a definitions run; DecodeError when a header points past the end."""
    found = []
    offset, end, head = 0, len(data), DEFINITION.size
    unpack = DEFINITION.struct.unpack_from
    while offset < end:
        if offset + head > end:
            raise DecodeError(
                f"expected a definition header of {head} bytes at offset {offset}, got {end - offset} bytes"
            )
        ident, kind, size = unpack(data, offset)
        start = offset + head
        if start + size > end:
            raise DecodeError(f"expected {size} bytes of definition at offset {start}, got {end - start}")
        found.append((ident, kind, data[start : start + size]))
        offset = start + size + (-size % 8)
    return found
