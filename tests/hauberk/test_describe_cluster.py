# SPDX-License-Identifier: Apache-2.0
"""`hauberk describe pod|service|node`: facts of the cluster, and the policies that select it with what became of them there."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from enforcers.planner import PlannerEngine
from policy.documents import key, to_json
from policy.parse import parse
from schemas import cluster
from schemas.cluster import EndpointsFact, NamespaceFact, NodeFact, PodFact, ServiceFact, ServicePort
from schemas.enforcement import Receipt, Refusal, decode_plan
from schemas.enforcement import encode as encode_enforcement
from schemas.identity import Identity, Kind, Owner, encode
from schemas.operations import Backend
from schemas.refusals import RefusalCode
from schemas.topics import CLUSTER, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, POLICIES
from schemas.verdict import RuleRef

POLICIES_TEXT = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: no-udp, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, network: {matchProtocols: [{protocol: udp}]}, action: Block}
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: refused, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, network: {matchProtocols: [{protocol: tcp}]}, action: Block}
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: beside, namespace: shop, annotations: {hauberk.io/mode: shadow}}
spec: {selector: {matchLabels: {app: web}}, network: {matchProtocols: [{protocol: icmp}]}, action: Block}
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: other, namespace: shop}
spec: {selector: {matchLabels: {app: db}}, network: {matchProtocols: [{protocol: tcp}]}, action: Block}
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorClusterPolicy
metadata: {name: all, annotations: {hauberk.io/mode: shadow}}
spec: {selector: {matchExpressions: [{key: namespace, operator: In, values: [shop]}]}, network: {matchProtocols: [{protocol: icmp}]}, action: Block}
"""
POD = PodFact(uid="u1", namespace="shop", name="web-1", node="n1", labels={"app": "web"}, owner=Owner("Deployment", "web", "shop"),
              addresses=("10.0.0.7",), started=1.0)  # fmt: skip
HASH = "4b8c4f2a9f0d4c6e8a1b3c5d7e9f0a1b"
STATIC = PodFact(uid="u3", namespace="kube-system", name="etcd-n1", node="n1", owner=Owner("Node", "n1"), host_network=True, started=1.0,
                 static_uid=HASH)  # fmt: skip
FACTS = (
    POD, PodFact(uid="u2", namespace="shop", name="alone", node="n2", started=1.0, annotations={"kubearmor-policy": "audit"}),
    NamespaceFact(name="shop", annotations={"kubearmor-visibility": "proces", "kubearmor-file-posture": "Block"}),
    STATIC, msgspec.structs.replace(STATIC, uid="u4", name="other-n1"),
    NodeFact(name="n1", labels={"zone": "a"}, addresses=("192.0.2.1",)),
    ServiceFact(namespace="shop", name="front", addresses=("10.96.0.1",), ports=(ServicePort(80),), selector={"app": "web"}),
    ServiceFact(namespace="shop", name="headless"), ServiceFact(namespace="shop", name="others", selector={"app": "db"}),
    EndpointsFact(namespace="shop", name="headless-x", service="headless", addresses=("10.0.0.7",)),
)  # fmt: skip


@pytest.fixture
def command(hauberk: Any) -> Any:
    """The command over a bus with a planned node that refuses one policy."""

    async def fill() -> None:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(hauberk.state / "bus")))
        web = Identity(kind=Kind.CONTAINER, node="n1", uid="c1", cgroups=(7,), container_name="web", namespace="shop", pod="web-1",
                       pod_uid="u1", image="nginx", orchestrated=True)  # fmt: skip
        # A node that claims a container of a pod which the cluster runs elsewhere.
        liar = Identity(kind=Kind.CONTAINER, node="n3", uid="c9", cgroups=(9,), container_name="lie", namespace="shop", pod="web-1",
                        pod_uid="u1", orchestrated=True)  # fmt: skip
        etcd = Identity(kind=Kind.CONTAINER, node="n1", uid="c3", cgroups=(8,), container_name="etcd", namespace="kube-system", pod="etcd-n1",
                        pod_uid=HASH, orchestrated=True)  # fmt: skip
        held = (web, liar, etcd, Identity(kind=Kind.NODE, node="n1", uid="n1"))
        await bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in held])
        await bus.publish(CLUSTER, [Record(one.key, cluster.encode(one)) for one in FACTS])
        documents = parse(POLICIES_TEXT.encode(), "t").policies
        await bus.publish(POLICIES, [Record(key(one), to_json(one)) for one in documents])
        planner = PlannerEngine(bus)
        running = asyncio.create_task(planner.run())
        await asyncio.wait_for(planner.ready.wait(), 60)
        planner.stop()
        await asyncio.wait_for(running, 60)
        plan = decode_plan((await bus.latest(ENFORCEMENT_DESIRED))[b"n1"].value or b"")
        ref = RuleRef("refused", "KubeArmorPolicy", "shop", "spec.network.matchProtocols[0]")
        why = Refusal(ref=ref, backend=Backend.CGROUP, reason="the kernel is too old", code=RefusalCode.NOT_CHOSEN)
        receipt = Receipt(node="n1", generation=plan.generation, digest=plan.digest, applied_ns=1, took_ms=1.0, backends=(Backend.CGROUP,),
                          scopes=1, rules=1, refused=(why,))  # fmt: skip
        await bus.publish(ENFORCEMENT_STATUS, [Record(b"n1", encode_enforcement(receipt))])
        await bus.close()

    hauberk.state.mkdir()
    asyncio.run(fill())
    return hauberk


