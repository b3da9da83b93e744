# SPDX-License-Identifier: Apache-2.0
"""The set of policies: what is deleted, unread, absent or older is told apart from what nobody wants any more."""

from __future__ import annotations

import json

import msgspec
import pytest

from policy.documents import from_json, to_json
from policy.policy_set import PolicySet
from schemas.enforcement import Plan, digest
from schemas.errors import Refused

A, B = b"KubeArmorPolicy/shop/a", b"KubeArmorPolicy/shop/b"
MS = 1_000_000


def value(name: str, action: str = "Block") -> bytes:
    spec = {"selector": {"matchLabels": {"app": "web"}}, "file": {"matchPaths": [{"path": "/x"}]}, "action": action}
    text = json.dumps(
        {
            "apiVersion": "security.kubearmor.com/v1",
            "kind": "KubeArmorPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": spec,
        }
    )
    # As `hauberk apply` publishes it.
    return to_json(from_json(text.encode()))


def plan(*keys: bytes, at: int = 0) -> Plan:
    names = tuple(key.decode() for key in keys)
    return Plan(node="n", generation=1, digest=digest(()), scopes=(), policies=names, created_ns=at * MS)


@pytest.fixture
def refused() -> list[Exception]:
    return []


@pytest.fixture
def policies(refused: list[Exception]) -> PolicySet[int]:
    made = PolicySet(len, refused.append)
    assert made.whole([(A, value("a"), 10), (B, value("b"), 20)], ())
    return made


def test_a_whole_set_holds_nothing(policies: PolicySet[int]) -> None:
    assert (policies.compile(), policies.newest_ns, policies.went_back) == (2, 20 * MS, False)
    assert policies.lost(plan(A, B, at=20)) == ""
    assert not policies.take([(A, value("a"), 30)]), "the same again is no news"


def test_a_deletion_is_no_loss(policies: PolicySet[int]) -> None:
    assert policies.take([(A, None, 30)])
    assert policies.lost(plan(A, B, at=20)) == ""
    assert policies.compile() == 1


def test_what_cannot_be_read_leaves_the_one_before_it(policies: PolicySet[int], refused: list[Exception]) -> None:
    assert not policies.take([(A, b"{", 30)])
    assert len(refused) == 1
    assert policies.compile() == 2
    assert policies.lost(plan(A, B)) == ""
    assert "cannot be read: KubeArmorPolicy/shop/a" in policies.lost(plan(A, B), on_bus=True)
    assert not policies.take([(A, value("a"), 40)])
    assert policies.lost(plan(A, B), on_bus=True) == ""


def test_what_vanished_is_remembered_until_the_set_is_known_to_be_whole(policies: PolicySet[int]) -> None:
    assert not policies.whole([(B, value("b"), 20)], {A})
    assert policies.compile() == 2
    assert policies.lost(plan(A, B)) == ""
    assert "are missing, and were not deleted: KubeArmorPolicy/shop/a" in policies.lost(plan(A, B), on_bus=True)
    assert policies.take([(A, value("a"), 30)]), "that it is back is news, or who applied it waits for ever"
    assert policies.newest_ns == 30 * MS
    assert policies.lost(plan(A, B), on_bus=True) == ""
    assert not policies.drop_absent()
    policies.whole([(B, value("b"), 20)], {A})
    assert policies.drop_absent()
    assert policies.compile() == 1
    assert policies.lost(plan(A, B)) != ""


def test_a_log_that_went_back_is_older_than_the_plans(policies: PolicySet[int]) -> None:
    policies.whole([(A, value("a"), 10), (B, value("b", "Audit"), 15)], ())
    assert policies.went_back
    assert "older than the plan" in policies.lost(plan(A, B, at=20), on_bus=True)
    assert "older than the plan" in policies.lost(plan(A, B, at=21))


def test_a_deletion_whose_tombstone_is_swept_is_no_loss(policies: PolicySet[int]) -> None:
    """Or a planner that is started a day after somebody deleted a policy holds every plan for ever."""
    policies.take([(A, None, 30)])
    made = msgspec.structs.replace(plan(B, at=30), policy_set=policies.mark)
    anew = PolicySet(len, lambda error: None)
    anew.whole([(B, value("b"), 20)], ())
    assert anew.lost(made) == anew.lost(made, on_bus=True) == ""
    anew.take([(B, value("b", "Audit"), 25)])
    assert "older than the plan" in anew.lost(made)


def test_whatever_the_compiler_raises_is_refused() -> None:
    def broken(documents: object) -> int:
        raise KeyError("a bug")

    with pytest.raises(Refused, match="KeyError"):
        PolicySet(broken, lambda error: None).compile()
