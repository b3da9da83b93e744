# SPDX-License-Identifier: Apache-2.0
"""What an enforcement backend owes the applier: read this first.

Two contracts. A *table backend* turns the rules of a scope into entries of a BPF map, and `tables` switches the scope to them
with one write. A *profile backend* turns them into the text of a profile of a security module (AppArmor), and `profiles`
replaces the profile whole. Both say whether this node can use them; neither decides what the rules are (`plan` does) nor
when anything is switched. Backends are keyed by `Backend`, never by map: two may share one. Neighbours: `cgroup` and `signal`
are table backends, `registry` lists all, `apply` drives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from schemas.enforcement import Refusal, ScopePlan
from schemas.kernel import ScopeFlag
from schemas.operations import Backend, Class
from schemas.verdict import RuleRef

Ident = Callable[[str], int]
"""A path's string id under the key of this load."""

Entries = tuple[tuple[bytes, bytes], ...]
"""Keys, with table id 0, and values of one map."""


class TablePart(msgspec.Struct, frozen=True, kw_only=True):
    """A table backend's share of a scope. `entries`: map name -> entries. `flags`: what the scope must have for them to
    act; 0 when there is nothing to enforce. `rules`: how many rules of the plan are in `entries`. `partial`: those of them of
    which a part is not enforced. `carried`: those that it enforces whole, whatever another backend leaves of them. `whole`:
    classes of which nothing is left for backends after it. `cells`: the machines of the patterns and of the sources (`enforcers.machines`,
    `actors`); one backend of a node at most makes some. `hidden`: classes in which some of its exceptions are none to another backend
    that reads the same map."""

    entries: Mapping[str, Entries] = {}
    flags: ScopeFlag = ScopeFlag(0)
    rules: int = 0
    refused: tuple[Refusal, ...] = ()
    partial: tuple[Refusal, ...] = ()
    carried: frozenset[RuleRef] = frozenset()
    whole: frozenset[Class] = frozenset()
    cells: bytes = b""
    hidden: frozenset[Class] = frozenset()


class ProfilePart(msgspec.Struct, frozen=True, kw_only=True):
    """A profile backend's share of a scope. `text`: the profile's body, "" when there is nothing to enforce; equal rules give
    equal text. `carried`: the rules in it."""

    text: str = ""
    carried: frozenset[RuleRef] = frozenset()
    refused: tuple[Refusal, ...] = ()
    partial: tuple[Refusal, ...] = ()


class TableBackend(Protocol):
    """A backend whose programs read rules from a BPF map. Not for two threads at once."""

    @property
    def backend(self) -> Backend: ...

    @property
    def maps(self) -> Mapping[str, int]:
        """The maps its entries go to -> where the table id stands in their keys. Backends that share a map give equal values for
        equal keys, or the scope keeps what it had."""
        ...

    @property
    def enforces(self) -> ScopeFlag:
        """The flag that puts a scope under this backend and no other."""
        ...

    def unusable(self) -> str:
        """Why this node cannot use the backend, as one sentence; "" when it can."""
        ...

    def encode(self, scope: ScopePlan, ident: Ident) -> TablePart:
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


class Everywhere:
    """The half of a table backend whose programs see every cgroup: the flags of a scope put it under the backend, nothing else."""

    def hold(self, cgroup: int, path: str) -> None:
        return

    def release(self, cgroup: int) -> None:
        return

    def held(self) -> set[int]:
        return set()


class ProfileBackend(Protocol):
    """A backend that writes profiles. A workload is started under a profile by its runtime; here only the rules in it change.
    Not for two threads at once."""

    @property
    def backend(self) -> Backend: ...

    def unusable(self) -> str:
        """Why this node cannot use the backend, as one sentence; "" when it can."""
        ...

    def render(self, scope: ScopePlan) -> ProfilePart:
        """The rules of `scope` that this backend carries. Pure."""
        ...

    def profile(self, scope: ScopePlan) -> str | None:
        """Name of the profile that the processes of `scope` run under and that this backend may replace; "" for none. None when there
        are no processes: the next one may run under any."""
        ...

    def load(self, profile: str, text: str) -> None:
        """Replace `profile` whole: every operation meets the old rules or the new ones. Twice is once. Raises KernelError, and
        then the old one is in force."""
        ...

    def release(self, profile: str) -> None:
        """Let `profile` allow everything again; processes stay under it. One that is not loaded is no error."""
        ...

    def loaded(self) -> Mapping[str, str]:
        """Profiles with rules of this backend that the kernel has now, loaded by this process or one before it: name ->
        `profiles.fingerprint` of the text."""
        ...
