# SPDX-License-Identifier: Apache-2.0
"""This boot of the kernel, and its clock beside the one of the world: what every frame's header says. Neighbour: `rings`."""

from __future__ import annotations

import time


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def clock_offset_ns() -> int:
    """CLOCK_REALTIME - CLOCK_BOOTTIME: add to a row's time for Unix ns. Read between two readings of the other clock."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    real = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return real - (before + after) // 2
