# SPDX-License-Identifier: Apache-2.0
"""Why: which rule decides an event, why each other candidate lost, and what each backend can make of a policy.

Asks the judge for its candidates and tells the choice of `policy/judge/precedence.py` in words; it never decides anything itself, and a test
holds that the rule it names is the rule of the verdict.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from policy.judge.compile import judged, problem, table_of
from policy.judge.judge import Judge, considered
from policy.judge.overlap import covers_path
from policy.judge.precedence import Candidate, Unmatched, decide, outcome
from policy.rules.backends import ALL, HERE, NAMES, TELLING, denies, held, late, reason, remainder
from policy.rules.links import called_as
from policy.rules.specificity import Rank
from policy.ruleset import DoubtfulScope, Ruleset, Scope
from policy.text.coverage import CANNOT, missing, unseen
from schemas.behaviour import Behaviour
from schemas.identity import Identity
from schemas.operations import Backend
from schemas.rules import Policy, Rule, Target
from schemas.verdict import Action, Mode, RuleRef, Verdict

_SHAPES = {
    "path": {5: "exact path", 4: "name of the executable", 3: "pattern", 2: "directory"},
    "network": {3: "protocol", 2: "socket type", 1: "all sockets"},
}

MISSING_HERE: Final = tuple(NAMES[backend] for backend in ALL if backend not in HERE)
HOST_ONLY: Final = (
    "Block rules of host policies are enforced only in the cgroups of `planner.plan.host_cgroups`; elsewhere they audit"
)


class Weighed(msgspec.Struct, frozen=True, kw_only=True):
    """One rule and what became of it. `says`: what it would do by itself, None when it stands aside."""

    rule: RuleRef
    table: str
    says: str | None
    decides: bool
    why: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict and everything that was weighed for it. `unselected`: policies that are not for this workload."""

    verdict: Verdict
    summary: str
    policies: tuple[str, ...]
    unselected: tuple[str, ...]
    weighed: tuple[Weighed, ...]


class Enforceability(msgspec.Struct, frozen=True, kw_only=True):
    """What backends can make of one rule: name -> None when it can, else the reason. `problem`: it can never match.
    `not_in_this_version`: backends of `backends` that hold nothing yet, whatever the kernel offers. `note`: where alone
    the rule is held, and what of it only after it has happened; "" for all of it, wherever its policy selects."""

    rule: RuleRef
    action: str
    backends: dict[str, str | None]
    problem: str | None = None
    not_in_this_version: tuple[str, ...] = MISSING_HERE
    note: str = ""
    unseen: str = ""
    """What of the rule no sensor of this version reports, "" when all of it is; with nothing reported it has no effect."""

    def cell(self, name: str) -> str:
        """`yes`, `no`, or `later`: a backend that this version does not have could."""
        if self.backends[name] is not None:
            return "no"
        return "later" if name in self.not_in_this_version else "yes"


class Unenforced(msgspec.Struct, frozen=True, kw_only=True):
    """Block rules of a policy, and Allow rules whose limits deny, counted as they stand in its file, without those that nothing sees. `unseen`: rules of any action
    about what no sensor reports, each as a sentence. `unheld`: no backend of this version can hold them as
    written; `by_signal`: as many of those could be held if the policy opted in to kills. `host`: see `HOST_ONLY`."""

    blocks: int
    unheld: int
    by_signal: int
    host: bool
    unseen: tuple[str, ...] = ()


def explain_event(
    ruleset: Ruleset, identity: Identity, behaviour: Behaviour, arguments: tuple[str, ...] | None = None
) -> Explanation:
    """Why `behaviour` of `identity` gets its verdict."""
    scope = ruleset.scope(identity)
    verdict = scope.judge(behaviour, arguments)
    chosen = set(scope.policies)
    weighed: list[Weighed] = []
    beside = scope.beside if isinstance(scope, DoubtfulScope) else None
    for one in (scope, beside) if beside is not None else (scope,):
        for judge, modes in (
            (one.enforced, (Mode.ENFORCE,)), (one.audited, (Mode.ENFORCE, Mode.AUDITED)), (one.shadow, (Mode.ENFORCE, Mode.SHADOW)),
        ):  # fmt: skip
            if judge is None:
                continue
            known = {(entry.rule, entry.table) for entry in weighed}
            members = [policy for policy, mode in one.members if mode in modes]
            said = judge.judge(behaviour, arguments) if judge is one.shadow else verdict
            weighed += [
                _beside(entry, "shadow") if judge is one.shadow else entry
                for entry in _weigh(judge, members, behaviour, arguments, said)
                if (entry.rule, entry.table) not in known
            ]
        for baseline in one.baselines:
            said = baseline.judge.judge(behaviour, arguments)
            weighed += [
                _beside(entry, "baseline")
                for entry in _weigh(baseline.judge, [baseline.policy], behaviour, arguments, said)
            ]
    return Explanation(
        verdict=verdict,
        summary=_summary(scope, behaviour, verdict),
        policies=scope.policies,
        unselected=tuple(str(policy.key) for policy in ruleset.policies if str(policy.key) not in chosen),
        weighed=tuple(weighed),
    )


