# SPDX-License-Identifier: Apache-2.0
"""Objects of the API server to facts of `schemas.cluster`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from schemas.cluster import EndpointsFact, NamespaceFact, NodeFact, PodFact, ServiceFact, ServicePort
from schemas.identity import Owner
from sensors.kubernetes.objects import (
    EndpointSliceObject,
    MetadataOnly,
    NodeObject,
    ObjectMeta,
    OwnerReference,
    PodObject,
    ServiceObject,
)

REVISION_LABELS: Final = frozenset({"pod-template-hash", "pod-template-generation", "controller-revision-hash"})
"""What controllers add to tell revisions apart: no policy selects by them (KubeArmor, updateIdentities)."""
NOT_TOLD: Final = frozenset({"kubectl.kubernetes.io/last-applied-configuration"})
"""Annotations that repeat the object."""
SERVICE_NAME: Final = "kubernetes.io/service-name"
"""Label of an EndpointSlice: which service of its namespace it is of."""
_DEPTH: Final = 8
"""Controllers above a pod that are climbed; a circle ends there."""

Owners = Mapping[str, MetadataOnly]
"""Objects that own others, by uid: ReplicaSets and Jobs. What is not there is a top."""


def over(one: PodObject) -> bool:
    """Whether all its containers ended for good: its addresses may be another pod's by now."""
    return one.status.phase in ("Succeeded", "Failed")


def pod(one: PodObject, owners: Owners, ended: float = 0.0) -> PodFact:
    """Of a pod. `ended`: Unix seconds when it was seen to be over, 0 while it is not."""
    meta, status = one.metadata, one.status
    addresses = tuple(sorted({ip.ip for ip in status.pod_ips or () if ip.ip} or ({status.pod_ip} - {""})))
    return PodFact(
        uid=meta.uid, namespace=meta.namespace, name=meta.name, node=one.spec.node_name,
        labels={key: value for key, value in (meta.labels or {}).items() if key not in REVISION_LABELS},
        annotations=_annotations(meta), owner=owner(meta, owners), host_network=one.spec.host_network,
        addresses=() if one.spec.host_network else addresses,
        service_account=one.spec.service_account_name, started=_seconds(meta.creation_timestamp), ended=ended,
    )  # fmt: skip


def owner(meta: ObjectMeta, owners: Owners) -> Owner:
    """The workload at the top of the chain of controllers; of a pod that nobody controls, the pod itself."""
    top = Owner("Pod", meta.name, meta.namespace)
    for _ in range(_DEPTH):
        above = _controller(meta.owner_references)
        if above is None:
            break
        top = Owner(above.kind, above.name, "" if above.kind == "Node" else meta.namespace or top.namespace)
        next_one = owners.get(above.uid)
        if next_one is None:
            break
        meta = next_one.metadata
    return top


def _controller(references: list[OwnerReference] | None) -> OwnerReference | None:
    return next((one for one in references or () if one.controller), None)


def namespace(one: MetadataOnly) -> NamespaceFact:
    """Of a namespace."""
    meta = one.metadata
    return NamespaceFact(name=meta.name, labels=meta.labels or {}, annotations=_annotations(meta))


def node(one: NodeObject) -> NodeFact:
    """Of a node, without its heartbeats: a status that only says "still here" is the same fact."""
    meta = one.metadata
    addresses = {address.address for address in one.status.addresses or () if address.type.endswith("IP")}
    return NodeFact(
        name=meta.name, labels=meta.labels or {}, annotations=_annotations(meta), addresses=tuple(sorted(addresses)),
        started=_seconds(meta.creation_timestamp),
    )  # fmt: skip


def service(one: ServiceObject) -> ServiceFact:
    """Of a service; `None` among the addresses says that it is headless."""
    spec = one.spec
    balanced = [entry.ip for entry in one.status.load_balancer.ingress or ()]
    addresses = {*(spec.cluster_ips or ()), *(spec.external_ips or ()), *balanced} - {"", "None"}
    return ServiceFact(
        namespace=one.metadata.namespace, name=one.metadata.name, addresses=tuple(sorted(addresses)),
        ports=tuple(ServicePort(port.port, port.protocol, port.name, port.target_port) for port in spec.ports or ()),
        selector=spec.selector or {}, labels=one.metadata.labels or {}, started=_seconds(one.metadata.creation_timestamp),
    )  # fmt: skip


def endpoints(one: EndpointSliceObject) -> EndpointsFact:
    """Of an EndpointSlice, without what says how its endpoints are: one that is not ready for a moment is the same fact."""
    meta = one.metadata
    found = {address for endpoint in one.endpoints or () for address in endpoint.addresses or ()}
    return EndpointsFact(
        namespace=meta.namespace, name=meta.name, service=(meta.labels or {}).get(SERVICE_NAME, ""),
        addresses=() if one.address_type == "FQDN" else tuple(sorted(found)),
        ports=tuple(ServicePort(port.port or 0, port.protocol or "TCP", port.name or "") for port in one.ports or ()),
    )  # fmt: skip


def _annotations(meta: ObjectMeta) -> dict[str, str]:
    return {key: value for key, value in (meta.annotations or {}).items() if key not in NOT_TOLD}


def _seconds(stamp: str | None) -> float:
    """Unix seconds of an RFC 3339 time; 0 when there is none."""
    try:
        return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
    except ValueError:
        return 0.0
