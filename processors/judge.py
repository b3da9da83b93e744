# SPDX-License-Identifier: Apache-2.0
"""Hot: count the ids of a frame, look each distinct one up, judge only those that no cache knows (ARCHITECTURE.md).

Per event nothing runs but `Counter` over the id column. An id means one behaviour for one (node, boot, run); a kernel that
starts anew gets a cache of its own. A cached answer is good for one (policies, identities) epoch; when only identities
moved it is kept if the behaviour's owner is still the same object. Neighbours: `processors.decode`, `processors.inventory`,
`policy.ruleset` (through the protocols here), `processors.engine` (the caller).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Annotated, Final, Protocol

import msgspec

from processors.alert_action import SILENT, AlertAction, outcome
from processors.decode import DecodedDefinitions, leading_cgroups, tellable_behaviour
from processors.inventory import Inventory
from schemas.behaviour import Behaviour
from schemas.frame import FOLDED, Frame, FrameHeader
from schemas.identity import Identity
from schemas.kernel import RING_HEADER, STRIDE
from schemas.operations import Class, Operation, class_of
from schemas.telemetry import ProcessContext
from schemas.verdict import Verdict

_STEP: Final = STRIDE // 8
_ID: Final = RING_HEADER // 8
_TIME: Final = _ID + 1
_SCOPES: Final = 8192
"""Identities whose scope is at hand without asking the ruleset."""


class CompiledScope(Protocol):
    """What the policies say for one identity."""

    @property
    def visible(self) -> frozenset[Class]: ...

    @property
    def dns_visible(self) -> bool: ...

    def judge(self, behaviour: Behaviour, arguments: tuple[str, ...] | None = None) -> Verdict: ...

    def free(self, directory: str) -> bool: ...


class CompiledPolicies(Protocol):
    """Compiled policies."""

    def scope(self, identity: Identity) -> CompiledScope: ...


class JudgeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Size of the judge's cache."""

    cached_behaviours: Annotated[
        int,
        msgspec.Meta(
            ge=2,
            le=1 << 26,
            description="Judged behaviours kept, over all nodes; about 1.1 KiB each. By default a share of `memory.budget_bytes`.",
            examples=[131072],
        ),
    ] = 16384


class JudgedBehaviour:
    """An enriched behaviour and its verdict. `raw` is what is judged, `behaviour` what may be written down."""

    __slots__ = (
        "behaviour", "identity", "log", "outcome", "plain", "raw", "rows", "scope", "shadows", "stamp", "user", "verdict",
    )  # fmt: skip

    behaviour: Behaviour
    raw: Behaviour
    identity: Identity
    scope: CompiledScope
    verdict: Verdict
    outcome: AlertAction
    shadows: tuple[Verdict, ...]
    log: bool
    rows: bool
    stamp: int
    user: str
    plain: Behaviour | None


class Tally:
    """One frame, counted. `counts`: id -> rows; `folded`: id -> rows of `FOLDED`. `entries`: id -> what was judged.
    `parked`: ids whose identity is not known yet. `undefined`: ids whose definition is missing."""

    __slots__ = ("_definitions", "_processes", "counts", "entries", "folded", "frame", "ids", "parked", "undefined")

    def __init__(self, frame: Frame) -> None:
        self.frame = frame
        self.ids = memoryview(frame.occurrences).cast("Q")[_ID::_STEP]
        self.counts: Counter[int] = Counter(self.ids)
        self.folded: dict[int, list[tuple[int, int, int, int, int, int]]] = {}
        for row in FOLDED.iter_unpack(frame.folded):
            self.folded.setdefault(row[0], []).append(row)
        self.entries: dict[int, JudgedBehaviour] = {}
        self.parked: dict[int, Behaviour] = {}
        self.undefined: list[int] = []
        self._definitions: DecodedDefinitions | None = None
        self._processes: dict[int, ProcessContext] | None = None

    @property
    def header(self) -> FrameHeader:
        return self.frame.header

    @property
    def times(self) -> memoryview[int]:
        """The boot time column."""
        return memoryview(self.frame.occurrences).cast("Q")[_TIME::_STEP]

    @property
    def definitions(self) -> DecodedDefinitions:
        """Parsed when first asked for: a frame of known behaviours that nobody logs never needs them."""
        if self._definitions is None:
            self._definitions = DecodedDefinitions(self.frame.definitions, self.header.architecture)
        return self._definitions

    @property
    def processes(self) -> dict[int, ProcessContext]:
        """Exec images defined in the frame."""
        if self._processes is None:
            self._processes = self.definitions.process_contexts()
        return self._processes

    def count(self, ident: int) -> int:
        """Events of one id: rows and folded."""
        folded = self.folded.get(ident)
        return self.counts[ident] + (sum(row[1] for row in folded) if folded else 0)


Run = tuple[str, str, str]


