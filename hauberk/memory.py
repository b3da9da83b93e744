# SPDX-License-Identifier: Apache-2.0
"""One budget of bytes for all caches of a process: each has its share of it, and what it uses is shown beside what it may.

A share is the default of the setting that bounds the cache; a setting made by hand takes its bytes first, and the others share
what is left. Shares do not depend on the role: one with fewer caches uses less. What waits to be written, read or judged is no
cache: it has bounds of its own (`bus.queue_bytes`, `bus.hand_over_bytes`, `processor.parking`). Neighbours: `configuration` (fills the
shares in), `allocator` (gives freed memory back), `metrics`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sqlite3
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec

from bus.rest import until_look
from hauberk.allocator import free_bytes, give_back
from kernel.machine import Machine, machine
from schemas.stats import Gauge
from schemas.topics import TOPICS

_SHARE: Final = 64
"""Part of this machine's memory that the caches take when nobody set a budget."""
_LEAST: Final = 12 << 20
_MOST: Final = 48 << 20
"""Bounds of that. 48 MiB keep what `up` has after floods below 80 MB resident (docs/performance.md)."""
FLOOR: Final = 6 << 20
"""What all caches at their least take together is below this: a smaller budget would not be held."""
_FREE: Final = 4 << 20
"""Bytes free in the allocator's arenas from which they are given back."""


class BudgetSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What this process may keep in memory."""

    budget_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1 << 50,
            description="Bytes of all caches of this process together; 0: a 64th of the memory of the machine or container, at least 12 MiB and at most 48 MiB. Below 6 MiB is refused. Caches that have a setting of their own take what it says first.",
            examples=[16777216],
        ),
    ] = 0

    sqlite_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=65536,
            le=1 << 50,
            description="Bytes that SQLite may hold over all files of the bus and the store before it takes pages from its caches again. By default its share of `budget_bytes`.",
            examples=[4194304],
        ),
    ] = 10 << 20

    def __post_init__(self) -> None:
        if 0 < self.budget_bytes < FLOOR:
            raise ValueError(
                f"expected budget_bytes of 0 or at least {FLOOR} bytes, which is what the caches need to work, got {self.budget_bytes}"
            )

    def bytes(self, here: Machine | None = None) -> int:
        """The budget in force."""
        return self.budget_bytes or max(_LEAST, min(_MOST, (here or machine()).memory // _SHARE))


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A cache's part of the budget. `weight`: 48ths. `setting`: dotted path; what is below `sinks.` is of the sinks of that type. `unit`: bytes for each one of the setting. `least`: smallest value that the setting gets."""

    weight: int
    setting: str
    unit: int = 1
    least: int = 1


SHARES: Final = {
    "judge": Share(weight=18, setting="processor.judge.cached_behaviours", unit=1152, least=1024),
    "sqlite": Share(weight=10, setting="memory.sqlite_bytes", least=2097152),
    "records": Share(weight=8, setting="bus.memory_bytes", unit=len(TOPICS), least=65536),
    "definitions": Share(weight=4, setting="sensor.rings.definitions_bytes", least=524288),
    "page": Share(weight=3, setting="page.kept_bytes", least=65536),
    "throttle": Share(weight=2, setting="processor.throttle.cached_bytes", least=65536),
    "names": Share(weight=2, setting="processor.names.cached_bytes", least=65536),
    "store": Share(weight=1, setting="sinks.store.cached_behaviours", unit=64, least=1024),
}
"""Cache: its share. Weights are what each held after floods and what a miss of it costs (docs/performance.md)."""


