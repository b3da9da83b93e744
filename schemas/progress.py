# SPDX-License-Identifier: Apache-2.0
"""What the processors of one group say to a node: how far they have read its frames, so that it announces less when they are
behind, and which of its behaviours may be alerts, so that it sends those without waiting for company."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from schemas.decoding import Count, Name, Word, decoder

PERIOD: Final = 0.25
"""Seconds between two records of one node, while its frames are read."""


MOST_CALLS: Final = 1024
"""Behaviours of one record; more follow in the next."""


class Progress(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One value of `progress.v1`, key `node/group`. `number`: newest frame that was read of the agent run `boot`, `run`. `calls`:
    ids of behaviours whose events may be alerts, each said once in a while; who misses a record sends them a moment later."""

    node: Name
    group: Word
    boot: Word
    run: Word
    number: Count
    calls: Annotated[tuple[int, ...], msgspec.Meta(max_length=MOST_CALLS)] = ()

    def __post_init__(self) -> None:
        # Above what msgspec can bound, an id has 64 bits.
        if any(not 0 <= ident < 1 << 64 for ident in self.calls):
            raise ValueError("expected ids of behaviours from 0 to 2^64 - 1")

    @property
    def key(self) -> bytes:
        """Key of the record."""
        return f"{self.node}/{self.group}".encode()


encode = msgspec.msgpack.Encoder().encode
_decode = decoder(Progress, "progress of a processor group")


def decode(data: bytes) -> Progress:
    """The value in `data`; DecodeError when it is not one."""
    return _decode(data)
