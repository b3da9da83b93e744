# SPDX-License-Identifier: Apache-2.0
"""Hits of rules: counted by rule, shadow apart, occurrences and not alerts, and of policies of one name each its own."""

from __future__ import annotations

import json

from hauberk.rule_hits import HitCount, PolicyHits
from policy.parse import parse
from policy.rules.normalise import normalise
from schemas.rules import Policy

TEXT = """\
apiVersion: security.kubearmor.com/v1
kind: {kind}
metadata: {{name: p{namespace}}}
spec:
  {selector}
  process:
    matchPaths:
    - path: /bin/a
    - path: /bin/b
  network:
    matchProtocols:
    - protocol: "tcp, udp"
  action: Block
"""
FIRST, SECOND, BOTH = "spec.process.matchPaths[0]", "spec.process.matchPaths[1]", "spec.network.matchProtocols[0]"


def policy(kind: str = "KubeArmorPolicy", namespace: str = "") -> Policy:
    selector = "nodeSelector: {}" if kind == "KubeArmorHostPolicy" else "selector: {matchLabels: {app: web}}"
    parsed = parse(
        TEXT.format(kind=kind, namespace=f", namespace: {namespace}" if namespace else "", selector=selector), "p"
    )
    assert parsed.ok, parsed.diagnostics
    return normalise(parsed.policies[0])


def alert(rule: str, type_: str = "MatchedPolicy", **fields: object) -> bytes:
    return json.dumps(
        {"PolicyName": "p", "Type": type_, "Rule": rule, "UpdatedTime": "2026-01-01T00:00:00Z"} | fields
    ).encode()


def count(policies: list[Policy], alerts: list[bytes]) -> dict[str, PolicyHits]:
    counted = HitCount(policies)
    for one in alerts:
        counted.count(one)
    return counted.found


def test_each_rule_has_its_own_count_and_one_never_hit_is_shown() -> None:
    found = count([policy(namespace="demo")], [alert(FIRST, Count=3), alert(FIRST), alert(BOTH, Suppressed=40)])
    hits = found["KubeArmorPolicy/demo/p"]
    assert {row.rule: row.hits for row in hits.rules} == {FIRST: 4, SECOND: 0, BOTH: 1}
    assert (hits.hits, hits.suppressed) == (5, 40)
    assert next(row.match for row in hits.rules if row.rule == BOTH) == "tcp, udp"


def test_drift_is_of_the_policy_and_of_no_rule() -> None:
    hits = count([policy(namespace="demo")], [alert(FIRST, Mode="baseline"), alert("", Mode="baseline")])
    mine = hits["KubeArmorPolicy/demo/p"]
    assert (mine.hits, mine.shadow, mine.drift) == (0, 0, 2)
    assert not any(row.hits or row.shadow for row in mine.rules)


def test_shadow_hits_stand_apart() -> None:
    hits = count([policy(namespace="demo")], [alert(FIRST, Mode="shadow"), alert(FIRST)])["KubeArmorPolicy/demo/p"]
    assert (hits.hits, hits.shadow) == (1, 1)
    assert (hits.rules[0].hits, hits.rules[0].shadow) == (1, 1)


def test_policies_of_one_name_are_told_apart() -> None:
    known = [policy(namespace="one"), policy(namespace="two"), policy("KubeArmorHostPolicy")]
    found = count(
        known, [alert(FIRST, NamespaceName="two"), alert(SECOND, "MatchedHostPolicy"), alert(FIRST, PolicyName="gone")]
    )
    assert {key: hits.hits for key, hits in found.items()} == {
        "KubeArmorPolicy/one/p": 0, "KubeArmorPolicy/two/p": 1, "KubeArmorHostPolicy//p": 1,
    }  # fmt: skip


def test_what_was_throttled_counts_once_and_is_no_hit() -> None:
    told = [alert("", "SystemEvent", Suppressed=9), alert("spec.gone[0]")]
    hits = count([policy(namespace="demo")], told)["KubeArmorPolicy/demo/p"]
    assert (hits.hits, hits.suppressed) == (1, 9)
    assert all(row.hits == 0 for row in hits.rules)
