# SPDX-License-Identifier: Apache-2.0
"""What a cluster says of itself: facts of pods, namespaces, nodes, services, their endpoints and policies, as `cluster.v1` carries them.

A fact is written by one role alone (`cluster`), so that no node can say what labels the pods of another have. Facts of an object
have one key for its whole life; the tombstone comes when the object is gone. Facts of pods, nodes and services that are over stay some
hours: `ended` says since when their addresses may be another's. `policy.cluster_facts` joins facts to identities, `policy.cluster_peers` to addresses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Annotated, cast

import msgspec

from schemas.decoding import Count, Port, Word, decoder
from schemas.identity import Owner

Text = Annotated[str, msgspec.Meta(max_length=4096)]
Named = Annotated[str, msgspec.Meta(min_length=1, max_length=253)]


def _end(ended: float) -> str:
    """A name may be another's by now, unlike a pod's uid: what is over has a key of its own."""
    return f"/{ended:.3f}" if ended else ""


class PodFact(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="pod"):
    """`labels`: of the pod, without what controllers add to tell revisions apart. `owner`: the workload at the top: a
    Deployment, not its ReplicaSet. `addresses`: of the pod's own network, none with `host_network`; of an ended pod those it had.
    `started`, `ended`: Unix seconds, when it was made and when it was seen to be over; 0: it is not. `static_uid`: of the mirror of a
    static pod, the uid that its kubelet gave it, by which the node's runtime knows its containers."""

    uid: Named
    namespace: Named
    name: Named
    node: Word = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    owner: Owner = Owner()
    addresses: tuple[Word, ...] = ()
    host_network: bool = False
    service_account: Word = ""
    started: float = 0.0
    ended: float = 0.0
    static_uid: Word = ""

    @property
    def key(self) -> bytes:
        """The record key on `cluster.v1`."""
        return f"pod/{self.uid}".encode()


class NamespaceFact(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="namespace"):
    """Postures and visibility are annotations; network policies select by labels."""

    name: Named
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}

    @property
    def key(self) -> bytes:
        """The record key on `cluster.v1`."""
        return f"namespace/{self.name}".encode()


class NodeFact(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="node"):
    """`name`: as the cluster knows it; the node's own agent is told it as `inventory.node`. `addresses`: internal and external.
    `pod_networks`: of which its pods have their addresses, where Kubernetes gives them out (podCIDRs). `ended`: Unix seconds when it was seen
    to have these addresses no more, 0 while it has."""

    name: Named
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    addresses: tuple[Word, ...] = ()
    started: float = 0.0
    pod_networks: tuple[Word, ...] = ()
    ended: float = 0.0

    @property
    def key(self) -> bytes:
        """The record key on `cluster.v1`."""
        return f"node/{self.name}{_end(self.ended)}".encode()


class ServicePort(msgspec.Struct, frozen=True, array_like=True):
    """`target`: a number or the name of a container's port. `node_port`: of every node, 0 for none."""

    port: Port
    protocol: Word = "TCP"
    name: Word = ""
    target: int | Word = 0
    node_port: Port = 0


class ServiceFact(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="service"):
    """`addresses`: cluster and load balancer addresses; none of a headless service. `public`: it asks for a load balancer that anybody may use.
    `ended`: as of a node. `cluster_addresses`: those of `addresses` that the cluster gave out, of its range for services."""

    namespace: Named
    name: Named
    addresses: tuple[Word, ...] = ()
    ports: tuple[ServicePort, ...] = ()
    selector: dict[str, str] = {}
    labels: dict[str, str] = {}
    started: float = 0.0
    public: bool = False
    ended: float = 0.0
    cluster_addresses: tuple[Word, ...] = ()

    @property
    def key(self) -> bytes:
        """The record key on `cluster.v1`."""
        return f"service/{self.namespace}/{self.name}{_end(self.ended)}".encode()


class EndpointsFact(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="endpoints"):
    """One EndpointSlice: addresses behind a service of its namespace, ready or not. They may be of pods, or of nobody in the cluster."""

    namespace: Named
    name: Named
    service: Word = ""
    addresses: tuple[Word, ...] = ()
    ports: tuple[ServicePort, ...] = ()

    @property
    def key(self) -> bytes:
        """The record key on `cluster.v1`."""
        return f"endpoints/{self.namespace}/{self.name}".encode()


class PolicyFact(msgspec.Struct, frozen=True, array_like=True, kw_only=True, tag="policy"):
    """A policy that is an object of the cluster. `errors`: why it is not applied, each with the path of its field; `document`: mark of the
    document that is, "" for none; `owner`: who else has a policy of that name in force, so that the object has no effect; `mode`: `audited`,
    `shadow`, `baseline` or `disabled` by its annotations, "" when it is meant."""

    kind: Named
    namespace: Word = ""
    name: Named
    uid: Word = ""
    generation: Count = 0
    errors: tuple[Text, ...] = ()
    document: Word = ""
    owner: Word = ""
    mode: Word = ""

    @property
    def policy(self) -> str:
        """Its key on `policies.v1`."""
        return f"{self.kind}/{self.namespace}/{self.name}"

    @property
    def key(self) -> bytes:
        """The record key on `cluster.v1`."""
        return f"policy/{self.policy}".encode()


_STATIC_UID = re.compile(r"[0-9a-f]{32}")


def is_static_uid(text: str) -> bool:
    """Whether it has the form of the uid that a kubelet gives a static pod: an MD5 sum. Those of the API server have dashes."""
    return _STATIC_UID.fullmatch(text) is not None


def document_mark(document: bytes) -> str:
    """What tells one document of a policy from another."""
    return hashlib.sha256(document).hexdigest()[:32]


Fact = PodFact | NamespaceFact | NodeFact | ServiceFact | EndpointsFact | PolicyFact

encode = msgspec.msgpack.Encoder(order="deterministic").encode
"""Bytes of a fact; the same for the same fact, so that what did not change need not be published."""

decode: Callable[[bytes], Fact] = decoder(cast("type[Fact]", Fact), "a fact of a cluster")
