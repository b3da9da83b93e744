# SPDX-License-Identifier: Apache-2.0
"""Identities and facts come in any order, and the joined identity is the same."""

from __future__ import annotations

import random

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from policy.cluster_facts import ClusterFacts
from schemas.cluster import Fact, NamespaceFact, NodeFact, PodFact, encode
from schemas.identity import Identity, Kind, Owner

TOLD = Identity(
    kind=Kind.CONTAINER, node="n1", uid="c1", namespace="shop", pod="web-1", pod_uid="u1", labels={"app": "old"},
    container_name="web", orchestrated=True,
)  # fmt: skip
NODE = Identity(kind=Kind.NODE, node="n1", uid="n1")
POD = PodFact(
    uid="u1", namespace="shop", name="web-1", node="n1", labels={"app": "web"}, annotations={"a": "b"},
    owner=Owner("Deployment", "web", "shop"),
)  # fmt: skip
NAMESPACE = NamespaceFact(name="shop", annotations={"kubearmor-file-posture": "block"})
HOST = NodeFact(name="n1", labels={"zone": "a"})
FACTS: tuple[Fact, ...] = (POD, NAMESPACE, HOST)
JOINED = msgspec.structs.replace(
    TOLD, labels={"app": "web"}, annotations={"a": "b"}, owner=Owner("Deployment", "web", "shop"),
    namespace_annotations={"kubearmor-file-posture": "block"}, node_labels={"zone": "a"},
)  # fmt: skip


def put(facts: ClusterFacts, known: dict[bytes, Identity], thing: Identity | Fact) -> None:
    if isinstance(thing, Identity):
        joined = facts.identity(thing.key, thing)
        assert joined is not None
        known[thing.key] = joined
    else:
        known.update(facts.fact(thing.key, encode(thing)))


@given(st.permutations([TOLD, NODE, *FACTS]))
def test_the_order_does_not_matter(things: list[Identity | Fact]) -> None:
    facts, known = ClusterFacts(), {}
    for thing in things:
        put(facts, known, thing)
    assert known[TOLD.key] == JOINED
    assert known[NODE.key].node_labels == {"zone": "a"}


def test_what_is_said_on_a_node_counts_for_its_services_and_for_no_container() -> None:
    facts: ClusterFacts = ClusterFacts()
    known: dict[bytes, Identity] = {}
    service = Identity(kind=Kind.HOST, node="n1", uid="h1", cgroup_path="/system.slice/ssh.service")
    said = {"kubearmor-policy": "audited", "kubearmor-visibility": "process"}
    for thing in (TOLD, NODE, service, *FACTS, NodeFact(name="n1", annotations=said)):
        put(facts, known, thing)
    assert known[NODE.key].annotations == known[service.key].annotations == said
    assert known[TOLD.key].annotations == POD.annotations


def test_a_fact_told_again_changes_nothing() -> None:
    facts: ClusterFacts = ClusterFacts()
    known: dict[bytes, Identity] = {}
    for thing in (TOLD, NODE, *FACTS):
        put(facts, known, thing)
    assert [facts.fact(one.key, encode(one)) for one in FACTS] == [[], [], []]


def test_a_label_that_changes_reaches_the_containers_of_the_pod_and_no_others() -> None:
    facts: ClusterFacts = ClusterFacts()
    known: dict[bytes, Identity] = {}
    other = msgspec.structs.replace(TOLD, uid="c2", pod_uid="u2")
    for thing in (TOLD, other, *FACTS):
        put(facts, known, thing)
    changed = facts.fact(POD.key, encode(msgspec.structs.replace(POD, labels={"app": "new"})))
    assert [(key, one.labels) for key, one in changed] == [(TOLD.key, {"app": "new"})]


def test_a_pod_that_is_gone_stays_what_it_was_until_its_containers_end() -> None:
    facts: ClusterFacts = ClusterFacts()
    known: dict[bytes, Identity] = {}
    for thing in (TOLD, *FACTS):
        put(facts, known, thing)
    assert facts.fact(POD.key, None) == []
    again = facts.identity(TOLD.key, TOLD)
    assert again is not None
    assert again.labels == {"app": "web"}
    facts.identity(TOLD.key, None)
    assert len(facts) == 2, "the pod's fact went with its last container"


def test_a_fact_without_containers_is_forgotten_with_its_tombstone() -> None:
    facts = ClusterFacts()
    for one in FACTS:
        facts.fact(one.key, encode(one))
        facts.fact(one.key, None)
    assert len(facts) == 0
    assert facts.fact(b"pod/unknown", None) == []


def test_a_node_cannot_borrow_the_labels_of_a_pod_that_runs_elsewhere() -> None:
    for lie in ({"node": "n2"}, {"namespace": "other"}):
        facts: ClusterFacts = ClusterFacts()
        known: dict[bytes, Identity] = {}
        liar = msgspec.structs.replace(TOLD, **lie)
        for thing in (liar, *FACTS):
            put(facts, known, thing)
        assert known[liar.key].labels == {"app": "old"}
        assert known[liar.key].owner == Owner()


def test_many_containers_come_and_go_and_nothing_is_left() -> None:
    facts: ClusterFacts = ClusterFacts()
    known: dict[bytes, Identity] = {}
    rng = random.Random(7)
    containers = [msgspec.structs.replace(TOLD, uid=f"c{n}", pod_uid=f"u{n % 20}") for n in range(200)]
    pods = [msgspec.structs.replace(POD, uid=f"u{n}") for n in range(20)]
    for thing in rng.sample([*containers, *pods], 220):
        put(facts, known, thing)
    assert {one.owner.name for one in known.values()} == {"web"}
    for pod in rng.sample(pods, 20):
        facts.fact(pod.key, None)
    for one in rng.sample(containers, 200):
        assert facts.identity(one.key, None) is None
    assert len(facts) == 0
    assert facts._concerned == {}
    assert facts._told == {}
