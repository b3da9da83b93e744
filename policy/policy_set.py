# SPDX-License-Identifier: Apache-2.0
"""The policies of the bus as one process knows them: parsed, refused, deleted, compiled; and whether they are the whole set.

A damaged table, a record that cannot be read or a log that went back in time all look like policies that nobody wants any
more. They are told apart by what is left of them: a deletion leaves a tombstone, and the newest record of a whole set is
never older than the plans made of it. Pure. Neighbours: the planner (publishes no plan of a set that is not whole), the
processors (report it), `bus.follow` (gives the records).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Generic, TypeVar

from policy.documents import from_json
from schemas.enforcement import Plan
from schemas.errors import PolicyError, Refused
from schemas.policy import PolicyDocument
from schemas.policy_set_mark import PolicySetMark

R = TypeVar("R")
Row = tuple[bytes, bytes | None, int]
"""Key, value (None: deleted) and time in ms of a record of `policies`."""


class PolicySet(Generic[R]):
    """`documents`: in force, by key; a record that cannot be read leaves the document before it. `unread`: keys whose newest
    record is no policy. `deleted`: keys with a tombstone. `absent`: documents that the bus has no record of any more.
    `newest_ns`: Unix ns of the newest policy ever read. `mark`: of what the bus has, readable or not. `refuse` is called with each record's PolicyError."""

    def __init__(self, compiler: Callable[[list[PolicyDocument]], R], refuse: Callable[[Exception], None]) -> None:
        self._compiler = compiler
        self._refuse = refuse
        self._bus_ns = 0
        self._mark = PolicySetMark()
        self.documents: dict[bytes, PolicyDocument] = {}
        self.deleted: set[bytes] = set()
        self.unread: set[bytes] = set()
        self.absent: set[bytes] = set()
        self.newest_ns = 0

    def whole(self, rows: Iterable[Row], vanished: Collection[bytes]) -> bool:
        """Take everything the bus has, as `take` does; documents of `vanished` keys are kept as `absent`."""
        self._bus_ns = 0
        self._mark = PolicySetMark()
        changed = self.take(rows)
        self.absent |= self.documents.keys() & set(vanished)
        return changed

    def take(self, rows: Iterable[Row]) -> bool:
        """Take records in order; whether `documents` changed, or one that was absent is back."""
        changed = False
        for row in rows:
            changed = self._take(*row) or changed
        return changed

    def _take(self, key: bytes, value: bytes | None, timestamp_ms: int) -> bool:
        at = timestamp_ms * 1_000_000
        self._mark.take(key.decode("utf-8", "replace"), value)
        self._bus_ns = max(self._bus_ns, at)
        back = key in self.absent
        self.absent.discard(key)
        if value is None:
            self.deleted.add(key)
            self.unread.discard(key)
            self.newest_ns = max(self.newest_ns, at)
            return self.documents.pop(key, None) is not None
        known = self.documents.get(key)
        if known is None or known.raw != value:
            try:
                self.documents[key] = from_json(value)
            except PolicyError as error:
                # The one before it stays in force: no policy is worse than an old one.
                self.unread.add(key)
                self._refuse(error)
                return False
        elif not back:
            self.unread.discard(key)
            return False
        self.unread.discard(key)
        self.deleted.discard(key)
        self.newest_ns = max(self.newest_ns, at)
        return True

    def drop_absent(self) -> bool:
        """The bus is whole, so what is absent was deleted and its tombstone is gone as well; whether there was any."""
        changed = bool(self.absent)
        for key in self.absent:
            del self.documents[key]
        self.absent.clear()
        return changed

    @property
    def mark(self) -> str:
        """What tells this set from another."""
        return self._mark.text

    @property
    def went_back(self) -> bool:
        """Whether the bus's newest record is older than what was read before."""
        return self._bus_ns < self.newest_ns

    def compile(self) -> R:
        """The documents compiled. Raises Refused, whatever the compiler raised. May run in a thread while nothing is taken."""
        try:
            return self._compiler(list(self.documents.values()))
        except Exception as error:
            raise Refused(f"expected policies that can be compiled, got {type(error).__name__}: {error}") from error

    def lost(self, plan: Plan, *, on_bus: bool = False) -> str:
        """Why no plan may replace `plan`, as one sentence; "" when this set is whole for it. `on_bus`: by what the bus has, not
        by what is remembered of it."""
        there: Collection[bytes] = self.documents.keys()
        newest = self.newest_ns
        if on_bus:
            there = self.documents.keys() - self.absent - self.unread
            newest = self._bus_ns
        gone = [name for name in plan.policies if (key := name.encode()) not in there and key not in self.deleted]
        if gone:
            unread = [name for name in gone if name.encode() in self.unread]
            why = "cannot be read" if len(unread) == len(gone) else "are missing, and were not deleted"
            shown = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
            return f"policies of the plan in force {why}: {shown}; it stays in force. Apply them again, or `hauberk delete` them"
        # A set that is the plan's own lost nothing: the youngest record may have been a deletion that is swept by now.
        if newest < plan.created_ns and plan.policy_set != self.mark:
            return (
                "the policies on the bus are older than the plan in force, so records of them are lost; it stays in force. "
                "Apply all policies again"
            )
        return ""
