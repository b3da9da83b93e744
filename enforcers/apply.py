# SPDX-License-Identifier: Apache-2.0
"""The node's side: a plan becomes what the kernel enforces, by the difference, and a receipt says what is in force.

    widen the host's visibility -> encode -> fill new tables -> hold cgroups -> switch scopes
        -> release what is no longer wanted -> narrow the host's visibility -> retire old tables

At no point of this order is a container without the old rules or the new ones, or unseen in a class that both plans watch. Maps, programs and links are pinned: they hold
on while the agent is away. The last plan is on disk and is carried out at start without the bus. It must never enforce in
the root cgroup or in its own. Neighbours: `tables`, `registry`, `planner` (who makes plans), `agent` (who runs this).
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import msgspec

from enforcers.cgroup import ROOT_CGROUP, cgroup2_mount
from enforcers.contract import Enforcer, Entries
from enforcers.registry import DEFAULTS, Name, usable
from enforcers.tables import Tables, scope_exists, table_id
from kernel.loading import existing
from kernel.siphash import string_id
from schemas.enforcement import Plan, Receipt, Refusal, ScopePlan, encode
from schemas.errors import HauberkError, KernelError
from schemas.kernel import ScopeFlag

log = logging.getLogger(__name__)

GRACE: Final = 0.2
"""Seconds an old table outlives its switch: a program that read the scope before ends in microseconds; by feel, ample."""


class Encoded(msgspec.Struct, frozen=True):
    """A scope's rules for all backends. `parts`: map name -> entries; `flags`: per map, so that each can be held alone."""

    table: int
    parts: dict[str, Entries]
    flags: ScopeFlag
    held: tuple[str, ...]
    rules: int
    refused: tuple[Refusal, ...]
    late: tuple[Refusal, ...]


