# SPDX-License-Identifier: Apache-2.0
"""Waits of whoever has nothing to do but a look from time to time, ended together.

A process with a dozen such looks, each at its own moment, is never asleep for long. Here they fall on the same moments: the
multiples of each period on the monotonic clock, so that one wake-up of the loop serves all of them. Must never be used for
what is due: an event ends a wait by itself. Neighbours: `follow`, `pump`, and every loop that only looks.
"""

from __future__ import annotations

import time
from typing import Final

REST_SECONDS: Final = 30.0
"""Between looks of who is woken by what happens: for what no event tells."""


def until_look(period: float = REST_SECONDS, now: float | None = None) -> float:
    """Seconds until the next look of all who look each `period` seconds, at most a hundredth more than that. `now`: monotonic."""
    left = period - (time.monotonic() if now is None else now) % period
    # Who was woken for a look must not find that it is still to come.
    return left if left > period / 100 else left + period
