# SPDX-License-Identifier: Apache-2.0
"""Very many documents, paths and twins: time grows with their number, not its square, and counting goes before writing."""

from __future__ import annotations

import time

import pytest

from enforcers import networks
from enforcers.plan import Planner
from policy.kernel_plan import ENTRIES, entries
from policy.parse import parse
from policy.ruleset import Ruleset, compile_ruleset
from policy.tools.lint import lint
from schemas.enforcement import NetworkRule
from schemas.identity import Identity, Kind
from schemas.operations import Backend
from schemas.verdict import Action, RuleRef

HEAD = (
    "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: t, namespace: d}\nspec:\n"
    "  selector: {matchLabels: {app: web}}\n  file:\n"
)


def ruleset(text: str) -> Ruleset:
    parsed = parse(text, "x.yaml")
    assert parsed.ok, parsed.diagnostics[:3]
    return compile_ruleset(parsed.policies)


def seconds(text: str) -> float:
    made = ruleset(text)
    started = time.process_time()
    lint(made)
    return time.process_time() - started


def twins(count: int) -> str:
    return HEAD + "    matchPaths:\n" + "    - path: /etc/x\n" * count + "  action: Block\n"


def contradicting(count: int) -> str:
    each = "".join(f"    - {{path: /etc/x, action: {'Allow' if number % 2 else 'Block'}}}\n" for number in range(count))
    return HEAD + "    matchPaths:\n" + each


def covered(count: int) -> str:
    return (
        HEAD + "    matchDirectories:\n" + "".join(f"    - {{dir: /srv/a{n}/, recursive: true}}\n" for n in range(count))
        + "    matchPatterns:\n" + "".join(f"    - {{pattern: /srv/a{n}/**}}\n" for n in range(count)) + "  action: Block\n"
    )  # fmt: skip


@pytest.mark.parametrize("made", [twins, contradicting, covered])
def test_lint_grows_with_the_number_of_rules_not_its_square(made) -> None:  # type: ignore[no-untyped-def]
    # 4000 twins are 16 million pairs.
    assert seconds(made(4000)) < 10


def test_every_twin_is_named_once_beside_the_first() -> None:
    found = [one for one in lint(ruleset(twins(5))) if one.code == "L103"]
    assert [(one.rule.index, one.other.index if one.other else -1) for one in found] == [(n, 0) for n in range(1, 5)]
    against = [one for one in lint(ruleset(contradicting(6))) if one.code == "L102"]
    assert [(one.rule.index, one.other.index if one.other else -1) for one in against] == [(1, 0), (3, 0), (5, 0)]
    assert len([one for one in lint(ruleset(covered(5))) if one.code == "L101"]) == 5


def network_policy(count: int, ranges: int) -> str:
    nets = "".join(f"    - {{ipBlock: {{cidr: 10.{n // 250}.{n % 250}.0/24}}}}\n" for n in range(count))
    ports = "".join(
        f"    - {{port: '{1 + n * 1000}', endPort: {n * 1000 + 900}, protocol: TCP}}\n" for n in range(ranges)
    )
    return (
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorNetworkPolicy\nmetadata: {name: wide}\nspec:\n"
        "  nodeSelector: {matchLabels: {kubernetes.io/hostname: '*'}}\n  egress:\n  - to:\n" + nets
        + "    ports:\n" + ports + "  action: Block\n"
    )  # fmt: skip


def test_ranges_of_ports_times_networks_are_counted_before_they_are_written() -> None:
    """60 ranges of 900 ports and 2,000 networks would be 216 million entries."""
    made = ruleset(network_policy(2000, 60))
    (rule,) = [rule for policy in made.policies for rule in policy.rules]
    assert entries(rule) == 2 * 2000 * 60 * 900
    node = Identity(kind=Kind.NODE, node="n", uid="n", node_labels={"kubernetes.io/hostname": "n"})
    host = Identity(
        kind=Kind.HOST, node="n", uid="h", cgroups=(5,), cgroup_path="/x", node_labels={"kubernetes.io/hostname": "n"}
    )
    from enforcers.plan import PlanSettings

    started = time.process_time()
    plan = Planner(made, PlanSettings(host_cgroups=("/x",))).plan("n", [node, host], 1)
    assert time.process_time() - started < 5
    assert any("entries of the kernel's table" in one.reason for one in plan.refused), plan.refused
    assert not any(scope.network for scope in plan.scopes)
    assert entries(next(r for p in ruleset(network_policy(2, 1)).policies for r in p.rules)) <= ENTRIES


def test_a_workload_s_entries_are_counted_too() -> None:
    ref = RuleRef("p", "KubeArmorNetworkPolicy")
    rules = [
        NetworkRule(protocol="tcp", cidr=f"10.0.{n}.0/24", port=1000, end_port=2000, action=Action.BLOCK, ref=ref) for n in range(200)
    ]  # fmt: skip
    made, refused, _ = networks.encode(rules, lambda text: 1, Backend.CGROUP, "u")
    assert len(made) <= networks.ENTRIES
    assert refused
    assert "in the table already" in refused[0].reason