class Applier:
    """Carries plans out on the pins under `pin_dir`. Not for two threads at once. `writes`: kernel map writes so far."""

    def __init__(
        self,
        pin_dir: str,
        node: str,
        backends: Sequence[Name] = DEFAULTS,
        grace: float = GRACE,
        *,
        closed: bool = True,
        rings: bool = True,
    ) -> None:
        self.node = node
        self._mount = cgroup2_mount()
        self._own = _own_cgroup(self._mount)
        loaded = existing(pin_dir)
        self._enforcers: list[Enforcer] = []
        self._tables: Tables | None = None
        self._encoded: dict[bytes, Encoded] = {}
        if loaded is None:
            self.problems: tuple[str, ...] = (
                f"nothing is enforced: no programs are pinned under {pin_dir}; start the sensor first",
            )
            return
        self._key = loaded.key
        self._enforcers, problems = usable(backends, pin_dir, closed=closed, rings=rings)
        self.problems = tuple(problems)
        # Visibility needs no backend.
        self._tables = Tables(pin_dir, self._enforcers, grace)
        if not self._enforcers:
            self.problems = ("nothing is enforced: no backend works here", *self.problems)

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
        failed: list[str] = [*self.problems, *([plan.held] if plan.held else [])]
        refused = dict.fromkeys(plan.refused)
        late: dict[Refusal, None] = {}
        rules = scopes = 0
        if self._tables is not None:
            wanted, encoded = self._wanted(plan, failed)
            for one in encoded:
                refused.update(dict.fromkeys(one.refused))
                late.update(dict.fromkeys(one.late))
            self._tables.widen(plan.host_visibility, plan.new_visibility)
            scopes, rules = self._carry_out(wanted, self._tables, failed)
            self._tables.narrow(plan.host_visibility, plan.new_visibility, plan.host_cgroups)
        return Receipt(
            node=self.node, generation=plan.generation, digest=plan.digest, applied_ns=time.time_ns(),
            took_ms=(time.monotonic() - started) * 1000, backends=tuple(one.backend for one in self._enforcers),
            scopes=scopes, rules=rules, refused=_once(refused), failed=tuple(failed), late=_once(late),
        )  # fmt: skip

    def sweep(self) -> float | None:
        """Delete old tables whose grace is over; seconds until the next, None when there is none."""
        return self._tables.sweep() if self._tables else None

    def clear(self) -> None:
        """Take every cgroup from under enforcement and empty the tables, at once."""
        if self._tables is None:
            return
        self.apply(Plan(node=self.node, generation=0, digest="", scopes=()))
        self._tables.sweep(everything=True)

    def close(self) -> None:
        """Let go of the maps. What is in force stays in force."""
        if self._tables is not None:
            self._tables.close()
            self._tables = None

    def _wanted(
        self, plan: Plan, failed: list[str]
    ) -> tuple[list[tuple[ScopePlan, Encoded | None]], list[Encoded]]:  # fmt: skip
        # Equal rules are encoded once, and what no plan asks for any more is forgotten. None: they could not be.
        kept: dict[bytes, Encoded] = {}
        wanted: list[tuple[ScopePlan, Encoded | None]] = []
        for scope in plan.scopes:
            bare = msgspec.structs.replace(scope, uid="", cgroups=(), cgroup_path="", workload="", visibility=-1)
            key = hashlib.blake2b(encode(bare), digest_size=16).digest()
            if key not in kept:
                try:
                    kept[key] = self._encoded.get(key) or self._encode(scope)
                except Exception as error:  # noqa: BLE001 - it is this scope's, whatever it is
                    failed.append(f"{scope.workload or scope.cgroup_path}: {_why(error)}")
            wanted.append((scope, kept.get(key)))
        self._encoded = kept
        return wanted, list(kept.values())

    def _encode(self, scope: ScopePlan) -> Encoded:
        ids: dict[str, int] = {}

        def ident(text: str) -> int:
            if text not in ids:
                ids[text] = string_id(self._key, text)
            return ids[text]

        parts = {one.map_name: one.encode(scope, ident) for one in self._enforcers}
        entries = {name: part.entries for name, part in parts.items()}
        flags = ScopeFlag(0)
        for part in parts.values():
            flags |= part.flags
        return Encoded(
            table=table_id(entries),
            parts=entries,
            flags=flags,
            held=tuple(name for name, part in parts.items() if part.flags),
            rules=sum(part.rules for part in parts.values()),
            refused=tuple(refusal for part in parts.values() for refusal in part.refused),
            late=tuple(one for part in parts.values() for one in part.late),
        )

    def _carry_out(
        self, wanted: list[tuple[ScopePlan, Encoded | None]], tables: Tables, failed: list[str]
    ) -> tuple[int, int]:  # fmt: skip
        before, claimed = tables.enforced(), tables.claimed()
        after: dict[int, int] = {}
        held: dict[str, set[int]] = {one.map_name: set() for one in self._enforcers}
        enforced = rules = 0
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
                    tables.fill(table, encoded.parts)
                    for one in self._enforcers:
                        if one.map_name in encoded.held:
                            one.hold(cgroup, scope.cgroup_path)
                            held[one.map_name].add(cgroup)
                tables.switch(cgroup, table, flags, scope.visibility)
            except Exception as error:  # noqa: BLE001
                # What was in force before stays in force: an old table is better than none. Whatever the error is: it is this
                # scope's, and no other's rules hang on it.
                failed.append(f"{who}: {_why(error)}")
                if cgroup in before or cgroup in claimed:
                    after[cgroup] = (tables.in_force(cgroup) or (0,))[0]
                if cgroup in before:
                    enforced += 1
                    for one in self._enforcers:
                        held[one.map_name].add(cgroup)
                continue
            after[cgroup] = table
            if ruled and encoded is not None:
                enforced += 1
                rules += encoded.rules
        for cgroup in (before.keys() | claimed) - after.keys():
            self._alone(partial(tables.release, cgroup), f"cgroup {cgroup}", failed)
        for one in self._enforcers:
            for cgroup in one.held() - held[one.map_name]:
                self._alone(partial(one.release, cgroup), f"cgroup {cgroup}", failed)
        tables.retire(set(after.values()))
        return enforced, rules

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


def _once(refused: dict[Refusal, None]) -> tuple[Refusal, ...]:
    told: dict[tuple[object, ...], Refusal] = {}
    for one in refused:
        told.setdefault((one.ref, one.reason), one)
    return tuple(told.values())
