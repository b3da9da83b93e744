# SPDX-License-Identifier: Apache-2.0
"""The kernel's matcher against the judge, on policies and behaviours made from a seed: what one stops the other blocks.

A case is policies and one behaviour as plain JSON, so that a disagreement is cut down and kept as a file (`cases/agreement-*.json`)
that every `make test` asks again. Where every rule of a table is carried both must say the same; where one was refused, the
kernel must not stop what the judge lets pass. Neighbours: `agreement_cases` (what is made), `matcher` (the kernel's side), `fuzz` and
`test_agreement` (who run it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from agreement_cases import LABELS, Case, cases
from matcher import Matcher, asked_as

from policy.kernel_plan import plan_scope
from policy.parse import parse
from policy.ruleset import PostureSettings, Scope, compile_ruleset
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Access, Backend, Class, Operation
from schemas.verdict import DEFAULT_POSTURE, Action


class Both:
    """Judge and kernel under the policies of a case. Not for two threads at once."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher
        self.stopped = False
        """What the kernel said last."""

    def scope(self, case: Case) -> tuple[Scope, set[Class]]:
        """What judges, and the classes of which every rule is in the kernel's table."""
        text = "\n---\n".join(json.dumps(one, ensure_ascii=False) for one in case["policies"])
        parsed = parse(text, "case.yaml")
        wrong = [one for one in parsed.diagnostics if one.level == "error"]
        if wrong:
            raise ValueError(f"a case's policies are refused: {wrong[0]}")
        postures = PostureSettings(
            **{f"{prefix}{name}": word for name, word in case["postures"].items() for prefix in ("", "host_")}
        )
        host = all(one["kind"] == "KubeArmorNetworkPolicy" for one in case["policies"])
        ruleset = compile_ruleset(parsed.policies, postures)
        who = Identity(
            kind=Kind.HOST if host else Kind.CONTAINER, node="n", uid="u", cgroups=(7,), cgroup_path="/u", namespace="" if host else "shop",
            labels={} if host else LABELS, node_labels=LABELS if host else {},
        )  # fmt: skip
        scope = ruleset.scope(who)
        plan, refused = plan_scope(scope, who, backends=(Backend.BPF_LSM,))
        self._matcher.clear()
        part = self._matcher.fill(1, plan)
        left: set[Class] = set()
        rules = {rule.ref: rule.class_ for rule in scope.rules}
        for one in (*refused, *part.refused, *part.partial):
            left |= set(Class) if one.ref.policy == DEFAULT_POSTURE else {rules.get(one.ref, Class.NETWORK)}
        return scope, set(Class) - left

    def differ(self, scope: Scope, whole: set[Class], event: dict[str, Any]) -> str:
        """How judge and kernel disagree on `event`; "" when they do not."""
        behaviour = Behaviour(
            **event
            | {
                "operation": Operation(event["operation"]),
                "access": Access(event.get("access", 0)),
                "enforcer": Backend(event["enforcer"]),
                "args": tuple(event.get("args", (0, 0))),
            }
        )
        verdict = scope.judge(behaviour)
        judge = verdict.action is Action.BLOCK
        kernel = self.stopped = self._matcher.stops(1, behaviour)
        if kernel == judge or (judge and asked_as(behaviour.operation) not in whole):
            return ""
        return (
            f"the judge says {verdict.action.name} by {verdict.policy}, the kernel {'stops' if kernel else 'lets pass'}"
        )

    def disagreement(self, case: Case) -> str:
        """The same of a whole case."""
        scope, whole = self.scope(case)
        return self.differ(scope, whole, case["event"])


def shrunk(case: Case, fails: Callable[[Case], bool]) -> Case:
    """`case` with every policy, list entry and field left out that the disagreement does not need."""
    again = True
    while again:
        again = False
        for smaller in _smaller(case):
            try:
                if not fails(smaller):
                    continue
            except ValueError:  # no policy any more
                continue
            case, again = smaller, True
            break
    return case


def _smaller(case: Case) -> Iterator[Case]:
    def without(value: Any, keep: frozenset[str]) -> Iterator[Any]:
        if isinstance(value, list):
            for at in range(len(value)):
                if len(value) > 1:
                    yield value[:at] + value[at + 1 :]
                for inner in without(value[at], keep):
                    yield [*value[:at], inner, *value[at + 1 :]]
        elif isinstance(value, dict):
            for name, inner in value.items():
                if name not in keep:
                    yield {other: one for other, one in value.items() if other != name}
                for made in without(inner, keep):
                    yield value | {name: made}

    keep = frozenset(
        {
            "apiVersion",
            "kind",
            "metadata",
            "spec",
            "selector",
            "nodeSelector",
            "action",
            "path",
            "dir",
            "pattern",
            "protocol",
        }
    )
    for policies in without(case["policies"], keep):
        yield case | {"policies": policies}
    for name in case["event"].keys() - {"operation", "enforcer", "family", "socket_type"}:
        yield case | {"event": {other: one for other, one in case["event"].items() if other != name}}
    for path in ("resource", "resource2"):
        parts = case["event"].get(path, "").split("/")
        if len(parts) > 3:
            old = case["event"][path]
            new = old.replace("/" + parts[1], "", 1)
            text = json.dumps(case, ensure_ascii=False).replace("/" + parts[1], "")
            if new:
                yield json.loads(text)


class Compared(NamedTuple):
    """`asked`: pairs; `stopped`: of them by the kernel; `whole`: where both had to say the same; `found`: what differed, cut down."""

    asked: int
    stopped: int
    whole: int
    found: list[tuple[Case, str]]


def compare(matcher: Matcher, seed: int, pairs: int) -> Compared:
    """Pairs of `seed`; ends at the fifth disagreement."""
    both = Both(matcher)
    asked = stopped = exact = 0
    found: list[tuple[Case, str]] = []
    for case, events in cases(seed):
        scope, whole = both.scope(case)
        for event in events:
            why = both.differ(scope, whole, event)
            asked += 1
            stopped += both.stopped
            exact += asked_as(Operation(event["operation"])) in whole
            if why:
                small = shrunk(case | {"event": event}, lambda one: bool(both.disagreement(one)))
                found.append((small, both.disagreement(small)))
                break
        if asked >= pairs or len(found) >= 5:
            return Compared(asked, stopped, exact, found)
    raise AssertionError("cases end never")
