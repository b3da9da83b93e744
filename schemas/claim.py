# SPDX-License-Identifier: Apache-2.0
"""Which process goes by a node's name: what lets a second node of the same name be refused."""

from __future__ import annotations

import msgspec

from schemas.decoding import Count, Name, Word, decoder


class NodeClaim(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One value of `nodes.v1`, key `node`. `run`: of the process, new at each start; `host`: the machine's own name; `boot`: its
    boot id; `started_ns`: Unix time of the process's start. Of two, the one that started later gives way."""

    node: Name
    run: Word
    host: str
    boot: str
    started_ns: Count

    @property
    def order(self) -> tuple[int, str]:
        """The lower one keeps the name. Both sides see both claims, so both agree, whatever their clocks say."""
        return self.started_ns, self.run


encode = msgspec.msgpack.Encoder().encode
_decode = decoder(NodeClaim, "the claim of a node's name")


def decode(data: bytes) -> NodeClaim:
    """The value in `data`; DecodeError when it is not one."""
    return _decode(data)
