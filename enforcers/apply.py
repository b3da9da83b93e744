# SPDX-License-Identifier: Apache-2.0
"""The node's side: a plan becomes what the kernel enforces, by the difference, and a receipt says what is in force.

    widen the host's visibility -> encode -> fill new tables -> hold cgroups -> switch scopes
        -> release what is no longer wanted -> narrow the host's visibility -> retire old tables

At no point of this order is a container without the old rules or the new ones, or unseen in a class that both plans watch. Maps, programs and links are pinned: they hold
on while the agent is away. The last plan is on disk and is carried out at start without the bus. It must never enforce in
the root cgroup or in its own. Neighbours: `tables`, `registry`, `planner` (who makes plans), `agent` (who runs this).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

import msgspec

from enforcers import profiles
from enforcers.apparmor import AppArmorEnforcer
from enforcers.cgroup import ROOT_CGROUP, cgroup2_mount
from enforcers.encoding import Encoded, Encoder, nobodys
from enforcers.registry import Usable, usable
from enforcers.tables import KernelTables, scope_exists
from kernel.loading import existing
from kernel.maps import Map
from schemas.backends import DEFAULTS, Implemented, Module, backend_name
from schemas.enforcement import InForce, Plan, Receipt, Refusal, ScopePlan
from schemas.errors import HauberkError, KernelError
from schemas.kernel import ScopeFlag
from schemas.lsm import HookCount
from schemas.operations import Backend
from schemas.verdict import RuleRef

log = logging.getLogger(__name__)

GRACE: Final = 0.2
"""Seconds an old table outlives its switch: a program that read the scope before ends in microseconds; by feel, ample."""


class Outcome(msgspec.Struct):
    """What came of a plan. `scopes`: cgroups under enforcement; `by_backend`: scopes and rules of each."""

    failed: list[str]
    refused: dict[Refusal, None]
    by_backend: dict[Backend, tuple[int, int]]
    scopes: set[int] = msgspec.field(default_factory=set)

    def add(self, backend: Backend, scopes: int, rules: int) -> None:
        """Count what `backend` enforces more."""
        before = self.by_backend.get(backend, (0, 0))
        self.by_backend[backend] = (before[0] + scopes, before[1] + rules)


class Applier:
    """Carries plans out on the pins under `pin_dir`. `loaded`: profiles to have from the start. Not for two threads at once. `writes`: kernel map writes so far. `chosen`:
    backends made elsewhere, in the place of those that `backends` names."""

    def __init__(
        self,
        pin_dir: str,
        node: str,
        backends: Sequence[Implemented] = DEFAULTS,
        grace: float = GRACE,
        *,
        closed: bool = True,
        rings: bool = True,
        mounts: bool = True,
        loaded: Sequence[str] = (),
        lsm: Sequence[Module] = (),
        shadow: bool = False,
        chosen: Usable | None = None,
    ) -> None:
        self.node = node
        self._mount = cgroup2_mount()
        self._own = _own_cgroup(self._mount)
        pinned = existing(pin_dir)
        self._tables: KernelTables | None = None
        self._counts = Map.open(f"{pin_dir}/maps/lsm_counts") if os.path.exists(f"{pin_dir}/maps/lsm_counts") else None
        if chosen is None:
            chosen = usable(
                backends, pin_dir, closed=closed, rings=rings, mounts=mounts, shadow=shadow, loaded=loaded, lsm=lsm
            )  # fmt: skip
        problems = [f"{backend_name(one)}: {why}" for one, why in chosen.problems]
        if pinned is None:
            why = f"no programs are pinned under {pin_dir}; start the sensor first"
            unpinned = tuple((one.backend, why) for one in chosen.tables)
            chosen = Usable((), chosen.profiles, (*chosen.problems, *unpinned), chosen.passed)
            problems = [why]
        else:
            self._encoder = Encoder(chosen.tables, pinned.key)
            # Visibility needs no backend.
            self._tables = KernelTables(pin_dir, chosen.tables, grace)
        self._backends = chosen
        if not self.usable:
            problems[:1] = [f"nothing is enforced: {'; '.join(problems[:1]) or 'the settings name no backend'}"]
        self.problems = tuple(problems)

    @property
    def usable(self) -> bool:
        """Whether this node can use any backend."""
        return bool(self._backends.tables or self._backends.profiles)

    @property
    def profiled(self) -> Mapping[str, Iterable[str]] | None:
        """Profile of AppArmor -> uids of the scopes under it; None where that backend is not used."""
        return next((one.under for one in self._backends.profiles if isinstance(one, AppArmorEnforcer)), None)

    @property
    def writes(self) -> int:
        """Entries and scopes written or deleted in kernel maps since start."""
        return self._tables.writes if self._tables else 0

    @property
    def enforced(self) -> dict[int, tuple[int, ScopeFlag]]:
        """cgroup id -> table and flags, as the kernel has them."""
        return self._tables.enforced() if self._tables else {}

    def apply(self, plan: Plan) -> Receipt:
        """Make `plan` what is in force. Errors of single scopes are in the receipt; the rest goes on."""
        started = time.monotonic()
        done = Outcome(
            failed=[*self.problems, *([plan.held] if plan.held else [])],
            refused=dict.fromkeys((*plan.refused, *plan.partial)),
            by_backend=dict.fromkeys(self._used(), (0, 0)),
        )
        if self._tables is not None:
            wanted = self._encode(plan, done)
            self._tables.widen(plan.host_visibility, plan.new_visibility)
            self._carry_out(wanted, self._tables, done)
            self._tables.narrow(plan.host_visibility, plan.new_visibility, plan.host_cgroups)
        else:
            for scope in plan.scopes:
                done.refused.update(dict.fromkeys(nobodys(scope, self._used())))
        for backend in self._backends.profiles:
            living = [scope for scope in plan.scopes if self._living(scope) and scope.cgroups[0] != self._own]
            self._by_profiles(partial(profiles.carry_out, backend, living, _why), backend.backend, done)
        refused, in_part = _once(done.refused)
        return Receipt(
            node=self.node, generation=plan.generation, digest=plan.digest, applied_ns=time.time_ns(),
            took_ms=(time.monotonic() - started) * 1000, backends=tuple(done.by_backend), scopes=len(done.scopes),
            rules=sum(rules for _, rules in done.by_backend.values()), refused=refused, failed=tuple(done.failed),
            partial=in_part, in_force=self._in_force(done),
        )  # fmt: skip

    def hook_counts(self) -> Mapping[HookCount, int]:
        """What the LSM hooks did since they were loaded; nothing without them."""
        if self._counts is None:
            return {}
        counts = self._counts
        return {which: counts.sum_u64(which.to_bytes(4, "little")) for which in HookCount}

    def sweep(self) -> float | None:
        """Delete old tables whose grace is over; seconds until the next, None when there is none."""
        return self._tables.sweep() if self._tables else None

    def clear(self) -> None:
        """Take every cgroup from under enforcement and empty the tables, at once."""
        self.apply(Plan(node=self.node, generation=0, digest="", scopes=()))
        if self._tables is not None:
            self._tables.sweep(everything=True)

    def close(self) -> None:
        """Let go of the maps. What is in force stays in force."""
        if self._tables is not None:
            self._tables.close()
            self._tables = None
        if self._counts is not None:
            self._counts.close()
            self._counts = None

    def _used(self) -> list[Backend]:
        return [one.backend for one in self._backends.tables] + [one.backend for one in self._backends.profiles]

    def _in_force(self, done: Outcome) -> tuple[InForce, ...]:
        used = [InForce(backend=one, scopes=scopes, rules=rules) for one, (scopes, rules) in done.by_backend.items()]
        others = (*self._backends.passed, *self._backends.problems)
        return (*used, *(InForce(backend=one, problem=why) for one, why in others))

    def _encode(self, plan: Plan, done: Outcome) -> list[tuple[ScopePlan, Encoded | None]]:
        # None: its rules could not be encoded.
        self._encoder.begin()
        wanted: list[tuple[ScopePlan, Encoded | None]] = []
        for scope in plan.scopes:
            encoded = None
            try:
                encoded = self._encoder.encode(scope)
            except Exception as error:  # noqa: BLE001 - it is this scope's, whatever it is
                done.failed.append(f"{scope.workload or scope.cgroup_path}: {_why(error)}")
            wanted.append((scope, encoded))
            done.refused.update(dict.fromkeys(nobodys(scope, self._used())))
        for one in self._encoder.made:
            done.refused.update(dict.fromkeys(one.refused))
        # What the plan says that a backend leaves of a rule, another may hold.
        whole = frozenset[RuleRef]().union(*(one.carried for one in self._encoder.made))
        done.refused = {one: None for one in done.refused if not (one.code.partial and one.ref in whole)}
        return wanted

    def _carry_out(self, wanted: list[tuple[ScopePlan, Encoded | None]], tables: KernelTables, done: Outcome) -> None:
        before, claimed = tables.enforced(), tables.claimed()
        after: dict[int, int] = {}
        held: dict[Backend, set[int]] = {one.backend: set() for one in self._backends.tables}
        for scope, encoded in wanted:
            if not self._living(scope):
                continue
            cgroup = scope.cgroups[0]
            # This agent may be watched like anybody, but it never holds itself.
            ruled = encoded is not None and bool(encoded.flags) and cgroup != self._own
            if encoded is not None and not ruled and scope.visibility < 0:
                continue
            who = scope.workload or scope.cgroup_path
            try:
                if encoded is None:
                    raise KernelError("its rules could not be encoded; what was in force stays", operation="encode")
                table, flags = (encoded.table, encoded.flags) if ruled else (0, ScopeFlag(0))
                if ruled:
                    tables.fill(table, encoded.entries, encoded.cells)
                    for one in self._backends.tables:
                        if encoded.holds(one.backend):
                            one.hold(cgroup, scope.cgroup_path)
                            held[one.backend].add(cgroup)
                tables.switch(cgroup, table, flags, scope.visibility)
            except Exception as error:  # noqa: BLE001
                # What was in force before stays in force: an old table is better than none. Whatever the error is: it is this
                # scope's, and no other's rules hang on it.
                done.failed.append(f"{who}: {_why(error)}")
                if cgroup in before or cgroup in claimed:
                    after[cgroup] = (tables.in_force(cgroup) or (0,))[0]
                if cgroup in before:
                    done.scopes.add(cgroup)
                    for one in self._backends.tables:
                        held[one.backend].add(cgroup)
                        # How many of its old rules those are is not known any more.
                        done.add(one.backend, int(bool(before[cgroup][1] & one.enforces)), 0)
                continue
            after[cgroup] = table
            if ruled and encoded is not None:
                done.scopes.add(cgroup)
                for one in self._backends.tables:
                    if encoded.holds(one.backend):
                        done.add(one.backend, 1, encoded.parts[one.backend].rules)
        for cgroup in (before.keys() | claimed) - after.keys():
            self._alone(partial(tables.release, cgroup), f"cgroup {cgroup}", done.failed)
        for one in self._backends.tables:
            for cgroup in one.held() - held[one.backend]:
                self._alone(partial(one.release, cgroup), f"cgroup {cgroup}", done.failed)
        tables.retire(set(after.values()))

    @staticmethod
    def _by_profiles(work: Callable[[], profiles.Carried], backend: Backend, done: Outcome) -> None:
        try:
            carried = work()
        except Exception as error:  # noqa: BLE001 - other backends have carried the plan out
            done.failed.append(f"{backend_name(backend)}: {_why(error)}; what it had in force stays")
            return
        done.scopes |= carried.scopes
        done.refused.update(dict.fromkeys(carried.refused))
        done.failed += carried.failed
        done.add(backend, len(carried.scopes), carried.rules)

    @staticmethod
    def _alone(work: Callable[[], None], who: str, failed: list[str]) -> None:
        """What fails here is told and nobody else's affair."""
        try:
            work()
        except Exception as error:  # noqa: BLE001
            failed.append(f"{who}: {_why(error)}")

    def _living(self, scope: ScopePlan) -> bool:
        """Whether the scope's cgroup is there and is not the root."""
        if not scope.cgroups or scope.cgroups[0] in (0, ROOT_CGROUP):
            return False
        return scope_exists(self._mount, scope.cgroup_path, scope.cgroups[0])


def _why(error: Exception) -> str:
    if isinstance(error, HauberkError | OSError):
        return str(error)
    log.error("a bug in Hauberk in one scope", exc_info=error)
    return f"{type(error).__name__}: {error}"


def _own_cgroup(mount: str) -> int:
    with open("/proc/self/cgroup", encoding="utf-8") as file:
        path = next((line[3:].rstrip("\n") for line in file if line.startswith("0::")), "")
    try:
        return os.stat(mount + path).st_ino
    except OSError:
        return 0


def _once(refusals: Iterable[Refusal]) -> tuple[tuple[Refusal, ...], tuple[Refusal, ...]]:
    """Each rule and reason once: what is not enforced, and what is enforced in part."""
    told: dict[tuple[object, ...], Refusal] = {}
    for one in refusals:
        told.setdefault((one.ref, one.reason), one)
    return tuple(one for one in told.values() if not one.code.partial), tuple(
        one for one in told.values() if one.code.partial
    )
