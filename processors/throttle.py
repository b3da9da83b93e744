# SPDX-License-Identifier: Apache-2.0
"""How many alerts one kind of event may make: N a second, then silence, and every silenced one counted by rule.

A kind is (container, policy, rule, action, class): the noise of an audited read cannot silence a denial, nor one rule another.
During a silence the first alert about a resource still passes, up to a number, for it is news. Time is the node's own time since
boot, so a replay is throttled the same way, a clock that is set lengthens no silence, and no node's clock concerns another.
Must never lose a count: what was silenced is told by the next alert of its kind, or by a closing notice when the silence ends.
Neighbours: `processors.alerts` (asks), `processors.clocks` (what time it is on a node).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Final, NamedTuple

import msgspec

from schemas.frame import FrameHeader
from schemas.identity import Identity
from schemas.operations import Class

_SECOND: Final = 1_000_000_000
_KIND: Final = 700
"""Bytes of a kind with its key and its bucket, and `_SEEN` of each resource in it (677 and 64 measured with tracemalloc)."""
_SEEN: Final = 64
_IDLE: Final = 60 * _SECOND
"""A kind that was quiet for so long is forgotten."""


class ThrottleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When repeated alerts are suppressed. KubeArmor's defaults."""

    max_alerts_per_second: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=(1 << 31) - 1,
            description="Alerts a second per container, policy, rule, action and class; 0: no limit.",
            examples=[10],
        ),
    ] = 10
    silence_seconds: Annotated[
        int,
        msgspec.Meta(ge=1, le=315_360_000, description="Seconds of silence after the limit was passed.", examples=[30]),
    ] = 30
    new_resources: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1 << 16,
            description="Alerts about resources not reported before that pass during one silence; the rest is counted.",
            examples=[64],
        ),
    ] = 64
    kinds: Annotated[
        int,
        msgspec.Meta(
            ge=16,
            le=1 << 24,
            description="Kinds of alerts remembered; the oldest are reported and forgotten.",
            examples=[65536],
        ),
    ] = 65536
    cached_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=65536,
            le=1 << 40,
            description="Bytes that kinds and the resources told of them may take; the oldest kinds go then. By default a share of `memory.budget_bytes`.",
            examples=[2097152],
        ),
    ] = 2 << 20


class ThrottleKey(NamedTuple):
    """What is throttled together. `boot`: times of another boot mean nothing here."""

    node: str
    boot: str
    uid: str
    policy: str
    rule: str
    action: str
    cls: Class

    @property
    def label(self) -> str:
        """`spec.file.matchPaths[0]:Audit:File`, without blanks."""
        return f"{self.rule or self.policy or '-'}:{self.action}:{self.cls.label}".replace(" ", "")


class Bucket(msgspec.Struct, gc=False):
    """One kind. Times: boot ns of the node. `suppressed`: silenced and not told yet. `seen`: hashes of resources told in this
    second or this silence. `header`: the latest frame's. `kept`: whether the throttle still remembers it."""

    kind: ThrottleKey
    identity: Identity
    header: FrameHeader
    start: int = 0
    count: int = 0
    silent_until: int = 0
    suppressed: int = 0
    seen: set[int] = msgspec.field(default_factory=set)
    kept: bool = True


