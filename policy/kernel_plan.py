# SPDX-License-Identifier: Apache-2.0
"""The part of a scope that a kernel can decide: `Scope` -> `ScopePlan` and a refusal for every rule that no backend carries.

Rules in a plan are sorted as the judge would choose: the first that matches decides (most specific, then Block before Allow), so
a backend that cannot rank still agrees with the judge. Audited and shadow policies are never in a plan; host identities get host
policies only, because only those select them. Pure; never widens a rule that it cannot express exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeVar

import msgspec

from policy.judge.compile import problem, table_of
from policy.judge.overlap import may_overlap
from policy.rules.backends import AUTOBIND, OTHER_FAMILIES, TELLING, denies, frees, reason, remainder
from policy.rules.specificity import Rank, rank
from policy.ruleset import Scope
from policy.text.coverage import CANNOT, missing, unseen
from schemas.backends import PLANNED
from schemas.enforcement import NetworkRule, PathRule, Refusal, ScopePlan
from schemas.identity import Identity
from schemas.operations import Backend, Class
from schemas.refusals import Cause, RefusalCode
from schemas.rules import Match, Ports, Rule, Source, SourceKind
from schemas.verdict import DEFAULT_POSTURE, Action, Mode, RuleRef

_DIRECTIONS: Final = ("egress", "ingress")


def plan_scope(
    scope: Scope, identity: Identity, *, backends: Iterable[Backend] = PLANNED, signal: bool = False
) -> tuple[ScopePlan, tuple[Refusal, ...]]:
    """What `identity` shall be held to by `backends`, and what is not carried out or only in part (`code.partial`). `signal`: the
    node opts in to kills for every policy."""
    asked = tuple(backends)
    carried, left = _split(scope, asked, signal)
    paths: list[_Placed[PathRule]] = []
    network: list[_Placed[NetworkRule]] = []
    for rule in carried:
        where = (frees(rule) + (not denies(rule)), str(rule.key), rule.index)
        if rule.class_ is Class.NETWORK:
            network += [(ranked, where, made) for ranked, made in _network(rule)]
        else:
            paths += [(ranked, where, made) for ranked, made in _paths(rule)]
    postures, fallbacks, unheld = _postures(scope, carried)
    refused = [
        Refusal(ref=rule.ref, uid=identity.uid, backend=who, reason=why.text, code=why.code) for rule, who, why in left
    ]
    refused += [
        Refusal(ref=RuleRef(DEFAULT_POSTURE), uid=identity.uid, backend=backend, reason=why.text, code=why.code)
        for why in unheld
        for backend in asked
        if backend is Backend.CGROUP or not why.code.partial
    ]
    plan = ScopePlan(
        uid=identity.uid,
        cgroups=identity.cgroups[:1],
        cgroup_path=identity.cgroup_path,
        workload=identity.workload,
        paths=_merged(_ordered(paths)),
        network=(*_ordered(network), *fallbacks),
        whitelist=tuple(class_ for class_, _ in postures),
        posture=postures,
        signal=signal or any(policy.signal for policy, mode in scope.members if mode is Mode.ENFORCE),
    )
    return plan, tuple(refused)


_Left = tuple[Rule, Backend, Cause]


def _split(scope: Scope, backends: tuple[Backend, ...], signal: bool) -> tuple[list[Rule], list[_Left]]:
    # Rules that some backend carries, and the others with each backend's reason.
    carried: list[Rule] = []
    left: list[_Left] = []
    exceptions: list[Rule] = []
    for policy, mode in scope.members:
        for rule in policy.rules:
            nothing = problem(rule)
            if nothing is None and (why := missing(rule)) is not None and not _held_unseen(rule, mode, backends):
                # Told for every action and mode: a rule that nothing sees is never one of those in force.
                left.append(
                    (
                        rule,
                        Backend.OBSERVER,
                        Cause(RefusalCode.UNSEEN, f"{CANNOT}: {why}; neither reported nor enforced"),
                    )
                )
                if unseen(rule) is not None:
                    continue
            if nothing is not None:
                # Told for every action: the author has written something that has no effect.
                left.append(
                    (rule, Backend.OBSERVER, Cause(RefusalCode.NEVER_MATCHES, f"it can never match: {nothing}"))
                )
                continue
            if mode is not Mode.ENFORCE or rule.action is Action.AUDIT:
                continue
            if rule.match is Match.PRESET and not denies(rule):
                continue  # a preset allows nothing, and nodes of older versions would deny by it
            reasons = [
                (rule, backend, left_out)
                for backend in backends
                if (left_out := reason(rule, backend, signal=signal or policy.signal) or _inexpressible(rule))
                is not None
            ]
            if len(reasons) < len(backends):
                carried.append(rule)
                continue
            left += reasons
            if frees(rule):
                exceptions.append(rule)
    # A Block rule without the more specific exception to it would deny what the policies allow.
    widened = {id(rule): exception for rule in carried if (exception := _exception(rule, exceptions)) is not None}
    for rule in carried:
        if id(rule) in widened:
            text = f"its exception {_name(widened[id(rule)])} cannot be carried out, and without it too much would be denied"
            left += [(rule, backend, Cause(RefusalCode.EXCEPTION, text)) for backend in backends]
        else:
            left += [(rule, backend, rest) for backend in backends if (rest := remainder(rule, backend)) is not None]
    return [rule for rule in carried if id(rule) not in widened], left


def _held_unseen(rule: Rule, mode: Mode, backends: tuple[Backend, ...]) -> bool:
    """Whether a backend stops what no sensor reports, and tells of it itself."""
    return mode is Mode.ENFORCE and any(one in TELLING and reason(rule, one) is None for one in backends)


ENTRIES: Final = 32768
"""Most entries of the kernel's network table that one rule is written out to: half of what it has by default."""


