# SPDX-License-Identifier: Apache-2.0
"""Hot. One rule as the judge sees it, and the choice between the rules that match: sections 2 to 5 of `docs/semantics.md`.

Allow and Block rules decide what may happen; Audit rules only report, so adding one never changes what is allowed.
Pure and without I/O; verdicts are made at compile time and handed out as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from policy.rules.links import called_as
from policy.rules.specificity import Rank
from schemas.behaviour import NO_OWNER, Behaviour
from schemas.operations import Access, Backend, Operation
from schemas.rules import Match, Rule
from schemas.verdict import ALLOWED, DEFAULT_POSTURE, Action, Mode, Verdict

_READS: Final = int(Access.READ | Access.EXEC | Access.DIRECTORY | Access.OWN)
_CHANGES: Final = ~_READS


class Candidate:
    """A rule, limited to one of its sources or to none. `allow` is its verdict when it lets pass, `act` when it acts."""

    __slots__ = (
        "act",
        "allow",
        "arguments",
        "asks",
        "audits",
        "called",
        "limited",
        "order",
        "owner_only",
        "permits",
        "pts",
        "rank",
        "read_only",
        "rule",
    )

    def __init__(self, rule: Rule, rank: Rank, mode: Mode) -> None:
        self.rule = rule
        self.rank = rank
        self.order = (rule.key, rule.index)
        self.audits = rule.action is Action.AUDIT
        self.permits = rule.action is Action.ALLOW
        self.owner_only = rule.owner_only
        self.read_only = rule.read_only
        self.pts = rule.pts is False
        self.limited = self.owner_only or self.read_only or self.pts
        self.arguments = frozenset(rule.allowed_args) if rule.has_args else None
        self.called = rule.called
        self.asks = rule.has_args or bool(rule.called)
        self.allow = verdict_of(rule, Action.ALLOW, mode)
        # A limited Allow acts like a Block outside its limits (KubeArmor section 2.4: ownerOnly, readOnly, pts).
        self.act = verdict_of(rule, Action.AUDIT if self.audits else Action.BLOCK, mode)


def verdict_of(rule: Rule, action: Action, mode: Mode) -> Verdict:
    """The verdict of `rule` when it does `action`."""
    return Verdict(
        action=action,
        policy=rule.key.name,
        rule=rule.ref,
        tell=action is not Action.ALLOW,
        host=rule.key.kind == "KubeArmorHostPolicy",
        mode=mode,
        severity=rule.severity,
        tags=rule.tags,
        message=rule.message,
        preset=rule.value if rule.match is Match.PRESET else "",
    )


class Unmatched:
    """The answer when no Allow or Block rule matched: nothing, or in a class with Allow rules its default posture."""

    __slots__ = ("blocks", "silent", "told", "whitelist")

    def __init__(self, whitelist: bool, posture: str, mode: Mode, host: bool) -> None:
        self.whitelist = whitelist and posture != "allow"
        self.blocks = self.whitelist and posture == "block"
        if not self.whitelist:
            self.told = self.silent = ALLOWED
            return
        action = Action.BLOCK if self.blocks else Action.AUDIT
        self.told = Verdict(action=action, policy=DEFAULT_POSTURE, tell=True, host=host, mode=mode)
        # Somebody else has already denied it: no alert says that a posture did (#1527).
        self.silent = msgspec.structs.replace(self.told, tell=False)

    def verdict(self, behaviour: Behaviour) -> Verdict:
        """What is said of `behaviour`."""
        if behaviour.result and behaviour.enforcer is Backend.OBSERVER:
            return self.silent
        return self.told


def needing_arguments(verdict: Verdict) -> Verdict:
    """`verdict` as a first answer, to be asked again with the arguments of each occurrence."""
    return msgspec.structs.replace(verdict, needs_arguments=True)


def changes(behaviour: Behaviour) -> bool:
    """Whether more than reading or executing is asked for. Of the file operations only OPEN can be a mere reading."""
    if behaviour.operation is Operation.OPEN:
        return bool(int(behaviour.access) & _CHANGES)
    return behaviour.operation is not Operation.EXEC


def permitted(candidate: Candidate, behaviour: Behaviour) -> bool:
    """Whether `behaviour` is within what ownerOnly, readOnly and pts leave free. An unknown owner is not the owner."""
    if candidate.pts and behaviour.tty:
        return False
    if candidate.owner_only and (behaviour.owner == NO_OWNER or behaviour.uid != behaviour.owner):
        return False
    return not (candidate.read_only and changes(behaviour))


def outcome(candidate: Candidate, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict | None:
    """What one matching rule says; None when it stands aside. Unknown arguments count as not allowed."""
    if candidate.called and (arguments is None or not called_as(candidate.called, arguments)):
        return None
    allowed = candidate.arguments
    if allowed is not None:
        if arguments is not None and len(arguments) > 1 and allowed.issuperset(arguments[1:]):
            return None if candidate.audits else candidate.allow
        if candidate.permits:
            return None
    if candidate.limited:
        if permitted(candidate, behaviour):
            return None if candidate.audits else candidate.allow
        return candidate.act
    return candidate.allow if candidate.permits else candidate.act


def decide(
    found: Iterable[Candidate], behaviour: Behaviour, arguments: tuple[str, ...] | None, unmatched: Unmatched
) -> Verdict:
    """The verdict of one table: the most specific Allow or Block rule, then Block over Allow; then what Audit rules tell."""
    best: Candidate | None = None
    best_verdict = ALLOWED
    teller: Candidate | None = None
    needs = False
    for candidate in found:
        if candidate.asks and arguments is None:
            needs = True
        said = outcome(candidate, behaviour, arguments)
        if said is None:
            continue
        if candidate.audits:
            if teller is None or _before(candidate, teller):
                teller = candidate
        elif best is None or candidate.rank > best.rank:
            best, best_verdict = candidate, said
        elif candidate.rank == best.rank:
            blocks = said.action is Action.BLOCK
            if blocks != (best_verdict.action is Action.BLOCK):
                if blocks:
                    best, best_verdict = candidate, said
            elif candidate.order < best.order:
                best, best_verdict = candidate, said
    if best is not None:
        verdict = best_verdict
        # An Allow as specific as the Audit does not silence it; a more specific one does.
        if teller is not None and verdict.action is Action.ALLOW and teller.rank >= best.rank:
            verdict = teller.act
    elif teller is not None and not unmatched.blocks:
        verdict = teller.act
    else:
        verdict = unmatched.verdict(behaviour)
    return needing_arguments(verdict) if needs else verdict


def _before(candidate: Candidate, other: Candidate) -> bool:
    return candidate.rank > other.rank or (candidate.rank == other.rank and candidate.order < other.order)
