# SPDX-License-Identifier: Apache-2.0
"""What wakes the reader of the rings up: written by it into `config[ASLEEP]` and the `behaviours` map, asked by programs/work.c."""

from __future__ import annotations

from enum import IntEnum
from typing import Final


class Sleep(IntEnum):
    """What calls the reader of the rings, beside a ring that is half full."""

    AWAKE = 0
    """Nothing: it looks by itself soon."""
    DOZING = 1
    """An event that cannot wait: a behaviour that is new, that was stopped, or that is marked `CALLS`; a cgroup made or removed."""
    ASLEEP = 2
    """Any event."""


CALLS: Final = 2
"""Value of a behaviour in the `behaviours` map whose events call a dozing reader; 1: they do not."""
