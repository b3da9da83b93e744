# SPDX-License-Identifier: Apache-2.0
"""What objects of the API server become, without a server."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from schemas.cluster import ServiceFact, ServicePort, decode, encode
from schemas.identity import Owner
from schemas.visibility import words
from schemas.workload_annotations import LONGEST, TOO_LONG, misread, posture, status
from sensors.kubernetes import facts
from sensors.kubernetes.objects import EndpointSliceObject, MetadataOnly, NodeObject, PodObject, ServiceObject


def pod(**more: Any) -> PodObject:
    metadata = {"name": "web-7c9d-x1", "namespace": "shop", "uid": "u1", "creationTimestamp": "2026-11-28T10:00:00Z"}
    return msgspec.convert({"metadata": {**metadata, **more.pop("metadata", {})}, **more}, PodObject)


def owned(kind: str, name: str, uid: str) -> dict[str, Any]:
    return {
        "ownerReferences": [
            {"kind": "Ignored", "name": "x", "uid": "x"},
            {"kind": kind, "name": name, "uid": uid, "controller": True},
        ]
    }


def above(name: str, uid: str, **more: Any) -> MetadataOnly:
    return msgspec.convert({"metadata": {"name": name, "namespace": "shop", "uid": uid, **more}}, MetadataOnly)


@pytest.mark.parametrize(
    ("chain", "owner"),
    [
        ([], Owner("Pod", "web-7c9d-x1", "shop")),
        ([("ReplicaSet", "web-7c9d", "r1"), ("Deployment", "web", "d1")], Owner("Deployment", "web", "shop")),
        ([("StatefulSet", "db", "s1")], Owner("StatefulSet", "db", "shop")),
        ([("Job", "mail-291", "j1"), ("CronJob", "mail", "c1")], Owner("CronJob", "mail", "shop")),
        ([("Node", "n1", "n1")], Owner("Node", "n1", "")),
    ],
    ids=["bare", "deployment", "stateful", "cron", "static"],
)
def test_the_owner_is_the_top_of_the_chain(chain: list[tuple[str, str, str]], owner: Owner) -> None:
    owners = {
        uid: above(name, uid, **(owned(*chain[number + 1]) if number + 1 < len(chain) else {}))
        for number, (_, name, uid) in enumerate(chain)
    }
    one = pod(metadata=owned(*chain[0]) if chain else {})
    assert facts.pod(one, owners).owner == owner


def test_a_chain_that_is_not_known_yet_ends_where_it_is_known() -> None:
    assert facts.pod(pod(metadata=owned("ReplicaSet", "web-7c9d", "r1")), {}).owner == Owner(
        "ReplicaSet", "web-7c9d", "shop"
    )


def test_a_circle_of_owners_ends() -> None:
    circle = {"a": above("a", "a", **owned("A", "b", "b")), "b": above("b", "b", **owned("A", "a", "a"))}
    assert facts.pod(pod(metadata=owned("A", "a", "a")), circle).owner.ref == "A"


def test_labels_of_revisions_and_the_applied_object_are_left_out() -> None:
    one = pod(metadata={
        "labels": {"app": "web", "pod-template-hash": "7c9d", "controller-revision-hash": "x"},
        "annotations": {"kubearmor-policy": "audited", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
    })  # fmt: skip
    fact = facts.pod(one, {})
    assert fact.labels == {"app": "web"}
    assert fact.annotations == {"kubearmor-policy": "audited"}


def test_megabytes_of_labels_and_annotations_become_a_fact_of_a_few_kilobytes() -> None:
    """Whoever may make a pod may write them; alerts repeat labels, and every process that judges holds the fact."""
    one = pod(metadata={
        "labels": {f"{'k' * 200}{number}": "v" * 63 for number in range(5000)} | {"app": "web"},
        "annotations": {f"kubearmor-{number}": "x" * 1000 for number in range(200)}
        | {"note": "x" * 250_000, "kubearmor-file-posture": "y" * 2000, "kubearmor-policy": "audited", "hauberk.io/signal": "enabled"},
    })  # fmt: skip
    fact = facts.pod(one, {})
    assert fact.labels["app"] == "web"
    assert len(encode(fact)) < facts.MOST_LABELS + facts.MOST_ANNOTATIONS * (LONGEST + 64)
    assert "note" not in fact.annotations
    assert fact.annotations["kubearmor-file-posture"] == TOO_LONG
    assert fact.annotations["hauberk.io/signal"] == "enabled"
    # After 200 others by the alphabet, and kept: it decides something.
    assert fact.annotations["kubearmor-policy"] == "audited"
    assert facts.cut(one.metadata)
    assert facts.pod(facts.trimmed(one), {}) == fact


@pytest.mark.parametrize(
    "key", ["kubearmor-policy", "kubearmor-visibility", "kubearmor-file-posture", "kubearmor-network-posture"]
)
def test_a_value_that_is_too_long_decides_nothing_is_not_kept_and_is_told(key: str) -> None:
    """With words in it that would decide something: cut, it might."""
    long = "process,none,audited," * 60
    assert len(long) > LONGEST
    fact = facts.pod(pod(metadata={"annotations": {key: long, f"{key}-2": long}}), {})
    assert fact.annotations == {key: TOO_LONG}
    (said,) = misread(fact.annotations)
    assert said.startswith("expected ")
    assert said.endswith(f" in `{key}`, got more than 1,024 characters, which are not read")
    assert (status(fact.annotations), posture(fact.annotations[key])) == ("", "")
    assert words(fact.annotations[key], ("file",)) == ("file",), "what is in force without it"
    # As long as may be, it is what was written.
    assert facts.pod(pod(metadata={"annotations": {key: "x" * LONGEST}}), {}).annotations == {key: "x" * LONGEST}


@pytest.mark.parametrize(
    ("status", "spec", "addresses"),
    [
        (
            {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}]},
            {},
            ("10.0.0.1", "fd00::1"),
        ),
        ({"phase": "Running", "podIP": "10.0.0.1"}, {}, ("10.0.0.1",)),
        ({"phase": "Succeeded", "podIP": "10.0.0.1"}, {}, ("10.0.0.1",)),
        ({"phase": "Running", "podIP": "192.168.0.9"}, {"hostNetwork": True}, ()),
        ({"phase": "Pending"}, {}, ()),
    ],
)
def test_addresses_are_the_pods_own(status: Any, spec: Any, addresses: tuple[str, ...]) -> None:
    assert facts.pod(pod(status=status, spec=spec), {}).addresses == addresses


def test_a_heartbeat_of_a_node_is_the_same_fact() -> None:
    def node(version: str) -> NodeObject:
        return msgspec.convert({
            "metadata": {"name": "n1", "resourceVersion": version, "labels": {"zone": "a"}}, "spec": {"podCIDRs": ["fd00::/64", "10.2.0.0/24"]},
            "status": {"addresses": [{"type": "Hostname", "address": "n1"}, {"type": "InternalIP", "address": "10.1.0.1"}]},
        }, NodeObject)  # fmt: skip

    assert encode(facts.node(node("1"))) == encode(facts.node(node("2")))
    assert facts.node(node("1")).addresses == ("10.1.0.1",)
    assert facts.node(node("1")).pod_networks == ("10.2.0.0/24", "fd00::/64")


def test_a_headless_service_has_no_address() -> None:
    one = msgspec.convert({
        "metadata": {"name": "db", "namespace": "shop"},
        "spec": {"clusterIPs": ["None"], "ports": [{"port": 5432, "targetPort": "pg"}], "selector": {"app": "db"}},
    }, ServiceObject)  # fmt: skip
    fact = facts.service(one)
    assert fact.addresses == ()
    assert fact.ports[0].target == "pg"
    assert decode(encode(fact)) == fact


def test_addresses_that_the_cluster_gave_out_are_told_apart() -> None:
    one = msgspec.convert({
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIPs": ["10.0.0.1"], "externalIPs": ["192.0.2.1"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.1"}]}},
    }, ServiceObject)  # fmt: skip
    fact = facts.service(one)
    assert (fact.addresses, fact.cluster_addresses) == (("10.0.0.1", "192.0.2.1", "198.51.100.1"), ("10.0.0.1",))


@pytest.mark.parametrize(
    ("more", "public"),
    [
        ({"type": "LoadBalancer"}, True),
        ({"type": "LoadBalancer", "loadBalancerSourceRanges": ["198.51.100.0/24"]}, False),
        ({"type": "NodePort"}, False),
        ({}, False),
    ],
)
def test_a_service_that_anybody_may_use_and_the_ports_of_nodes_are_told(more: dict[str, Any], public: bool) -> None:
    spec = {"clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "targetPort": 8080, "nodePort": 30080}], **more}
    one = msgspec.convert({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec}, ServiceObject)
    fact = facts.service(one)
    assert (fact.public, fact.ports[0].node_port) == (public, 30080)
    assert decode(encode(fact)) == fact


def test_a_fact_of_before_is_read() -> None:
    """An earlier release knew no ports of nodes; what it wrote stays on the topic."""
    one = ServiceFact(namespace="shop", name="web", ports=(ServicePort(80, "TCP", "http", 8080),))
    was = msgspec.msgpack.decode(encode(one))
    assert (was.pop(), was.pop(), was.pop(), was[4][0].pop()) == ([], 0.0, False, 0)
    assert decode(msgspec.msgpack.encode(was)) == one
    known = facts.pod(pod(), {})
    before = msgspec.msgpack.decode(encode(known))
    assert before.pop() == ""
    assert decode(msgspec.msgpack.encode(before)) == known


@pytest.mark.parametrize("labels", [{"b": "1", "a": "2"}, {"a": "2", "b": "1"}])
def test_the_same_fact_is_the_same_bytes(labels: dict[str, str]) -> None:
    assert encode(facts.pod(pod(metadata={"labels": labels}), {})) == encode(
        facts.pod(pod(metadata={"labels": dict(sorted(labels.items()))}), {})
    )


STATIC = "4b8c4f2a9f0d4c6e8a1b3c5d7e9f0a1b"
MIRROR = {
    "annotations": {"kubernetes.io/config.mirror": STATIC, "kubernetes.io/config.hash": STATIC, "kubernetes.io/config.source": "file"},
    "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "cp-1", "uid": "n", "controller": True}],
}  # fmt: skip


def test_the_mirror_of_a_static_pod_says_the_uid_that_its_kubelet_gave_it() -> None:
    one = pod(metadata=MIRROR, spec={"nodeName": "cp-1"})
    fact = facts.pod(one, {})
    assert (fact.static_uid, fact.annotations, fact.owner) == (STATIC, {}, Owner("Node", "cp-1", ""))
    assert facts.pod(facts.trimmed(one), {}) == fact
    assert decode(encode(fact)) == fact


@pytest.mark.parametrize(
    ("metadata", "node"),
    [
        ({"ownerReferences": None}, "cp-1"),
        ({}, "cp-2"),
        ({}, ""),
        ({"ownerReferences": [{**MIRROR["ownerReferences"][0], "controller": False}]}, "cp-1"),  # type: ignore[dict-item]
        ({"ownerReferences": [{**MIRROR["ownerReferences"][0], "kind": "ReplicaSet"}]}, "cp-1"),  # type: ignore[dict-item]
        ({"ownerReferences": [{**MIRROR["ownerReferences"][0], "apiVersion": "evil.example/v1"}]}, "cp-1"),  # type: ignore[dict-item]
        ({"annotations": {"kubernetes.io/config.hash": STATIC}}, "cp-1"),
        ({"annotations": {"kubernetes.io/config.mirror": STATIC}}, "cp-1"),
        ({"annotations": dict.fromkeys(MIRROR["annotations"], "0b7c2d1e-1111-4222-8333-444455556666")}, "cp-1"),
        ({"annotations": dict.fromkeys(MIRROR["annotations"], STATIC.upper())}, "cp-1"),
        ({"annotations": dict.fromkeys(MIRROR["annotations"], STATIC + "\n")}, "cp-1"),
    ],
    ids=str,
)
def test_no_other_pod_has_one_whatever_its_annotations_say(metadata: dict[str, Any], node: str) -> None:
    assert facts.pod(pod(metadata={**MIRROR, **metadata}, spec={"nodeName": node}), {}).static_uid == ""


def slice_of(**more: Any) -> EndpointSliceObject:
    metadata = {"name": "web-x", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}}
    return msgspec.convert({"metadata": metadata, "addressType": "IPv4", **more}, EndpointSliceObject)


def test_endpoints_are_a_fact_of_their_service_whether_or_not_they_are_ready() -> None:
    def told(ready: bool) -> EndpointSliceObject:
        return slice_of(
            endpoints=[{"addresses": ["10.0.0.2"], "conditions": {"ready": ready}}, {"addresses": ["10.0.0.1"]}],
            ports=[{"port": 8080, "name": "http", "protocol": "TCP"}, {"port": None}],
        )

    fact = facts.endpoints(told(True))
    assert (fact.service, fact.addresses, fact.ports[0].port) == ("web", ("10.0.0.1", "10.0.0.2"), 8080)
    assert encode(fact) == encode(facts.endpoints(told(False)))
    assert facts.endpoints(slice_of(addressType="FQDN", endpoints=[{"addresses": ["db.example"]}])).addresses == ()
    assert facts.endpoints(slice_of(endpoints=None, ports=None)).addresses == ()