def entries(rule: Rule) -> int:
    """How many entries a network rule takes, counted and not written: each network with each port, for two families."""
    peer = rule.peer
    if peer is None:
        return 0
    ports = sum(
        1 if one.first <= 1 and one.last >= 65535 else max(1, one.last - one.first + 1)
        for one in peer.ports or (Ports(),)
    )
    return 2 * len(peer.networks or ("",)) * ports


def _inexpressible(rule: Rule) -> Cause | None:
    if (count := entries(rule)) > ENTRIES:
        return Cause(
            RefusalCode.TOO_MANY_ENTRIES,
            f"it would take {count} entries of the kernel's table (each network with each port), at most {ENTRIES} of one rule "
            "are written out; name fewer networks or narrower ranges of ports",
        )
    # What `PathRule` and `NetworkRule` have no field for, whatever the backend could do.
    if rule.has_args:
        return Cause(RefusalCode.NOT_IN_PLAN, "no backend of a plan supports `allowedArgs` yet")
    if rule.called:
        return Cause(
            RefusalCode.CALLED_NAME,
            f"`{rule.called}` is `{rule.value}` in this container, which is many programs; a kernel cannot distinguish them",
        )
    if rule.class_ in (Class.NETWORK, Class.PROCESS, Class.FILE, Class.CAPABILITIES):
        return None
    return Cause(RefusalCode.NOT_IN_PLAN, "no backend of a plan supports such a rule yet")


def _exception(rule: Rule, exceptions: list[Rule]) -> Rule | None:
    if not denies(rule):
        return None
    mine = min(rank(rule, source) for source in rule.sources or (None,))
    for other in exceptions:
        if max(rank(other, source) for source in other.sources or (None,)) > mine and may_overlap(rule, other):
            return other
    return None


def _name(rule: Rule) -> str:
    return f"{rule.key.name} {rule.position}"


_Made = TypeVar("_Made")
_Placed = tuple[Rank, tuple[int, str, int], _Made]


def _ordered(rules: list[_Placed[_Made]]) -> list[_Made]:
    # Two stable sorts: rank downwards, then what the judge does at equal ranks: what only denies, what denies outside of its limits, what
    # denies nothing.
    rules.sort(key=lambda placed: placed[1])
    rules.sort(key=lambda placed: placed[0], reverse=True)
    return [made for _, _, made in rules]


