# SPDX-License-Identifier: Apache-2.0
"""Stored behaviours -> policies that are safe to apply: the door of the learner. Pure.

::

    sightings -> workloads -> review (set apart) -> rules (paths, executables, sockets) -> documents -> replay by the real judge

What the replay says would be denied is added; a policy that would still deny what it was learnt from is never given out. The answer
depends on the set of sightings alone: not on their order, batches or repetition.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from policy.learn import documents
from policy.learn.completeness import Completeness, completeness
from policy.learn.evidence import Evidence
from policy.learn.replay import TrainingReplay
from policy.learn.review import ReviewItem, sort_out
from policy.learn.rules import LearntRule, Uses, rules
from policy.learn.sightings import Shown, Sighting, SightingGroups, by_behaviour, flat, owned, writes
from policy.learn.workloads import LearntWorkload, selector, workload
from schemas.behaviour import Behaviour
from schemas.errors import PolicyError
from schemas.identity import Identity
from schemas.policy import PolicyDocument

_POSITION: Final = re.compile(r"spec\.(\w+)\.(\w+)\[(\d+)\]")
ROUNDS: Final = 3
"""Replays after each of which what was denied is added. By construction the first denies next to nothing."""


class LearnSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rules are made and what is believed."""

    patterns: Annotated[bool, Meta(description="Globs for kinds of names; without them their directory.")] = True
    quiet_hours: Annotated[
        float, Meta(gt=0, description="Hours without anything new after which what is new is set apart.")
    ] = 24.0
    accept: Annotated[tuple[str, ...], Meta(description="Ids of set-apart items that are learnt all the same.")] = ()
    isolate: Annotated[
        bool, Meta(description="A workload that never used the internet gets rules that keep it off.")
    ] = False
    mode: Annotated[
        Literal["enforce", "shadow", "baseline"],
        Meta(description="Shadows tell what they would block, baselines once what is outside them."),
    ] = "enforce"


class LearntPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's policy. `body`: the document as plain data. `evidence`: what it was learnt from, and it was replayed
    on all of it: `sightings` stored behaviours, of `events` events. `apart`: what was not learnt. `accepted`: ids of
    `LearnSettings.accept` that something of it has."""

    workload: LearntWorkload
    name: str
    body: dict[str, Any]
    document: PolicyDocument
    rules: tuple[LearntRule, ...]
    completeness: Completeness
    apart: tuple[ReviewItem, ...]
    accepted: tuple[str, ...] = ()
    evidence: tuple[Sighting, ...]
    sightings: int
    events: int


Done = Callable[[int, int], None]
"""Hears how many workloads are learnt, of how many."""


def _untold(number: int, of: int) -> None:
    """Nobody asked."""


def learn(
    sightings: Iterable[Sighting],
    settings: LearnSettings = LearnSettings(),  # noqa: B008
    done: Done = _untold,
) -> list[LearntPolicy]:
    """A policy for each workload that was seen, in order of workload. `done` hears how far it is. PolicyError when one would deny its
    own evidence."""
    grouped: dict[LearntWorkload, SightingGroups] = {}
    numbers: dict[LearntWorkload, int] = {}
    # By the object, which all sightings of an instance share; they are kept, so its number stays its own.
    known: dict[int, Callable[[Sighting], None]] = {}
    for one in sightings:
        add = known.get(id(one.identity))
        if add is None:
            of = workload(one.identity)
            add = known[id(one.identity)] = grouped.setdefault(of, SightingGroups()).add
            numbers[of] = numbers.get(of, 0) + 1
        add(one)
    known.clear()
    drafts: list[_Draft] = []
    for number, of in enumerate(sorted(grouped), 1):
        # Let go one by one: what is not evidence is needed no more.
        draft = _Draft(of, grouped.pop(of).shown(), settings, numbers[of])
        if draft.shown or draft.apart:
            drafts.append(draft)
        done(number, number + len(grouped))
    for left in reversed(range(ROUNDS)):
        replay = TrainingReplay(draft.document for draft in drafts if draft.shown)
        denied = [(draft, list(replay.denied_of(draft.shown, draft.whose))) for draft in drafts]
        if not any(some for _, some in denied):
            break
        if not left:
            draft, some = next((draft, some) for draft, some in denied if some)
            first = some[0].behaviour
            raise PolicyError(
                f"expected the policy learnt for {draft.of.label} to allow what it was learnt from, it would deny {len(some)} behaviours, the "
                f"first {first.operation.name.lower()} of `{first.resource}` by `{first.executable}`; this is a bug in Hauberk",
                (),
            )
        named = {_key(draft.document): draft for draft in drafts}
        # All of these first: where a rule stands is known of the documents that were asked.
        left_over = [(draft, [one for one in some if not _freed(replay, one, draft, named)]) for draft, some in denied]
        for draft, own in left_over:
            draft.rewrite()
            if own:
                draft.add(own)
    return [draft.finish() for draft in drafts]


class _Draft:
    def __init__(self, of: LearntWorkload, shown: list[Shown], settings: LearnSettings, number: int) -> None:
        """`number`: of the objects that are identities of `shown`."""
        self.of = of
        self._settings = settings
        self._number = number
        found = sort_out(of.label, shown, settings.accept, int(settings.quiet_hours * 3600e9), self._denied)
        self.shown, self.apart, self.accepted = found.shown, found.apart, found.accepted
        self._build(self.shown)

    def _build(self, shown: list[Shown]) -> None:
        uses = Uses.of(shown)
        # Globs take no `fromSource`, without which the rule of one service would hold for the whole host.
        self.rules = rules(uses, patterns=self._settings.patterns and not self.of.host)
        self.presets = _presets(uses.files)
        self.whose, self.identities = _identities(shown, self._number)
        self._write()

    def _write(self) -> None:
        self._stale = False
        self.body = documents.document(
            self.of, selector(self.of, self.identities.values()), self.rules, presets=self.presets,
            isolate=self._settings.isolate,
        )  # fmt: skip
        self.document = documents.checked(self.body)

    def _denied(self, base: list[Shown], late: list[Shown]) -> list[Sighting]:
        self._build(base)
        return list(TrainingReplay([self.document]).denied_of(late, _identities(late, self._number)[0]))

    def free(self, position: str, behaviour: Behaviour) -> None:
        """Takes from the rule at `position` what keeps it from holding for `behaviour`."""
        section, name, number = _POSITION.fullmatch(position).groups()  # type: ignore[union-attr]
        item = self.body["spec"][section][name][int(number)]
        for at, rule in enumerate(self.rules):
            same = rule.section == section and item.get(rule.kind) == rule.value
            if same and item.get("recursive", False) == rule.recursive:
                self.rules[at] = msgspec.structs.replace(
                    rule,
                    read_only=rule.read_only and not writes(behaviour),
                    owner_only=rule.owner_only and owned(behaviour),
                )
                self._stale = True

    def rewrite(self) -> None:
        """After `free`: its document as its rules are now."""
        if self._stale:
            self._write()

    def add(self, denied: list[Sighting]) -> None:
        """Rules for exactly what was denied, as wide as the evidence asks for."""
        uses = Uses.of(by_behaviour(denied))
        merged = {rule.key: rule for rule in self.rules}
        for table, section in ((uses.executed, "process"), (uses.files, "file")):
            for path, evidence in table.items():
                key = (section, "path", path, False)
                if (old := merged.get(key)) is not None:
                    evidence.merge(old.evidence)
                merged[key] = LearntRule(section=section, kind="path", value=path, evidence=evidence)
        self.rules = sorted(merged.values(), key=lambda rule: rule.key)
        self.presets = []
        self._write()

    def finish(self) -> LearntPolicy:
        body, made = self.body, self.document
        known = completeness(rule.evidence for rule in self.rules)
        evidence = flat(self.shown)
        if self._settings.mode != "enforce":
            # The alert of a drift says from how much its baseline was learnt.
            said = f"not among what {len(evidence):,} behaviours showed of {self.of.label}; {known.sentence()}"
            body = documents.document(
                self.of, selector(self.of, self.identities.values()), self.rules, presets=self.presets,
                isolate=self._settings.isolate, mode=self._settings.mode, message=said if self._settings.mode == "baseline" else "",
            )  # fmt: skip
            made = documents.checked(body)
        return LearntPolicy(
            workload=self.of, name=self.of.policy_name, body=body, document=made, rules=tuple(self.rules),
            completeness=known, apart=tuple(self.apart), accepted=tuple(sorted(self.accepted)),
            evidence=tuple(evidence), sightings=len(evidence), events=sum(one.count for one in evidence),
        )  # fmt: skip


def _key(document: PolicyDocument) -> tuple[str, str, str]:
    return document.kind, document.namespace, document.name


def _freed(replay: TrainingReplay, one: Sighting, own: _Draft, named: Mapping[tuple[str, str, str], _Draft]) -> bool:
    """Whether limits of rules of others denied it, which they no longer have: on a host the rule of one service holds for all."""
    found = False
    for ref in replay.limits(one):
        draft = named[ref.kind, ref.namespace, ref.policy]
        if draft is not own:
            draft.free(ref.position, one.behaviour)
            found = True
    return found


def _presets(files: Mapping[str, Evidence]) -> list[str]:
    """Other processes' files below /proc stay theirs, if the workload never looked at any: pids change, so rules for its own are globs
    that hold for all. Else their environment does, if it looked at its own alone."""
    own = {path: not one.others for path, one in files.items() if path.startswith("/proc/") and path[6:7].isdigit()}
    if own and all(own.values()):
        return ["protectProc"]
    environments = [alone for path, alone in own.items() if path.endswith("/environ")]
    return ["protectEnv"] if environments and all(environments) else []


def _identities(shown: Iterable[Shown], number: int) -> tuple[list[Identity], dict[str, Identity]]:
    """(all identities of `shown`, of which there are at most `number`; the newest of each uid)."""
    met: dict[int, Identity] = {}
    for each in shown:
        for one in each.some:
            met[id(one.identity)] = one.identity
        if len(met) == number:
            # What all showed comes early.
            break
    newest = {one.uid: one for one in met.values()}
    if len(newest) == len(met):
        return list(met.values()), newest
    last: dict[str, int] = {}
    for each in shown:
        for one in each.some:
            uid = one.identity.uid
            if one.last > last.get(uid, -1):
                last[uid], newest[uid] = one.last, one.identity
    return list(met.values()), newest