def test_a_pod_is_told_with_owner_services_and_the_policies_that_select_it(command: Any) -> None:
    said = command("describe", "pod", "web-1", "-n", "shop").stdout
    for words in ("node: n1", "name: web", "headless", "front", "192.0.2.1", "image: nginx", "10.0.0.7"):
        assert words in said, said
    assert "others" not in said
    assert "lie" not in said, "the word of a node that the pod is not on"
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in said.split("Policies:\n")[1].splitlines()[1:]}
    assert rows == {
        "KubeArmorPolicy/shop/no-udp": "web enforce n1 in force",
        "KubeArmorPolicy/shop/refused": "web enforce n1 partial spec.network.matchProtocols[0]: the kernel is too old [not-chosen]",
        "KubeArmorPolicy/shop/beside": "web shadow n1 judged nothing of it is enforced",
        "KubeArmorClusterPolicy/all": "web shadow n1 judged nothing of it is enforced",
    }


def test_a_pod_whose_node_says_nothing_and_one_that_is_not_there(command: Any) -> None:
    assert "is `hauberk node` running on n2?" in command("describe", "pods", "alone").stdout
    done = command("describe", "pod", "nobody")
    assert done.returncode == 1
    assert "expected pod `nobody`, the cluster has told of none; `kubectl get pods -A` lists them" in done.stderr
    assert command("describe", "pod", "web-1", "-n", "bank").returncode == 1


def test_a_static_pod_has_the_containers_that_its_kubelet_runs(command: Any) -> None:
    assert "name: etcd\n" in command("describe", "pod", "etcd-n1").stdout
    assert "no container of it is known" in command("describe", "pod", "other-n1").stdout


def test_a_service_and_a_node(command: Any) -> None:
    said = command("describe", "service", "front").stdout
    assert "web-1 on n1" in said
    assert "10.96.0.1" in said
    assert "alone" not in said
    node = command("describe", "node", "n1").stdout.split("Of the cluster:\n")[1]
    assert "zone: a" in node
    assert "shop/web-1" in node


def test_annotations_that_are_not_understood_are_told_of_a_pod_and_of_its_containers(command: Any) -> None:
    namespaces = "expected process, file, network, capabilities, dns or none in `kubearmor-visibility`, got 'proces'"
    said = command("describe", "pod", "alone").stdout.split(
        "Annotations that are not understood, and change nothing:\n"
    )[1]
    assert said.splitlines()[:2] == [
        "expected enabled, audited or disabled in `kubearmor-policy`, got 'audit'",
        namespaces,
    ]
    said = command("describe", "workload", "web", "-n", "shop").stdout
    assert said.split("Annotations that are not understood, and change nothing:\n")[1].splitlines()[0] == namespaces
    assert "not understood" not in command("describe", "node", "n1").stdout


def test_a_namespace_with_its_annotations_pods_and_policies(command: Any) -> None:
    said = command("describe", "namespace", "shop").stdout
    assert "pods: 2" in said
    assert "kubearmor-file-posture: Block" in said
    parts = said.split("\n\n")
    assert parts[1].splitlines() == [
        "Annotations that are not understood, and change nothing:",
        "expected process, file, network, capabilities, dns or none in `kubearmor-visibility`, got 'proces'",
    ]
    assert parts[2].splitlines()[0] == "Annotations of its pods that are not understood, and change nothing:"
    assert parts[2].splitlines()[2].split(maxsplit=1) == [
        "alone", "expected enabled, audited or disabled in `kubearmor-policy`, got 'audit'",
    ]  # fmt: skip
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in parts[3].splitlines()[2:]}
    assert rows == {
        "KubeArmorPolicy/shop/no-udp": "web-1 enforce", "KubeArmorPolicy/shop/refused": "web-1 enforce",
        "KubeArmorPolicy/shop/beside": "web-1 shadow", "KubeArmorPolicy/shop/other": "- selects none now",
        "KubeArmorClusterPolicy/all": "web-1 shadow",
    }  # fmt: skip
    # `alone` is on a node that says nothing; the plural does as well.
    assert command("describe", "namespaces", "shop").stdout == said
    done = command("describe", "namespace", "nowhere")
    assert done.returncode == 1
    assert (
        "expected namespace `nowhere`, the cluster has told of none; `kubectl get namespaces -A` lists them"
        in done.stderr
    )
