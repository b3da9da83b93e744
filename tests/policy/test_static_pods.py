# SPDX-License-Identifier: Apache-2.0
"""A static pod's containers carry the uid of its kubelet, the API server's mirror of it another: the two are one pod, and nobody
else's annotations make them another's."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest

from policy.cluster_facts import ClusterFacts
from policy.learn.network.directory import Directory
from policy.learn.network.flows import flows
from policy.learn.sightings import Sighting
from policy.learn.workloads import workload
from schemas.behaviour import Behaviour
from schemas.cluster import Fact, NodeFact, PodFact, ServiceFact, encode
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Access, Operation

HASH = "4b8c4f2a9f0d4c6e8a1b3c5d7e9f0a1b"
ETCD = Identity(
    kind=Kind.CONTAINER, node="cp-1", uid="c1", namespace="kube-system", pod="etcd-cp-1", pod_uid=HASH, container_name="etcd",
    labels={"said": "by the node"}, orchestrated=True,
)  # fmt: skip
MIRROR = PodFact(
    uid="8d2f6c9e-0000-4000-8000-000000000001", namespace="kube-system", name="etcd-cp-1", node="cp-1", labels={"component": "etcd"},
    annotations={"kubearmor-policy": "audited"}, owner=Owner("Node", "cp-1", ""), host_network=True, started=100.0, static_uid=HASH,
)  # fmt: skip
AGAIN = msgspec.structs.replace(
    MIRROR, uid="8d2f6c9e-0000-4000-8000-000000000002", labels={"component": "new"}, started=300.0
)


def joined(*things: Identity | Fact, of: Identity = ETCD) -> Identity:
    """What `of` is after `things` were told, in that order."""
    facts = ClusterFacts()
    known: dict[bytes, Identity] = {}
    for thing in things:
        if isinstance(thing, Identity):
            one = facts.identity(thing.key, thing)
            assert one is not None
            known[thing.key] = one
        else:
            known.update(facts.fact(thing.key, encode(thing)))
    return known[of.key]


def ended(pod: PodFact, at: float) -> PodFact:
    return msgspec.structs.replace(pod, ended=at)


@pytest.mark.parametrize("things", list(itertools.permutations([ETCD, MIRROR])), ids=["before", "after"])
def test_its_containers_are_those_of_its_mirror(things: tuple[Identity | Fact, ...]) -> None:
    one = joined(*things)
    assert (one.labels, one.annotations, one.owner) == (MIRROR.labels, MIRROR.annotations, Owner("Node", "cp-1", ""))


@pytest.mark.parametrize("things", list(itertools.permutations([ETCD, ended(MIRROR, 290.0), AGAIN])))
def test_a_mirror_that_was_made_anew_is_the_one_that_counts(things: tuple[Identity | Fact, ...]) -> None:
    assert joined(*things).labels == {"component": "new"}


def test_while_there_is_no_mirror_it_stays_what_it_was() -> None:
    """`kubectl delete pod etcd-cp-1` deletes the mirror, and the kubelet makes another: the container runs on."""
    facts = ClusterFacts()
    facts.identity(ETCD.key, ETCD)
    facts.fact(MIRROR.key, encode(MIRROR))
    assert facts.fact(MIRROR.key, encode(ended(MIRROR, 290.0))) == []
    assert facts.fact(MIRROR.key, None) == []
    again = facts.identity(ETCD.key, ETCD)
    assert again is not None
    assert again.labels == MIRROR.labels
    assert [one.labels for _, one in facts.fact(AGAIN.key, encode(AGAIN))] == [{"component": "new"}]
    assert len(facts) == 1, "the mirror before it is not kept any longer"
    facts.fact(AGAIN.key, None)
    facts.identity(ETCD.key, None)
    assert (len(facts), facts._concerned, facts._pods._mirrors) == (0, {}, {})


ORDINARY = msgspec.structs.replace(
    ETCD, uid="c2", namespace="shop", pod="web-1", pod_uid="0b7c2d1e-1111-4222-8333-444455556666"
)
WEB = PodFact(uid=ORDINARY.pod_uid, namespace="shop", name="web-1", node="cp-1", labels={"app": "web"}, started=50.0)


@pytest.mark.parametrize(
    "other", [{"namespace": "evil"}, {"name": "mine"}, {"node": "cp-2"}, {"static_uid": "0" * 32}], ids=str
)
def test_a_pod_that_only_names_the_hash_is_not_it(other: dict[str, Any]) -> None:
    """Who may make pods may write any annotation and any owner."""
    forged = msgspec.structs.replace(MIRROR, uid="f", labels={"component": "forged"}, **other)
    assert joined(ETCD, forged).labels == ETCD.labels
    assert joined(ETCD, forged, MIRROR).labels == MIRROR.labels
    assert joined(MIRROR, forged, ETCD).labels == MIRROR.labels


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_a_pod_that_names_another_pods_uid_takes_nothing_of_it(order: tuple[int, ...]) -> None:
    """Neither from a container whose own pod is known, nor from one whose pod is not known yet or no more."""
    forged = msgspec.structs.replace(
        MIRROR,
        uid="f",
        namespace="shop",
        name="web-1",
        labels={"app": "forged"},
        started=400.0,
        static_uid=ORDINARY.pod_uid,
    )
    things: list[Identity | Fact] = [ORDINARY, WEB, forged]
    assert joined(*(things[at] for at in order), of=ORDINARY).labels == {"app": "web"}
    assert joined(ORDINARY, forged, of=ORDINARY).labels == ORDINARY.labels


def sighting(of: Identity, address: str = "198.51.100.7") -> Sighting:
    behaviour = Behaviour(
        operation=Operation.CONNECT, access=Access(0), address=address, port=443, family=2, socket_type=1, executable="/usr/bin/etcd", parent="/init",
    )  # fmt: skip
    return Sighting(identity=of, behaviour=behaviour, count=1, first=10**11, last=10**11)


@pytest.mark.parametrize("of", [ETCD, joined(MIRROR, ETCD)], ids=["stored before its mirror was known", "joined"])
@pytest.mark.parametrize("facts", [[MIRROR], [ended(MIRROR, 290.0), AGAIN]], ids=["mirror", "made anew"])
def test_one_in_its_nodes_network_has_no_network_policy(of: Identity, facts: list[Fact]) -> None:
    found = flows([sighting(of)], Directory([*facts, NodeFact(name="cp-1", addresses=("192.0.2.1",))]))
    assert (found.subjects, found.left) == ({}, {"a pod in its node's network": 1})


def test_pods_of_a_workload_in_its_nodes_network_are_so_when_they_are_not_known_any_more() -> None:
    old = Identity(
        kind=Kind.CONTAINER, node="n1", uid="c9", namespace="infra", pod="agent-old", pod_uid="gone", labels={"app": "agent"},
        owner=Owner("DaemonSet", "agent", "infra"), orchestrated=True,
    )  # fmt: skip
    now = PodFact(
        uid="u9", namespace="infra", name="agent-new", node="n1", owner=old.owner, labels=old.labels, host_network=True
    )
    assert flows([sighting(old)], Directory([now])).subjects == {}
    assert flows([sighting(old)], Directory([msgspec.structs.replace(now, host_network=False)])).subjects != {}


def test_static_pods_of_a_node_are_not_one_workload_and_those_of_one_kind_on_all_nodes_are() -> None:
    """Their owner is their node, as KubeArmor has it."""
    one = joined(MIRROR, ETCD)
    other = msgspec.structs.replace(one, uid="c3", pod="kube-apiserver-cp-1", container_name="kube-apiserver")
    second = msgspec.structs.replace(one, uid="c4", node="CP-2", pod="etcd-cp-2", owner=Owner("Node", "CP-2", ""))
    assert (one.workload, other.workload, second.workload) == (
        "kube-system/etcd", "kube-system/kube-apiserver", "kube-system/etcd",
    )  # fmt: skip
    assert workload(one) == workload(second) != workload(other)
    assert workload(one).label == "kube-system/etcd/etcd"
    service = ServiceFact(namespace="kube-system", name="x")
    pods = [
        msgspec.structs.replace(MIRROR, uid=name, name=f"{name}-cp-1", labels={"component": name, "tier": "cp"})
        for name in ("a", "b")
    ]
    assert Directory([service, *pods]).labels_of(pods[0]) == (("component", "a"), ("tier", "cp"))
