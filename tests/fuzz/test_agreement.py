# SPDX-License-Identifier: Apache-2.0
"""The kernel's matcher and the judge on 20,000 generated pairs of policies and behaviours, and every case that once differed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import agreement
from matcher import Matcher, compile_matcher, forgotten, questions

from enforcers.bpf_lsm import LsmEnforcer
from schemas.behaviour import Behaviour
from schemas.enforcement import PathRule, ScopePlan
from schemas.errors import MissingDependency, PermissionMissing
from schemas.operations import Access, Backend, Class, Operation
from schemas.verdict import Action, RuleRef

pytestmark = pytest.mark.kernel
PAIRS = 20_000
CASES = sorted((Path(__file__).parent / "cases").glob("agreement-*.json"))


@pytest.fixture(scope="module")
def matcher() -> Iterator[Matcher]:
    if os.geteuid() != 0:
        pytest.skip("needs root: runs a BPF program")
    try:
        made = Matcher(compile_matcher())
    except (PermissionMissing, MissingDependency) as error:
        pytest.skip(f"needs BPF: {error}")
    yield made
    made.close()


def test_they_agree_on_generated_pairs(matcher: Matcher) -> None:
    said = agreement.compare(matcher, seed=1, pairs=PAIRS)
    assert not said.found, "\n".join(f"{why}: {json.dumps(case, ensure_ascii=False)}" for case, why in said.found)
    assert said.asked >= PAIRS
    assert said.stopped > PAIRS // 8, "many are stopped"
    assert said.whole > PAIRS * 3 // 4, "of most every rule is in the kernel"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_once_differed(matcher: Matcher, path: Path) -> None:
    assert agreement.Both(matcher).disagreement(json.loads(path.read_text())) == ""


@pytest.mark.parametrize("closed", [True, False])
def test_who_is_not_known_any_more_is_anybody_of_a_rule_or_nobody(
    matcher: Matcher, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    """A script whose path the hooks have forgotten: nothing that runs can tell it."""
    monkeypatch.setattr(matcher, "_encoder", LsmEnforcer("/nowhere", closed=closed))

    def rule(path: str, action: Action) -> PathRule:
        return PathRule(
            cls=Class.FILE, match="path", value=path, source="/opt/*", source_match="pattern", action=action, ref=RuleRef("p")
        )  # fmt: skip

    scope = ScopePlan(uid="u", cgroups=(1,), paths=(rule("/secret", Action.BLOCK), rule("/free", Action.ALLOW)))
    matcher.clear()
    matcher.fill(1, scope)

    def stops(path: str, script: str, known: bool) -> bool:
        behaviour = Behaviour(
            operation=Operation.OPEN, access=Access.READ, resource=path, executable="/bin/sh", script=script
        )
        (asked,) = questions(1, behaviour)
        return matcher.ask(asked if known else forgotten(asked))

    assert stops("/secret", "/srv/script", known=False) is closed
    assert not stops("/free", "/srv/script", known=False)
    assert not stops("/secret", "/srv/other", known=True)
    assert stops("/secret", "/opt/script", known=True)
    assert stops("/secret", "/opt/script", known=False), "it was heard of"


def test_a_disagreement_is_found_and_cut_down(matcher: Matcher) -> None:
    """A kernel that looks one rule up wrongly: the judge is asked about another path than the kernel is."""

    class Wrong:
        """Hears `/etc` where `/b` is asked about."""

        clear, fill = matcher.clear, matcher.fill

        def stops(self, table: int, behaviour: Any) -> bool:
            path = behaviour.resource.replace("/b", "/etc")
            return matcher.stops(
                table, type(behaviour)(operation=Operation.OPEN, resource=path, access=behaviour.access)
            )

    rules = [{"path": f"/{name}", "action": "Block"} for name in ("a", "b", "c")]
    spec = {"selector": {"matchLabels": agreement.LABELS}, "file": {"matchPaths": rules}, "action": "Block"}
    policy = {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": spec,
    }  # fmt: skip
    event = {
        "operation": int(Operation.OPEN),
        "enforcer": int(Backend.BPF_LSM),
        "access": 1,
        "resource": "/b",
        "uid": 1000,
    }
    both = agreement.Both(Wrong())  # type: ignore[arg-type]
    case = {"policies": [policy], "postures": {}, "event": event}
    assert "the judge says BLOCK by p, the kernel lets pass" in both.disagreement(case)
    small = agreement.shrunk(case, lambda one: bool(both.disagreement(one)))
    assert small["policies"][0]["spec"]["file"] == {"matchPaths": [{"path": "/b", "action": "Block"}]}
    assert small["event"] == {"operation": int(Operation.OPEN), "enforcer": int(Backend.BPF_LSM), "resource": "/b"}
