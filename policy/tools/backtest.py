# SPDX-License-Identifier: Apache-2.0
"""A policy against the past: what it would have blocked or told, by which rule, for whom, how often.

Takes stored behaviours with their counts (not events) and gives progress as it goes, so that a caller can show it and stop. Rows
are bounded; what does not fit is counted, never dropped in silence. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec
from msgspec import Meta

from policy.ruleset import Ruleset
from policy.tools.diff import Observed
from schemas.operations import Access, Operation
from schemas.verdict import Action, Mode, RuleRef, Verdict


class BacktestSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often progress is told and how much is kept."""

    every: Annotated[int, Meta(ge=1, description="Behaviours between two progress reports.", examples=[1000])] = 1000
    examples: Annotated[int, Meta(ge=0, description="Resources kept per row, the most frequent.", examples=[5])] = 5
    rows: Annotated[int, Meta(ge=1, description="Rows kept; more are only counted.", examples=[10000])] = 10000


class BacktestProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far it is. `behaviours` and `events` judged so far; of the events, how many would be blocked, audited, acted on by
    shadow policies only; `uncertain`: those whose verdict depends on arguments, which are not stored; and `untold`: those whose
    names were left out, of which nothing can be said."""

    behaviours: int
    events: int
    blocked: int
    audited: int
    shadowed: int = 0
    uncertain: int = 0
    untold: int = 0


class BacktestRow(msgspec.Struct, frozen=True, kw_only=True):
    """One rule and one workload. `resources`: the most frequent, with counts. `first`/`last`: Unix ns.

    `uncertain`: events whose verdict depends on arguments that are not stored. `shadow`: the policy only watches.
    """

    workload: str
    operation: str
    action: str
    policy: str
    rule: RuleRef | None
    mode: Mode
    count: int
    behaviours: int
    uncertain: int
    first: int
    last: int
    resources: tuple[tuple[str, int], ...]


class BacktestReport(msgspec.Struct, frozen=True, kw_only=True):
    """The end: rows with the most frequent first, the totals, and how many events fell outside of the kept rows."""

    rows: tuple[BacktestRow, ...]
    totals: BacktestProgress
    beyond: int = 0


class _Row:
    __slots__ = ("behaviours", "count", "first", "last", "resources", "uncertain")

    def __init__(self) -> None:
        self.count = self.behaviours = self.uncertain = self.last = 0
        self.first = 1 << 63
        self.resources: dict[str, int] = {}


_Key = tuple[str, str, str, str, RuleRef | None, Mode]


def backtest(
    ruleset: Ruleset,
    observed: Iterable[Observed],
    settings: BacktestSettings = BacktestSettings(),  # noqa: B008
) -> Iterator[BacktestProgress | BacktestReport]:
    """Progress every `settings.every` behaviours, then one report."""
    rows: dict[_Key, _Row] = {}
    behaviours = events = blocked = audited = shadowed = uncertain = untold = beyond = 0
    for one in observed:
        behaviours += 1
        events += one.count
        untold += one.count * bool(one.behaviour.access & Access.UNTOLD)
        verdict = ruleset.scope(one.identity).judge(one.behaviour)
        uncertain += one.count * verdict.needs_arguments
        for said in (verdict, *verdict.shadow):
            if not said.tell:
                continue
            if said.mode in (Mode.SHADOW, Mode.BASELINE):
                shadowed += one.count
            elif said.action is Action.BLOCK and said.mode is Mode.ENFORCE:
                blocked += one.count
            else:
                audited += one.count  # an audited Block is told, not done
            key = _key(one, said)
            row = rows.get(key)
            if row is None:
                if len(rows) >= settings.rows:
                    beyond += one.count
                    continue
                row = rows[key] = _Row()
            _add(row, one, said)
        if behaviours % settings.every == 0:
            yield BacktestProgress(behaviours=behaviours, events=events, blocked=blocked, audited=audited, shadowed=shadowed,
                           uncertain=uncertain, untold=untold)  # fmt: skip
    totals = BacktestProgress(behaviours=behaviours, events=events, blocked=blocked, audited=audited, shadowed=shadowed,
                      uncertain=uncertain, untold=untold)  # fmt: skip
    finished = [_finish(key, row, settings.examples) for key, row in rows.items()]
    finished.sort(key=lambda row: (-row.count, row.workload, row.policy, row.rule.position if row.rule else ""))
    yield BacktestReport(rows=tuple(finished), totals=totals, beyond=beyond)


def _key(one: Observed, said: Verdict) -> _Key:
    operation = Operation(one.behaviour.operation).name.lower()
    return (one.identity.workload, operation, said.action.value, said.policy or "", said.rule, said.mode)


_KEPT_RESOURCES = 200
"""Resources counted per row. By feel: enough for the most frequent ones to be right."""


def _add(row: _Row, one: Observed, said: Verdict) -> None:
    row.count += one.count
    row.behaviours += 1
    row.uncertain += one.count * said.needs_arguments
    row.first = min(row.first, one.first)
    row.last = max(row.last, one.last)
    behaviour = one.behaviour
    resource = behaviour.resource or behaviour.detail
    if behaviour.address:
        resource = f"{behaviour.address}:{behaviour.port}"
    if resource in row.resources or len(row.resources) < _KEPT_RESOURCES:
        row.resources[resource] = row.resources.get(resource, 0) + one.count


def _finish(key: _Key, row: _Row, examples: int) -> BacktestRow:
    workload, operation, action, policy, rule, mode = key
    frequent = sorted(row.resources.items(), key=lambda item: (-item[1], item[0]))[:examples]
    return BacktestRow(
        workload=workload,
        operation=operation,
        action=action,
        policy=policy,
        rule=rule,
        mode=mode,
        count=row.count,
        behaviours=row.behaviours,
        uncertain=row.uncertain,
        first=row.first,
        last=row.last,
        resources=tuple(frequent),
    )
