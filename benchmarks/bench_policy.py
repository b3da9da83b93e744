# SPDX-License-Identifier: Apache-2.0
"""The policy engine: compile 1,000 policies against 500 containers; judge cost against the number of rules; all-new behaviours.

`run(scale)` gives `{name: {"value", "unit", "n", "how"}}`; scale 1 is the full size, a small one a smoke test. Pure CPU on
one core; decoding is measured elsewhere. Best of five rounds where a round takes milliseconds. A judged behaviour goes through
every hot file: policy.judge.sources, policy.match.automata, policy.judge.precedence, policy.judge.judge, policy.judge.paths, policy.judge.presets, policy.judge.sockets.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from policy.parse import parse
from policy.ruleset import Ruleset, compile_ruleset
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation
from schemas.policy import PolicyDocument

APPS = 50
_POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: p{number}, namespace: ns{namespace}}}
spec:
  severity: 5
  action: {action}
  selector: {{matchLabels: {{app: app{app}}}}}
  process:
    matchPaths: [{{path: /usr/bin/tool{number}}}, {{execname: shell{number}}}]
    matchDirectories: [{{dir: /opt/app{number}/, recursive: true}}]
  file:
    matchPaths: [{{path: /etc/conf{number}, readOnly: true}}, {{path: /run/secrets/s{number}, fromSource: [{{path: /usr/bin/x{number}}}]}}]
    matchDirectories: [{{dir: /srv/data{number}/}}]
    matchPatterns: [{{pattern: "/home/*/proj{number}/**/*.key"}}]
  network:
    matchProtocols: [{{protocol: raw}}]
"""
_SHAPES = (
    "/usr/lib/python3/dist-packages/mod{}.py",
    "/home/alice/proj{}/src/x.py",
    "/srv/data{}/a/b",
    "/etc/conf{}.d",
    "/tmp/work/file{}.txt",
    "/var/log/app/{}.log",
)


def run(scale: float) -> dict[str, dict[str, Any]]:
    """The figures; `scale` 1.0 is what the issue asks for."""
    found: dict[str, dict[str, Any]] = {}
    _compile(found, max(1, int(1000 * scale)), max(1, int(500 * scale)))
    behaviours = _behaviours(max(100, int(20_000 * scale)))
    cost: dict[int, float] = {}
    for rules in (10, 100, 1_000, 10_000):
        ruleset = _one_scope(max(1, rules // 8))
        scope = ruleset.scope(_container(0))
        for behaviour in behaviours:
            scope.judge(behaviour)
        cost[rules] = _best(lambda judge=scope.judge: [judge(behaviour) for behaviour in behaviours]) / len(behaviours)
        found[f"policy.judge_{rules}_rules"] = _figure(
            cost[rules] * 1e6, "us/behaviour", len(behaviours), "all different"
        )
    found["policy.judge_growth"] = _figure(cost[10_000] / cost[10], "x", len(behaviours), "10,000 rules against 10")
    found["policy.judge_all_new"] = _figure(1 / cost[1_000], "behaviours/s", len(behaviours), "1,000 rules, one core")
    ruleset = _one_scope(125)
    identities = [_container(0) for _ in range(len(behaviours))]
    ruleset.scope(identities[0])
    seconds = _best(lambda: [ruleset.scope(identity) for identity in identities])
    found["policy.scope_hit"] = _figure(seconds / len(identities) * 1e6, "us", len(identities), "identity known")
    return found


def _compile(found: dict[str, dict[str, Any]], policies: int, containers: int) -> None:
    text = "---".join(_policy(number) for number in range(policies))
    started = time.perf_counter()
    documents = parse(text, "bench").policies
    parsed = time.perf_counter()
    ruleset = compile_ruleset(documents)
    compiled = time.perf_counter()
    identities = [_container(number) for number in range(containers)]
    scopes = {id(ruleset.scope(identity)) for identity in identities}
    ended = time.perf_counter()
    found["policy.parse"] = _figure((parsed - started) / policies * 1e3, "ms/policy", policies, "YAML to documents")
    found["policy.compile"] = _figure((ended - parsed) * 1e3, "ms", policies, f"{policies} policies, {containers} containers, {len(scopes)} scopes")  # fmt: skip
    found["policy.ruleset"] = _figure((compiled - parsed) * 1e3, "ms", policies, "documents to ruleset")


def _policy(number: int) -> str:
    action = ("Block", "Audit", "Allow")[number % 3] if number % 7 == 0 else "Block"
    return _POLICY.format(number=number, namespace=number % 10, app=number % APPS, action=action)


def _one_scope(policies: int) -> Ruleset:
    """A ruleset whose policies are all for one workload: eight rules each."""
    text = "---".join(_POLICY.format(number=number, namespace=0, app=0, action="Block") for number in range(policies))
    documents: tuple[PolicyDocument, ...] = parse(text, "bench").policies
    return compile_ruleset(documents)


def _container(number: int) -> Identity:
    return Identity(
        kind=Kind.CONTAINER,
        node="n",
        uid=f"u{number}",
        container_name="main",
        namespace=f"ns{number % 10}",
        pod=f"pod-{number}",
        labels={"app": f"app{number % APPS}", "pod-template-hash": str(number)},
        orchestrated=True,
    )


def _behaviours(count: int) -> list[Behaviour]:
    chance = random.Random(7)
    return [
        Behaviour(
            operation=Operation.EXEC if number % 4 == 0 else Operation.OPEN,
            access=Access.READ,
            executable="/usr/bin/python3",
            parent="/bin/sh",
            resource=chance.choice(_SHAPES).format(number + 1_000_000),
            uid=number % 3,
        )
        for number in range(count)
    ]


def _best(round_: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        round_()
        best = min(best, time.perf_counter() - started)
    return best


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}


if __name__ == "__main__":
    print(json.dumps(run(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0), indent=2))
