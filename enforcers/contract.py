# SPDX-License-Identifier: Apache-2.0
"""What an enforcement backend owes the applier: read this first.

A backend says whether this node can carry it, turns the rules of one scope into map entries (`encode`, pure), and holds or
releases a cgroup. It never decides what the rules are (`plan` does) nor when tables are switched (`tables` does).
Neighbours: `cgroup` and `signal` keep the promise, `registry` lists them, `apply` drives them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from schemas.enforcement import Refusal, ScopePlan
from schemas.kernel import ScopeFlag
from schemas.operations import Backend

Ident = Callable[[str], int]
"""A path's string id under the key of this load."""


Entries = tuple[tuple[bytes, bytes], ...]
"""Keys, with table id 0, and values of one map."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """One backend's share of a scope. `entries` go to the map named by `Enforcer.map_name`. `flags`: what the scope must say for them to act; 0 when there is nothing to enforce.
    `rules`: how many rules of the plan are in `entries`."""

    entries: Entries = ()
    flags: ScopeFlag = ScopeFlag(0)
    rules: int = 0
    refused: tuple[Refusal, ...] = ()
    late: tuple[Refusal, ...] = ()
    """Rules in `entries` of which a part is answered only after it has happened."""


class Enforcer(Protocol):
    """One way of saying no. Not for two threads at once."""

    @property
    def backend(self) -> Backend: ...

    @property
    def map_name(self) -> str:
        """The map its entries go to; `table_offset` is where the table id stands in its keys."""
        ...

    @property
    def table_offset(self) -> int: ...

    def unusable(self) -> str:
        """Why this node cannot carry the backend, as one sentence; "" when it can."""
        ...

    def encode(self, scope: ScopePlan, ident: Ident) -> Part:
        """The rules of `scope` that this backend carries. Pure."""
        ...

    def hold(self, cgroup: int, path: str) -> None:
        """See to it that the cgroup with this id, at `path` in the cgroup2 tree, is under the backend. Twice is once.
        Raises KernelError."""
        ...

    def release(self, cgroup: int) -> None:
        """Undo `hold`; a cgroup that is not held or gone is no error."""
        ...

    def held(self) -> set[int]:
        """Ids of cgroups that are held now, by this process or one before it."""
        ...
