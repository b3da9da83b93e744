# SPDX-License-Identifier: Apache-2.0
"""How long to wait before the next try: the one back-off of this project and its settings.

Pure: who waits is `attempts` (stages and sinks), `spool`, `hauberk.supervision`.
"""

from __future__ import annotations

from typing import Annotated

import msgspec


class Backoff(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Delays that double from `first_seconds` up to `max_seconds`."""

    first_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=315_360_000, description="Longest first delay, seconds; doubled each time.", examples=[0.2]
        ),
    ] = 0.2
    max_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=315_360_000, description="Longest delay of all, seconds.", examples=[30.0])
    ] = 30.0

    def delay(self, attempt: int, part: float = 1.0, asked: float | None = None) -> float:
        """Seconds before try `attempt` + 1, counted from 0. `part`: of the bound, 0 to 1; a random one (full jitter) keeps
        clients of a returning server apart. `asked`: what the far side asked for; never sooner."""
        bound = min(self.max_seconds, self.first_seconds * 2.0 ** min(attempt, 32))
        return max(bound * part, asked or 0.0)