def _merged(rules: list[PathRule]) -> tuple[PathRule, ...]:
    # Of rules on one thing by one source the judge takes the strictest: a plain Block, else every limit that is written.
    merged: dict[tuple[Class, str, str, str, str], PathRule] = {}
    for rule in rules:
        key = (rule.cls, rule.match, rule.value, rule.source_match, rule.source)
        kept = merged.setdefault(key, rule)
        if kept is rule or _plain_block(kept):
            continue
        if _plain_block(rule) or not kept.limited:
            merged[key] = rule if rule.action is Action.BLOCK or rule.limited else kept
        else:
            merged[key] = msgspec.structs.replace(
                kept,
                owner_only=kept.owner_only or rule.owner_only,
                read_only=kept.read_only or rule.read_only,
                no_terminal=kept.no_terminal or rule.no_terminal,
            )
    return tuple(merged.values())


def _plain_block(rule: PathRule) -> bool:
    return rule.action is Action.BLOCK and not rule.limited


def _paths(rule: Rule) -> Iterable[tuple[Rank, PathRule]]:
    match = "directory_recursive" if rule.match is Match.DIRECTORY and rule.recursive else rule.match.value
    for source in rule.sources or (None,):
        yield (
            rank(rule, source),
            PathRule(
                cls=rule.class_,
                match=match,
                value=rule.value,
                source=source.value if source is not None else "",
                source_match=_source_match(source),
                action=rule.action,
                owner_only=rule.owner_only,
                read_only=rule.read_only,
                no_terminal=rule.pts is False,
                ref=rule.ref,
            ),
        )


def _source_match(source: Source | None) -> str:
    if source is None:
        return "path"
    return "directory_recursive" if source.kind is SourceKind.DIRECTORY and source.recursive else source.kind.value


def _network(rule: Rule) -> Iterable[tuple[Rank, NetworkRule]]:
    peer = rule.peer
    if peer is None:
        for source in rule.sources or (None,):
            name = source.value if source is not None else ""
            for direction in _DIRECTIONS:
                yield (
                    rank(rule, source),
                    NetworkRule(
                        protocol=rule.value, direction=direction, source=name, action=rule.action, ref=rule.ref,
                        no_terminal=rule.pts is False, source_match=_source_match(source),
                    ),
                )  # fmt: skip
        return
    for network in peer.networks or ("",):
        prefix = int(network.partition("/")[2]) if network else -1
        for ports in peer.ports or (Ports(),):
            width = 0 if not ports.first else 2 if ports.first == ports.last else 1
            yield (
                rank(rule, prefix=prefix, ports=width),
                NetworkRule(
                    protocol=ports.protocol or "all",
                    cidr=network,
                    port=ports.first,
                    end_port=ports.last,
                    direction=rule.value,
                    action=rule.action,
                    ref=rule.ref,
                ),
            )


def _postures(
    scope: Scope, carried: list[Rule]
) -> tuple[tuple[tuple[Class, Action], ...], list[NetworkRule], list[Cause]]:
    """Postures of whitelisted classes, catch-all rules of whitelisted directions, and why a posture is left out."""
    known = {id(rule) for rule in carried}
    postures: list[tuple[Class, Action]] = []
    fallbacks: list[NetworkRule] = []
    unheld: list[Cause] = []
    for table in sorted(scope.whitelist):
        posture = scope.posture(table)
        if posture == "allow":
            continue
        freeing = [rule for rule in scope.rules if frees(rule) and table_of(rule) == table and problem(rule) is None]
        missing = next((rule for rule in freeing if id(rule) not in known), None)
        blocks = posture == "block"
        if blocks and missing is not None:
            text = f"posture block of {table} is only audited: {_name(missing)} allows something no backend can express"
            unheld.append(Cause(RefusalCode.POSTURE, text))
        elif table in _CLASSES:
            if blocks and table == "network":
                unheld.append(OTHER_FAMILIES)
            postures.append((_CLASSES[table], Action.BLOCK if blocks else Action.AUDIT))
        elif blocks and table in _DIRECTIONS:
            ref = RuleRef(DEFAULT_POSTURE)
            if table == "ingress":
                unheld.append(AUTOBIND)
            fallbacks.append(NetworkRule(protocol="all", direction=table, action=Action.BLOCK, ref=ref))
        elif blocks:
            text = f"posture block of {table} is only audited: no backend of the plan decides it"
            unheld.append(Cause(RefusalCode.WRONG_CLASS, text))
    return tuple(postures), fallbacks, unheld


_CLASSES: Final = {
    "process": Class.PROCESS, "file": Class.FILE, "network": Class.NETWORK, "capabilities": Class.CAPABILITIES,
}  # fmt: skip
