# SPDX-License-Identifier: Apache-2.0
"""How many alerts one (container, policy) may make: N a second, then silence, and every silenced one counted.

Time is the events' own, so a replay is throttled the same way. The default posture is a policy of its own here: its noise
cannot silence a block. Must never lose a count: what was silenced is told by the next alert of the pair, or by a closing
notice when the silence ends. Neighbour: `processors.alerts`.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

_SECOND: Final = 1_000_000_000


class ThrottleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When an alert storm is cut. KubeArmor's defaults."""

    max_alerts_per_second: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=(1 << 31) - 1, description="Alerts a second per container and policy; 0 never cuts.", examples=[10]
        ),
    ] = 10
    silence_seconds: Annotated[
        int,
        msgspec.Meta(ge=1, le=315_360_000, description="Seconds of silence after the limit was passed.", examples=[30]),
    ] = 30


class Bucket(msgspec.Struct, gc=False):
    """One (container, policy). Times: Unix ns of events. `suppressed`: silenced and not told yet."""

    start: int = 0
    count: int = 0
    silent_until: int = 0
    suppressed: int = 0


class Throttle:
    """`admit` each alert; `opened` says that silence just began. `suppressed`: all silenced since start."""

    def __init__(self, settings: ThrottleSettings) -> None:
        self.settings = settings
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self.suppressed = 0

    def bucket(self, uid: str, policy: str) -> Bucket:
        """The bucket of a pair."""
        key = (uid, policy)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = self._buckets[key] = Bucket()
        return bucket

    def admit(self, bucket: Bucket, at: int, events: int = 1) -> tuple[bool, bool]:
        """(told, silence begins here) for an alert at Unix ns `at` that stands for `events`."""
        limit = self.settings.max_alerts_per_second
        if not limit:
            return True, False
        if at < bucket.silent_until:
            self.suppress(bucket, events)
            return False, False
        if at - bucket.start >= _SECOND or bucket.silent_until:
            bucket.start, bucket.count, bucket.silent_until = at, 0, 0
        bucket.count += 1
        if bucket.count <= limit:
            return True, False
        bucket.silent_until = at + self.settings.silence_seconds * _SECOND
        self.suppress(bucket, events)
        return False, True

    def suppress(self, bucket: Bucket, events: int) -> None:
        """Count `events` as silenced."""
        bucket.suppressed += events
        self.suppressed += events

    def told(self, bucket: Bucket) -> int:
        """What was silenced before the alert now told; the count starts anew."""
        count, bucket.suppressed = bucket.suppressed, 0
        return count

    def over(self, now: int) -> list[tuple[str, str, Bucket]]:
        """Pairs whose silence ended before Unix ns `now` with something untold; idle pairs are forgotten."""
        ended = []
        for key, bucket in list(self._buckets.items()):
            if bucket.silent_until and bucket.silent_until <= now and bucket.suppressed:
                ended.append((*key, bucket))
            elif not bucket.suppressed and bucket.silent_until <= now and bucket.start + 60 * _SECOND < now:
                del self._buckets[key]
        return ended