def _beside(entry: Weighed, what: str) -> Weighed:
    """`entry` of a shadow or a baseline: whatever it says, nothing is enforced for it."""
    return msgspec.structs.replace(entry, decides=False, why=f"{what}, decides nothing: {entry.why}")


def explain_policy(policy: Policy, *, signal: bool = False) -> tuple[Enforceability, ...]:
    """What each backend can make of each rule. `signal`: the node opts in to kills whatever the policy says."""
    return tuple(
        Enforceability(
            rule=rule.ref,
            action=rule.action.value,
            backends={NAMES[backend]: _reason(rule, backend, signal or policy.signal) for backend in ALL},
            problem=problem(rule),
            note=_note(policy, rule, signal or policy.signal),
            unseen=_unseen(rule),
        )
        for rule in policy.rules
    )


def _unseen(rule: Rule) -> str:
    why = missing(rule)
    if why is None:
        return ""
    if unseen(rule) is None:
        return f"{CANNOT}: {why}; it is not reported"
    telling = [NAMES[backend] for backend in TELLING if denies(rule) and reason(rule, backend) is None]
    if telling:
        return f"{CANNOT}: {why}; reported and enforced where {' or '.join(telling)} denies it, and nowhere else"
    return f"{CANNOT}: {why}; neither reported nor enforced"


def _reason(rule: Rule, backend: Backend, signal: bool) -> str | None:
    if (nothing := problem(rule)) is not None:
        return f"it can never match: {nothing}"
    # What nothing sees is not "told by the judge" either; a backend that this version does not have might see it by itself.
    why = unseen(rule) if backend in HERE or rule.action is Action.AUDIT else None
    if why is not None:
        return f"{CANNOT}: {why}"
    refused = reason(rule, backend, signal=signal)
    return None if refused is None else refused.text


def _note(policy: Policy, rule: Rule, signal: bool) -> str:
    if not denies(rule) or unseen(rule) is not None:
        return ""
    rests = [
        f"{NAMES[backend]} in part: {rest.text}"
        for backend in HERE
        if reason(rule, backend) is None and (rest := remainder(rule, backend)) is not None
    ]
    return "; ".join(filter(None, (HOST_ONLY if _host(policy) else "", late(rule, signal=signal), *rests)))


def unheld(policy: Policy, *, signal: bool = False) -> Unenforced:
    """How much of `policy` looks like a Block and is only audited. `signal`: as for `explain_policy`."""
    opted_in = signal or policy.signal
    blocks = [rule for rule in policy.rules if denies(rule) and problem(rule) is None and unseen(rule) is None]
    # A comma list is one rule to whoever wrote it.
    blind = {rule.position: f"{rule.position} ({why})" for rule in policy.rules if (why := missing(rule)) is not None}
    # A rule with several sources is one rule to whoever wrote it.
    without = {rule.position for rule in blocks if not held(rule, signal=opted_in)}
    never = {rule.position for rule in blocks if not held(rule, signal=True)}
    return Unenforced(
        blocks=len({rule.position for rule in blocks}),
        unheld=len(without),
        by_signal=len(without - never),
        host=_host(policy),
        unseen=tuple(blind.values()),
    )


def _host(policy: Policy) -> bool:
    return policy.selection.target is Target.NODES


def rank_words(rank: Rank, rule: Rule) -> str:
    """A rank as people say it: `exact path, limited to a source`."""
    table = table_of(rule)
    shapes = _SHAPES["network" if table == "network" else "path"]
    known = table in ("process", "file", "network", "syscall")
    words = shapes.get(rank[1], rule.match.value) if known else rule.match.value
    return f"{words} `{rule.value}`" + (", limited to a source" if rank[0] else "")


def _summary(scope: Scope, behaviour: Behaviour, verdict: Verdict) -> str:
    if not considered(behaviour):
        return "the operation failed for another reason, so no policy applies to it"
    if verdict.rule is not None:
        text = f"{verdict.action.value} by {verdict.rule.policy}, {verdict.rule.position}"
    elif verdict.policy is not None:
        text = (
            f"{verdict.action.value} by the default posture: Allow rules make the class a whitelist, and none matched"
        )
    elif not scope.policies:
        text = "Allow: no policy is for this workload"
    else:
        text = "Allow: no rule matched, and the class has no Allow rules"
    if verdict.mode is Mode.AUDITED:
        text += "; audited: reported, not enforced"
    if verdict.needs_arguments:
        text += "; depends on the arguments, which this event does not have"
    if verdict.policy is not None and verdict.action is not Action.ALLOW and not verdict.tell:
        text += "; not reported, because the system had denied it already"
    for one in verdict.shadow:
        if one.mode is Mode.BASELINE:
            text += f"; Drift: outside the baseline {one.policy}, told once, nothing is enforced"
        elif one.tell:
            text += f"; the shadow {one.policy} would {one.action.value}"
    return text


