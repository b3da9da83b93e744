# SPDX-License-Identifier: Apache-2.0
"""Hot. What never repeats is not worth a row of its own: of each workload so many names a minute, then one row a directory.

A build or a backup opens every file once. Each would be a row in the summaries and in every store behind them, and nobody would
ever look at it. So what a workload names beyond its budget of a minute is counted in the remainder of its directory: an entry
with the directory as `resource` and Access.UNTOLD, as the kernel leaves names out. Counts stay exact. Never left out:
what runs, what a rule speaks of, and what was stopped. Neighbours: `processors.summaries` (asks), `kernel/programs/budget.c`.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from processors.judge import JudgedBehaviour
from schemas.behaviour import NO_OWNER, Behaviour
from schemas.operations import Access, Operation

_MINUTES: Final = 4
"""Minutes that are remembered: frames of several nodes come at once, and some late."""
_WORKLOADS: Final = 4096
"""Workloads and minutes that are remembered; then all are forgotten, which gives out a budget once more."""
_LISTED: Final = 64
"""Bytes of an id in a set, its own included when nobody else holds it any more, and `_REMAINDER` of a remainder with its place (32
and 572 measured with tracemalloc, without what they refer to)."""
_REMAINDER: Final = 640
_UNTOLD: Final = int(Access.UNTOLD)
_bits: Final = int.__and__
_RUNS: Final = frozenset({Operation.EXEC, Operation.EXIT})

Key = tuple[str, int]
"""Workload's uid and minute."""


class NameSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much of what is new gets a row of its own in the summaries."""

    per_minute: Annotated[
        int,
        msgspec.Meta(
            ge=16,
            le=1 << 24,
            description="Behaviours of one workload that a minute's summaries list one by one; what is over is counted by directory, beyond as many again without one, and beyond twice as many by operation alone.",
            examples=[4096],
        ),
    ] = 4096
    cached_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=65536,
            le=1 << 40,
            description="Bytes that the names of workloads and minutes may take together; the oldest are forgotten then, which gives out a budget once more. By default a share of `memory.budget_bytes`.",
            examples=[2097152],
        ),
    ] = 2 << 20


class _Minute:
    """One workload's: ids that are listed, and the remainders."""

    __slots__ = ("listed", "remainders")

    def __init__(self) -> None:
        self.listed: set[int] = set()
        self.remainders: dict[_Place, JudgedBehaviour] = {}

    def remainder(self, judged: JudgedBehaviour, directory: str, most: int) -> JudgedBehaviour:
        """The remainder of `judged`: of its directory, beyond `most` without one, beyond twice as many of its operation alone."""
        known = self.remainders
        place = _place(judged.behaviour, directory)
        found = known.get(place)
        if found is None and len(known) >= most:
            directory = ""
            place = _place(judged.behaviour, "")
            found = known.get(place)
            if found is None and len(known) >= 2 * most:
                # Executables, parents, scripts and users without end: calls and results are few.
                bare = _bare(judged.behaviour)
                place = _place(bare, "")
                found = known.get(place)
                if found is None:
                    found = known[place] = _entry(judged, bare)
        if found is None:
            found = known[place] = _entry(judged, _shortened(judged.behaviour, directory))
        return found


class Names:
    """`entry(key, judged)` is what a summary lists it as. `left_out`: events counted in a remainder, since start; `held_bytes`: now."""

    def __init__(self, settings: NameSettings | None = None) -> None:
        settings = settings or NameSettings()
        self._most, self._room = settings.per_minute, settings.cached_bytes
        self._minutes: dict[Key, _Minute] = {}
        self._newest = 0
        self.held_bytes = 0
        self.left_out = 0

    def entry(self, key: Key, judged: JudgedBehaviour, count: int, name: str = "") -> JudgedBehaviour:
        """`judged` itself while the budget lasts, else the remainder that its `count` events belong to. `name`: what its address is called; each
        takes from the budget."""
        minute = self._minutes.get(key)
        if minute is None:
            minute = self._begin(key)
        listed, ident = minute.listed, judged.raw.id if not name else hash((judged.raw.id, name))
        if ident in listed:
            return judged
        if _bits(judged.raw.access, _UNTOLD):
            # A remainder already: the kernel's, of a directory or of a whole container.
            self.left_out += count if judged.raw.resource else 0
            return judged
        if len(listed) < self._most:
            listed.add(ident)
            self._grow(_LISTED)
            return judged
        behaviour, verdict = judged.behaviour, judged.verdict
        if behaviour.operation in _RUNS or behaviour.enforcer or verdict.rule is not None or verdict.policy is not None:
            return judged
        self.left_out += count
        resource = behaviour.resource
        before = len(minute.remainders)
        found = minute.remainder(judged, resource[: resource.rfind("/") + 1], self._most)
        if len(minute.remainders) != before:
            self._grow(_REMAINDER)
        return found

    def _grow(self, size: int) -> None:
        self.held_bytes += size
        while self.held_bytes > self._room and self._minutes:
            self._drop(next(iter(self._minutes)))

    def _drop(self, key: Key) -> None:
        minute = self._minutes.pop(key)
        self.held_bytes -= len(minute.listed) * _LISTED + len(minute.remainders) * _REMAINDER

    def _begin(self, key: Key) -> _Minute:
        if key[1] > self._newest:
            self._newest = key[1]
            for old in [old for old in self._minutes if old[1] <= key[1] - _MINUTES]:
                self._drop(old)
        if len(self._minutes) >= _WORKLOADS:
            self._minutes.clear()
            self.held_bytes = 0
        minute = self._minutes[key] = _Minute()
        return minute


_Place = tuple[int, int, int, int, bool, int, int, int, int, str, str, str, str]


def _place(behaviour: Behaviour, directory: str) -> _Place:
    # What `_shortened` keeps. Plain numbers: an enum's hash is a Python function.
    return (
        int(behaviour.operation), int(behaviour.access), behaviour.result, behaviour.uid, behaviour.tty, behaviour.syscall,
        behaviour.family, behaviour.socket_type, behaviour.protocol, behaviour.executable, behaviour.parent, behaviour.script, directory,
    )  # fmt: skip


def _shortened(behaviour: Behaviour, directory: str) -> Behaviour:
    return Behaviour(
        operation=behaviour.operation,
        access=Access(int(behaviour.access) | _UNTOLD),
        result=behaviour.result,
        uid=behaviour.uid,
        owner=NO_OWNER,
        tty=behaviour.tty,
        executable=behaviour.executable,
        parent=behaviour.parent,
        resource=directory,
        syscall=behaviour.syscall,
        syscall_name=behaviour.syscall_name,
        # Of which kind a socket was is no name: without it, it is not known whether a rule was needed.
        family=behaviour.family,
        socket_type=behaviour.socket_type,
        protocol=behaviour.protocol,
        script=behaviour.script,
    )


def _bare(behaviour: Behaviour) -> Behaviour:
    # As the kernel does it when a container makes too many even of what it shed.
    return Behaviour(
        operation=behaviour.operation,
        access=Access.UNTOLD,
        result=behaviour.result,
        uid=NO_OWNER,
        owner=NO_OWNER,
        syscall=behaviour.syscall,
        syscall_name=behaviour.syscall_name,
    )


def _entry(judged: JudgedBehaviour, behaviour: Behaviour) -> JudgedBehaviour:
    found = JudgedBehaviour()
    found.behaviour = found.raw = found.plain = behaviour
    for name in ("identity", "outcome", "verdict"):
        setattr(found, name, getattr(judged, name))
    return found
