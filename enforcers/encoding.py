# SPDX-License-Identifier: Apache-2.0
"""The rules of a scope as entries of kernel maps, by all table backends of the node; equal rules are encoded once.

What each backend made is kept by backend, so that each is held and reported by itself; entries are joined by map, because
backends may share one. Neighbours: `contract` (who encodes), `tables` (who writes), `apply` (who asks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import msgspec

from enforcers.contract import Entries, TableBackend, TablePart
from enforcers.tables import table_id
from kernel.siphash import string_id
from schemas.backends import backend_name
from schemas.enforcement import Refusal, ScopePlan, encode
from schemas.errors import KernelError
from schemas.kernel import ScopeFlag
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

_HOLDING: Final = {
    Class.PROCESS: frozenset({Backend.BPF_LSM, Backend.APPARMOR, Backend.SIGNAL}),
    Class.FILE: frozenset({Backend.BPF_LSM, Backend.APPARMOR, Backend.SIGNAL}),
    Class.NETWORK: frozenset({Backend.BPF_LSM, Backend.APPARMOR, Backend.CGROUP}),
    Class.CAPABILITIES: frozenset({Backend.BPF_LSM, Backend.APPARMOR}),
}
"""Who says of a rule of the class that it is held, or refuses it."""
_READS: Final = {
    Backend.SIGNAL: frozenset({Class.PROCESS, Class.FILE}),
    Backend.CGROUP: frozenset({Class.NETWORK}),
}
"""Whose rules these read from a table that `bpf-lsm` writes too."""
_HIDDEN: Final = (
    "the table that it shares with `bpf-lsm` has exceptions by a pattern, or by a `fromSource` that is a directory or a pattern, which it "
    "cannot see and would stop"
)


class Encoded(msgspec.Struct, frozen=True):
    """A scope's rules. `table`: its name in the kernel; `entries`: map name -> entries; `parts`: what each backend made; `cells`:
    the machine of its patterns."""

    table: int
    entries: dict[str, Entries]
    parts: dict[Backend, TablePart]
    cells: bytes = b""

    @property
    def flags(self) -> ScopeFlag:
        """What the scope must have for the entries to act; 0 when there is nothing to enforce."""
        flags = ScopeFlag(0)
        for part in self.parts.values():
            flags |= part.flags
        return flags

    def holds(self, backend: Backend) -> bool:
        """Whether `backend` has anything to enforce."""
        return bool(self.parts[backend].flags)

    @property
    def refused(self) -> Iterable[Refusal]:
        """What no backend enforces, and what only in part."""
        carried = self.carried
        return (one for part in self.parts.values() for one in (*part.refused, *part.partial) if one.ref not in carried)

    @property
    def carried(self) -> frozenset[RuleRef]:
        """Rules that some backend enforces whole."""
        return frozenset[RuleRef]().union(*(part.carried for part in self.parts.values()))


class Encoder:
    """`key`: of the string ids of this load. Not for two threads at once."""

    def __init__(self, backends: Sequence[TableBackend], key: tuple[int, int]) -> None:
        self._backends = tuple(backends)
        self._key = key
        self._before: dict[bytes, Encoded] = {}
        self._now: dict[bytes, Encoded] = {}

    def begin(self) -> None:
        """A new plan: what the one before last asked for, and the last no longer did, is forgotten."""
        self._before, self._now = self._now, {}

    @property
    def made(self) -> Iterable[Encoded]:
        """What the plan in hand made, each once."""
        return self._now.values()

    def encode(self, scope: ScopePlan) -> Encoded:
        """Raises KernelError when backends disagree, and whatever a backend raises."""
        bare = msgspec.structs.replace(scope, uid="", cgroups=(), cgroup_path="", workload="", visibility=-1)
        same = hashlib.blake2b(encode(bare), digest_size=16).digest()
        found = self._now.get(same) or self._before.get(same) or self._encode(scope)
        self._now[same] = found
        return found

    def _encode(self, scope: ScopePlan) -> Encoded:
        ids: dict[str, int] = {}

        def ident(text: str) -> int:
            if text not in ids:
                ids[text] = string_id(self._key, text)
            return ids[text]

        parts: dict[Backend, TablePart] = {}
        given: dict[Backend, ScopePlan] = {}
        left = scope
        for one in self._backends:
            given[one.backend] = left
            part = parts[one.backend] = one.encode(left, ident)
            left = _without(left, part.whole)
        hidden = frozenset[Class]().union(*(part.hidden for part in parts.values()))
        for backend, reads in _READS.items():
            if backend in parts and parts[backend].flags and hidden & reads:
                parts[backend] = _blind(given[backend], parts[backend], backend)
        entries = joined(self._backends, parts)
        # Named by what the kernel will have, whichever backends it is for.
        cells = b"".join(part.cells for part in parts.values())
        return Encoded(table=table_id(entries, cells), entries=entries, parts=parts, cells=cells)


def _blind(scope: ScopePlan, part: TablePart, backend: Backend) -> TablePart:
    """`part` of `backend` where its table has rules whose exceptions it cannot see: none of it, with a refusal for each rule."""
    told = {one.ref for one in part.refused}
    rules = scope.network if backend is Backend.CGROUP else scope.paths
    denying = [rule.ref for rule in rules if rule.stops]
    denying += [
        RuleRef(DEFAULT_POSTURE)
        for class_, action in scope.posture
        if class_ in _READS[backend] and action is Action.BLOCK
    ]
    return TablePart(
        refused=(
            *part.refused,
            *(
                Refusal(ref=ref, uid=scope.uid, backend=backend, reason=_HIDDEN, code=RefusalCode.EXCEPTION)
                for ref in dict.fromkeys(denying)
                if ref not in told
            ),
        )
    )


def nobodys(scope: ScopePlan, used: Iterable[Backend]) -> Iterator[Refusal]:
    """Rules of `scope` of whose class none of the backends `used` holds anything: no backend would tell of them. Pure."""
    asked = frozenset(used)
    held = {class_ for class_, backends in _HOLDING.items() if asked & backends}
    denying = [(rule.cls, rule.ref) for rule in scope.paths if rule.stops]
    denying += [(Class.NETWORK, rule.ref) for rule in scope.network if rule.stops]
    denying += [(class_, RuleRef(DEFAULT_POSTURE)) for class_, action in scope.posture if action is Action.BLOCK]
    for class_, ref in dict.fromkeys(denying):
        if class_ in _HOLDING and class_ not in held:
            names = " or ".join(f"`{backend_name(one)}`" for one in sorted(_HOLDING[class_]))
            why = f"no backend that this node uses holds {class_.name.lower()} rules; {names} in `enforcement.backends` could"
            yield Refusal(ref=ref, uid=scope.uid, reason=why, code=RefusalCode.WRONG_CLASS)


def joined(backends: Iterable[TableBackend], parts: Mapping[Backend, TablePart]) -> dict[str, Entries]:
    """Map name -> the entries of all backends that use it. Raises KernelError when two give one key different values: which
    of them would be enforced must not depend on an order."""
    maps: dict[str, dict[bytes, bytes]] = {}
    owners: dict[tuple[str, bytes], Backend] = {}
    for one in backends:
        for name in one.maps:
            entries = maps.setdefault(name, {})
            for key, value in parts[one.backend].entries.get(name, ()):
                if entries.setdefault(key, value) != value:
                    both = f"`{backend_name(owners[name, key])}` and `{backend_name(one.backend)}`"
                    raise KernelError(
                        f"expected {both} to agree on what they write to map `{name}`, got two values for one key; leave "
                        "one of them out of `enforcement.backends`",
                        operation="encode",
                    )
                owners.setdefault((name, key), one.backend)
    return {name: tuple(entries.items()) for name, entries in maps.items()}


def _without(scope: ScopePlan, classes: frozenset[Class]) -> ScopePlan:
    """`scope` without the rules on processes and files that are held already."""
    if not classes:
        return scope
    return msgspec.structs.replace(
        scope,
        paths=tuple(rule for rule in scope.paths if rule.cls not in classes),
        posture=tuple(one for one in scope.posture if one[0] not in classes),
        whitelist=tuple(class_ for class_ in scope.whitelist if class_ not in classes),
    )