class Throttle:
    """`admit` each alert; `opened` says that silence just began. `suppressed`: all silenced since start."""

    def __init__(self, settings: ThrottleSettings) -> None:
        self.settings = settings
        self._buckets: dict[ThrottleKey, Bucket] = {}
        self._evicted: list[Bucket] = []
        self._seen = 0
        self.suppressed = 0

    @property
    def held_bytes(self) -> int:
        """Of all kinds and what was told of them."""
        return len(self._buckets) * _KIND + self._seen * _SEEN

    def __len__(self) -> int:
        return len(self._buckets)

    def bucket(self, kind: ThrottleKey, identity: Identity, header: FrameHeader) -> Bucket:
        """The bucket of a kind."""
        bucket = self._buckets.get(kind)
        if bucket is None:
            while self._buckets and (
                len(self._buckets) >= self.settings.kinds or self.held_bytes >= self.settings.cached_bytes
            ):
                oldest = self._forget(next(iter(self._buckets)))
                if oldest.suppressed:
                    self._evicted.append(oldest)
            bucket = self._buckets[kind] = Bucket(kind, identity, header)
        bucket.header = header
        return bucket

    def admit(self, bucket: Bucket, at: int, resource: str, events: int = 1) -> tuple[bool, bool]:
        """(told, silence begins here) for an alert at boot ns `at` about `resource` that stands for `events`."""
        limit = self.settings.max_alerts_per_second
        if not limit:
            return True, False
        # Earlier than the second this is counted in: a snapshot of the machine was restored.
        set_back = at < bucket.start - _SECOND
        if at < bucket.silent_until and not set_back:
            told = self._first(bucket, resource)
            if not told:
                self.suppress(bucket, events)
            return told, False
        if set_back or at - bucket.start >= _SECOND or bucket.silent_until:
            bucket.start, bucket.count, bucket.silent_until = at, 0, 0
            self._seen -= len(bucket.seen) * bucket.kept
            bucket.seen.clear()
        bucket.count += 1
        if bucket.count <= limit:
            self._see(bucket, resource)
            return True, False
        bucket.silent_until = at + self.settings.silence_seconds * _SECOND
        told = self._first(bucket, resource)
        if not told:
            self.suppress(bucket, events)
        return told, True

    def knows(self, bucket: Bucket, resource: str) -> bool:
        """Whether a further alert about `resource` would be silenced in a silence."""
        return hash(resource) in bucket.seen or len(bucket.seen) >= self._most

    @property
    def _most(self) -> int:
        return self.settings.max_alerts_per_second + self.settings.new_resources

    def _first(self, bucket: Bucket, resource: str) -> bool:
        if self.knows(bucket, resource):
            return False
        self._see(bucket, resource)
        return True

    def _see(self, bucket: Bucket, resource: str) -> None:
        before = len(bucket.seen)
        bucket.seen.add(hash(resource))
        self._seen += (len(bucket.seen) - before) * bucket.kept

    def _forget(self, kind: ThrottleKey) -> Bucket:
        bucket = self._buckets.pop(kind)
        bucket.kept = False
        self._seen -= len(bucket.seen)
        return bucket

    def suppress(self, bucket: Bucket, events: int) -> None:
        """Count `events` as silenced."""
        if not bucket.kept and not bucket.suppressed:
            # Forgotten in favour of another kind of the same event: nobody would look at it again.
            self._evicted.append(bucket)
        bucket.suppressed += events
        self.suppressed += events

    def put_off(self, bucket: Bucket, events: int) -> None:
        """Of what was counted as silenced just now: it is told later after all."""
        bucket.suppressed -= events
        self.suppressed -= events

    def take_suppressed(self, bucket: Bucket) -> int:
        """What was silenced before the alert now told; the count starts anew. 0 in a silence: its end tells all of it."""
        if bucket.silent_until:
            return 0
        count, bucket.suppressed = bucket.suppressed, 0
        return count

    def over(self, now: Callable[[FrameHeader], int], everything: bool = False) -> list[Bucket]:
        """Buckets whose silence has ended with something untold, which is told now; idle ones are forgotten. `now`: boot ns
        of the node of a frame. `everything`: nothing will come any more."""
        ended, self._evicted = self._evicted, []
        for kind, bucket in list(self._buckets.items()):
            at = now(bucket.header)
            silent = bucket.silent_until > at and not everything
            if bucket.suppressed and not silent:
                ended.append(bucket)
                self._forget(kind)
            elif not bucket.suppressed and not silent and bucket.start + _IDLE < at:
                self._forget(kind)
        return ended
