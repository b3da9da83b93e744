# SPDX-License-Identifier: Apache-2.0
"""Counts per behaviour and time bucket. One record of `summaries.v1` holds what one batch of frames added to one workload.

Exact under at-least-once: a record names the frames it was counted from (`node`, `boot`+`run`, `first_frame`..`last_frame`),
and a store that has applied them ignores the repeat. Behaviours are whole, so that a policy backtest can judge them again.
"""

from __future__ import annotations

import msgspec

from schemas.behaviour import Behaviour
from schemas.decoding import Count, Nanoseconds, Seconds, decoder
from schemas.identity import Identity
from schemas.verdict import RuleRef

BUCKET_SECONDS = 60
"""Width of a stored bucket; coarser views are sums of these."""


class SummaryEntry(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """One behaviour (its `id`, pid_ns and mnt_ns are 0, so equal behaviours of different boots are equal).
    `status`: what was told, `Allow`, `Audit` or `Deny`. `first`/`last`: Unix ns."""

    behaviour: Behaviour
    status: str
    policy: str = ""
    rule: RuleRef | None = None
    count: Count
    first: Nanoseconds
    last: Nanoseconds


class Summary(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What frames `first_frame`..`last_frame` of one agent run added to one workload in the bucket starting at `bucket`
    (Unix seconds)."""

    node: str
    run: str
    first_frame: Count
    last_frame: Count
    bucket: Seconds
    identity: Identity
    entries: tuple[SummaryEntry, ...]

    @property
    def key(self) -> bytes:
        """workload/uid/bucket/run/last frame: unique for each record, so compaction never merges deltas."""
        return f"{self.identity.workload}/{self.identity.uid}/{self.bucket}/{self.run}/{self.last_frame}".encode()


encode = msgspec.msgpack.Encoder().encode
_decode = decoder(Summary, "a summary")


def decode(data: bytes) -> Summary:
    """The summary in `data`; DecodeError when it is not one."""
    return _decode(data)