class FrameJudge:
    """`use` a ruleset, then `tally` frames. `hits`, `judged`, `revalidated`: plain counts since start, of distinct ids."""

    def __init__(self, settings: JudgeSettings, inventory: Inventory, ruleset: CompiledPolicies) -> None:
        self._limit = settings.cached_behaviours // 2
        self._inventory = inventory
        self._ruleset = ruleset
        self._policies = 0
        self._scopes: dict[int, tuple[Identity, tuple[CompiledScope, frozenset[Operation]]]] = {}
        # Two generations: when the young one is full the old one is dropped, so a hit costs one lookup and no reordering.
        self._young: dict[Run, dict[int, JudgedBehaviour]] = {}
        self._old: dict[Run, dict[int, JudgedBehaviour]] = {}
        self._size = self._old_size = 0
        self.hits = 0
        self.judged = 0
        self.revalidated = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called strictly before other policies are in force."""

    def use(self, ruleset: CompiledPolicies) -> None:
        """Judge by `ruleset` from the next frame on."""
        self.on_change()
        self._ruleset = ruleset
        self._policies += 1
        self._scopes.clear()
        self._young.clear()
        self._old.clear()
        self._size = self._old_size = 0

    @property
    def kept(self) -> int:
        """Judged behaviours held now, at most: one that went from the old generation to the young counts in both."""
        return self._size + self._old_size

    def tally(self, frame: Frame) -> Tally:
        """Count and judge. Raises DecodeError, Incompatible for a frame that cannot be read."""
        tally = Tally(frame)
        header = frame.header
        run = (header.node, header.boot, header.run)
        cache = self._young.get(run)
        if cache is None:
            cache = self._young[run] = {}
        if places := leading_cgroups(frame.definitions):
            self._inventory.learn_cgroups(header.node, places)
        stamp, entries, get = self._inventory.epoch, tally.entries, cache.get
        missing = []
        for ident in tally.counts:
            entry = get(ident)
            if entry is not None and entry.stamp == stamp:
                entries[ident] = entry
            else:
                missing.append(ident)
        missing += [ident for ident in tally.folded if ident not in tally.counts]
        self.hits += len(entries)
        if missing:
            self._misses(tally, run, missing)
        return tally

    def knows(self, header: FrameHeader, ident: int) -> bool:
        """Whether a definition of `ident` was seen in this run."""
        run = (header.node, header.boot, header.run)
        return ident in self._young.get(run, ()) or ident in self._old.get(run, ())

    def _misses(self, tally: Tally, run: Run, missing: list[int]) -> None:
        """Judge ids that are not in the young generation, or whose answer may be old."""
        inventory, definitions, odd = self._inventory, tally.definitions, tally.definitions.odd
        decode, find, node, epoch = definitions.behaviour, inventory.find, run[0], inventory.epoch
        entries, parked, scopes = tally.entries, tally.parked, self._scopes
        young, old = self._young[run], self._old.get(run, {})
        judged = 0
        for ident in missing:
            entry = young.get(ident)
            if entry is None and old:
                entry = old.pop(ident, None)
            raw = decode(ident) if entry is None else entry.raw
            if raw is None:
                tally.undefined.append(ident)
                continue
            identity = find(node, raw)
            if identity is None:
                parked[ident] = raw
                continue
            if entry is not None and entry.identity is identity:
                self.revalidated += 1
                entry.user = inventory.user(identity, raw.uid)
            else:
                judged += 1
                fresh = JudgedBehaviour()
                fresh.raw = raw
                if entry is not None:
                    fresh.behaviour = entry.behaviour
                else:
                    fresh.behaviour = tellable_behaviour(raw) if ident in odd else raw
                fresh.identity = identity
                fresh.user = inventory.user(identity, raw.uid)
                fresh.plain = None
                known = scopes.get(id(identity))
                fresh.scope, logged = known[1] if known is not None else self._scope(identity)
                fresh.log = raw.operation in logged
                _settle(fresh, fresh.scope.judge(raw))
                entry = fresh
            entry.stamp = epoch
            entries[ident] = entry
            if ident not in young:
                self._size += 1
                if self._size > self._limit:
                    self._old, self._old_size, self._size, young = self._young, self._size - 1, 1, {}
                    self._young = {run: young}
                    old = self._old[run]
                young[ident] = entry
            elif entry is not young[ident]:
                young[ident] = entry
        self.judged += judged

    def with_arguments(self, entry: JudgedBehaviour, arguments: tuple[str, ...]) -> JudgedBehaviour:
        """`entry` judged again for one occurrence's arguments; not cached."""
        again = JudgedBehaviour()
        for name in ("raw", "behaviour", "identity", "scope", "log", "plain", "stamp", "user"):
            setattr(again, name, getattr(entry, name))
        _settle(again, entry.scope.judge(entry.raw, arguments))
        again.rows = again.outcome.due or bool(again.shadows)
        return again

    def _scope(self, identity: Identity) -> tuple[CompiledScope, frozenset[Operation]]:
        # By id(): an Identity holds dicts and cannot be hashed; the object is kept beside its scope, so ids are not reused.
        found = self._scopes.get(id(identity))
        if found is None:
            if len(self._scopes) >= _SCOPES:
                self._scopes.clear()
            scope = self._ruleset.scope(identity)
            # Exits are counted, but no line of KubeArmor's feed speaks of one.
            logged = {op for op in Operation if class_of(op) in scope.visible and op is not Operation.EXIT}
            if not scope.dns_visible:
                logged.discard(Operation.DNS)
            found = self._scopes[id(identity)] = (identity, (scope, frozenset(logged)))
        return found[1]


def _settle(entry: JudgedBehaviour, verdict: Verdict) -> None:
    entry.verdict = verdict
    if not (verdict.tell or verdict.needs_arguments or verdict.shadow or entry.raw.enforcer):
        # Nearly always: nothing to tell.
        entry.outcome, entry.shadows, entry.rows = SILENT, (), False
        return
    action = entry.outcome = outcome(entry.raw, verdict)
    shadows = entry.shadows = tuple(shadow for shadow in verdict.shadow if shadow.tell)
    entry.rows = action.due or verdict.needs_arguments or bool(shadows)
