# SPDX-License-Identifier: Apache-2.0
"""How far the processors of one group have read the frames of a node: what lets a node announce less when they are behind."""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.decoding import Count, Name, Word, decoder

PERIOD: Final = 0.25
"""Seconds between two records of one node, while its frames are read."""


class Progress(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One value of `progress.v1`, key `node/group`. `number`: newest frame that was read of the agent run `boot`, `run`."""

    node: Name
    group: Word
    boot: Word
    run: Word
    number: Count

    @property
    def key(self) -> bytes:
        """Key of the record."""
        return f"{self.node}/{self.group}".encode()


encode = msgspec.msgpack.Encoder().encode
_decode = decoder(Progress, "progress of a processor group")


def decode(data: bytes) -> Progress:
    """The value in `data`; DecodeError when it is not one."""
    return _decode(data)