def shared(budget: int, given: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each cache of `SHARES`. `given`: bytes of those whose setting was made by hand; the others divide what is left by
    their weights, but none gets less than its least."""
    left = max(0, budget - sum(given.values()))
    weights = sum(share.weight for name, share in SHARES.items() if name not in given)
    return {
        name: given.get(name, max(left * share.weight // max(1, weights), share.least * share.unit))
        for name, share in SHARES.items()
    }


def fill_in(tree: dict[str, Any], here: Machine | None = None) -> None:
    """Put each cache's share into the settings tree where nobody set it. What is no table, no number or no budget there is left
    alone, for the check of all settings to refuse."""
    try:
        budget = msgspec.convert(tree.get("memory", {}), BudgetSettings).bytes(here)
    except msgspec.ValidationError:
        return
    given = {}
    for name, share in SHARES.items():
        for table, key in _places(tree, share.setting):
            if isinstance(value := table.get(key), int):
                given[name] = value * share.unit
    for name, size in shared(budget, given).items():
        for table, key in _places(tree, SHARES[name].setting, make=True):
            table.setdefault(key, size // SHARES[name].unit)


def _places(tree: dict[str, Any], setting: str, *, make: bool = False) -> list[tuple[dict[str, Any], str]]:
    """The tables that hold `setting`, and its key there. Only an embedded bus has memory of its own."""
    *path, key = setting.split(".")
    bus = tree.get("bus")
    if path[0] == "bus" and isinstance(bus, dict) and bus.get("type", "embedded") != "embedded":
        return []
    if path[0] == "sinks":
        sinks = tree.get("sinks")
        every = sinks if isinstance(sinks, list) else []
        return [(sink, key) for sink in every if isinstance(sink, dict) and sink.get("type") == path[1]]
    spot: Any = tree
    for step in path:
        spot = spot.setdefault(step, {}) if make and isinstance(spot, dict) else spot.get(step, {})
        if not isinstance(spot, dict):
            return []
    return [(spot, key)]


class MemoryStats(msgspec.Struct, kw_only=True):
    """What this process keeps in memory. `budget_bytes`: of all caches together; `used_bytes`, `allowed_bytes`: of each, as it counts
    them itself (`sqlite`: all that SQLite holds); `resident_bytes`: of the process; `given_back`: times that freed memory went back
    to the kernel."""

    budget_bytes: Gauge = 0
    used_bytes: Annotated[dict[str, int], msgspec.Meta(extra={"metric": "gauge"})] = {}
    allowed_bytes: Annotated[dict[str, int], msgspec.Meta(extra={"metric": "gauge"})] = {}
    resident_bytes: Gauge = 0
    given_back: int = 0


class ProcessMemory:
    """The caches of this process. `watch` each, `stats` any time, `await keep_low()` until cancelled. `settings`: all sections that
    the process reads."""

    def __init__(self, settings: Any) -> None:
        self._settings = settings
        self._used: dict[str, Callable[[], int]] = {}
        self._given_back = 0
        # For all of SQLite in this process: it takes pages from its caches again instead of asking for more.
        with contextlib.closing(sqlite3.connect(":memory:")) as db:
            db.execute(f"PRAGMA soft_heap_limit={settings.memory.sqlite_bytes}")
        if (used := _sqlite_used()) is not None:
            self.watch("sqlite", used)

    def watch(self, cache: str, used: Callable[[], int]) -> None:
        """`used()` bytes are held now by `cache`, a name of `SHARES`."""
        self._used[cache] = used

    def stats(self) -> MemoryStats:
        """As of now."""
        return MemoryStats(
            budget_bytes=self._settings.memory.bytes(),
            used_bytes={name: used() for name, used in self._used.items()},
            allowed_bytes={name: allowed(self._settings, name) for name in self._used},
            resident_bytes=_resident(),
            given_back=self._given_back,
        )

    async def keep_low(self) -> None:
        """Give back what is free in the allocator's arenas, soon after a flood."""
        while True:
            await asyncio.sleep(until_look())
            if free_bytes() >= _FREE:
                self._given_back += await asyncio.to_thread(give_back)


def allowed(settings: Any, cache: str) -> int:
    """Bytes that `cache` may take by the settings in force; 0 when it is not one of this process."""
    share = SHARES[cache]
    *path, key = share.setting.split(".")
    if path[0] == "sinks":
        found = [one for one in settings.sinks or () if one.__struct_config__.tag == path[1]]
        return sum(int(getattr(one, key)) * share.unit for one in found)
    spot = settings
    for step in path:
        spot = getattr(spot, step, None)
    return int(getattr(spot, key, 0)) * share.unit


def _sqlite_used() -> Callable[[], int] | None:
    """What asks SQLite for its memory in use; None where this interpreter's SQLite cannot be asked."""
    import _sqlite3

    try:
        used = ctypes.CDLL(_sqlite3.__file__).sqlite3_memory_used
    except (OSError, AttributeError):
        return None
    used.restype = ctypes.c_int64
    return lambda: int(used())


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