def _weigh(
    judge: Judge, members: Iterable[Policy], behaviour: Behaviour, arguments: tuple[str, ...] | None, verdict: Verdict
) -> Iterable[Weighed]:
    if not considered(behaviour):
        return
    matched: set[tuple[object, int]] = set()
    tables = judge.candidates(behaviour)
    for table, candidates, unmatched in tables:
        winner = decide(candidates, behaviour, arguments, unmatched)
        for candidate in candidates:
            matched.add((candidate.rule.key, candidate.rule.index))
            said = outcome(candidate, behaviour, arguments)
            decides = said is not None and winner.rule == candidate.rule.ref
            final = decides and verdict.rule == candidate.rule.ref
            why = _why(candidate, said, candidates, unmatched, behaviour, arguments)
            if decides and not final:
                why = f"decides its table, but {_strongest(verdict)} is stronger"
            yield Weighed(
                rule=candidate.rule.ref,
                table=table,
                says=said.action.value if said is not None else None,
                decides=final,
                why=why,
            )
    asked = {table for table, _, _ in tables}
    yield from _elsewhere(members, behaviour, asked, matched)


def _strongest(verdict: Verdict) -> str:
    return (
        f"{verdict.action.value} of {verdict.rule.policy if verdict.rule is not None else verdict.policy or 'nobody'}"
    )


def _why(
    candidate: Candidate,
    said: Verdict | None,
    candidates: list[Candidate],
    unmatched: Unmatched,
    behaviour: Behaviour,
    arguments: tuple[str, ...] | None,
) -> str:
    mine = rank_words(candidate.rank, candidate.rule)
    if said is None:
        return f"stands aside: {_aside(candidate, arguments)}"
    spoken = [
        (other, verdict) for other in candidates if (verdict := outcome(other, behaviour, arguments)) is not None
    ]  # fmt: skip
    deciders = [(other, verdict) for other, verdict in spoken if not other.audits]
    best = max(deciders, key=lambda pair: (pair[0].rank, pair[1].action is Action.BLOCK), default=None)
    if candidate.audits:
        if best is None:
            if unmatched.blocks:
                return "not reported: no Allow rule matched, and the default posture blocks"
        elif best[1].action is Action.BLOCK:
            return f"not reported: {_named(best[0])} blocks, and an Audit rule never loosens a Block"
        elif best[0].rank > candidate.rank:
            return f"silenced by the more specific {_named(best[0])}: {rank_words(best[0].rank, best[0].rule)}"
        first = max((other for other, _ in spoken if other.audits), key=lambda other: other.rank)
        if first.rank > candidate.rank:
            return f"less specific than {_named(first)}: {rank_words(first.rank, first.rule)} before {mine}"
        return f"tells: {mine}"
    assert best is not None
    if best[0].rank > candidate.rank:
        return f"less specific than {_named(best[0])}: {rank_words(best[0].rank, best[0].rule)} before {mine}"
    if best[1].action is not said.action:
        return f"as specific as {_named(best[0])}, and Block goes before Allow"
    return f"most specific that matches: {mine}"


def _aside(candidate: Candidate, arguments: tuple[str, ...] | None) -> str:
    if candidate.called and (arguments is None or not called_as(candidate.called, arguments)):
        name = f"as `{arguments[0].rpartition('/')[2]}`" if arguments else "by a name that is not known"
        return f"`{candidate.rule.value}` is many programs, and it was called {name}, not as `{candidate.called}`"
    if candidate.arguments is not None:
        if candidate.permits:
            return "the arguments are not known" if arguments is None else "an argument is not in allowedArgs"
        return "every argument is in allowedArgs"
    return "within what ownerOnly, readOnly or pts leave free"


def _named(candidate: Candidate) -> str:
    return f"{candidate.rule.key.name} {candidate.rule.position}"


def _elsewhere(
    members: Iterable[Policy], behaviour: Behaviour, asked: set[str], matched: set[tuple[object, int]]
) -> Iterable[Weighed]:
    # Rules on the very resource that another executable would have met: the commonest surprise of fromSource.
    actor = (behaviour.parent or behaviour.executable) if "process" in asked else behaviour.executable
    for policy in members:
        for rule in policy.rules:
            if (rule.key, rule.index) in matched or table_of(rule) not in asked or not rule.sources or not judged(rule):
                continue
            if problem(rule) is None and covers_path(rule, behaviour.resource):
                wanted = ", ".join(source.value for source in rule.sources)
                why = f"holds for {wanted} only; acted by {actor or 'an unknown executable'}"
                yield Weighed(rule=rule.ref, table=table_of(rule), says=None, decides=False, why=why)
