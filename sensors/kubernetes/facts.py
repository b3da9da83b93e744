# SPDX-License-Identifier: Apache-2.0
"""Objects of the API server to facts of `schemas.cluster`; pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from schemas.cluster import EndpointsFact, NamespaceFact, NodeFact, PodFact, ServiceFact, ServicePort, is_static_uid
from schemas.identity import Owner
from schemas.workload_annotations import DECIDING, LONGEST, TOO_LONG
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
TOLD: Final = ("kubearmor", "hauberk.io/")
"""How annotations begin that mean something here. What else is written there may be 256 KiB of each pod, and anybody's."""
MOST_ANNOTATIONS: Final = 64
MOST_LABELS: Final = 16 << 10
"""Bytes of labels of one object: alerts repeat them, and a record of a topic may have 1 MiB. The shortest are kept."""
SERVICE_NAME: Final = "kubernetes.io/service-name"
"""Label of an EndpointSlice: which service of its namespace it is of."""
MIRROR: Final = "kubernetes.io/config.mirror"
STATIC_UID: Final = "kubernetes.io/config.hash"
"""Annotations that a kubelet gives the mirror of a static pod; the second is the uid that it gave the pod."""
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
        labels={key: value for key, value in _labels(meta.labels).items() if key not in REVISION_LABELS},
        annotations=_annotations(meta), owner=owner(meta, owners), host_network=one.spec.host_network,
        addresses=() if one.spec.host_network else addresses,
        service_account=one.spec.service_account_name, started=_seconds(meta.creation_timestamp), ended=ended,
        static_uid=_static_uid(one),
    )  # fmt: skip


def _static_uid(one: PodObject) -> str:
    """Of the mirror of a static pod, "" of every other. Its author may write all of this, so it joins nothing by itself
    (`policy.cluster_pods`)."""
    said, above = one.metadata.annotations or {}, _controller(one.metadata.owner_references)
    if MIRROR not in said or above is None:
        return ""
    if (above.api_version, above.kind, above.name) != ("v1", "Node", one.spec.node_name):
        return ""
    uid = said.get(STATIC_UID, "")
    return uid if is_static_uid(uid) else ""


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
    return NamespaceFact(name=meta.name, labels=_labels(meta.labels), annotations=_annotations(meta))


def node(one: NodeObject) -> NodeFact:
    """Of a node, without its heartbeats: a status that only says "still here" is the same fact."""
    meta = one.metadata
    addresses = {address.address for address in one.status.addresses or () if address.type.endswith("IP")}
    return NodeFact(
        name=meta.name, labels=_labels(meta.labels), annotations=_annotations(meta), addresses=tuple(sorted(addresses)),
        started=_seconds(meta.creation_timestamp), pod_networks=tuple(sorted(one.spec.pod_networks or ())),
    )  # fmt: skip


def service(one: ServiceObject) -> ServiceFact:
    """Of a service; `None` among the addresses says that it is headless."""
    spec = one.spec
    balanced = [entry.ip for entry in one.status.load_balancer.ingress or ()]
    own = {*(spec.cluster_ips or ())} - {"", "None"}
    addresses = {*own, *(spec.external_ips or ()), *balanced} - {"", "None"}
    return ServiceFact(
        namespace=one.metadata.namespace, name=one.metadata.name, addresses=tuple(sorted(addresses)),
        ports=tuple(ServicePort(port.port, port.protocol, port.name, port.target_port, port.node_port) for port in spec.ports or ()),
        selector=_labels(spec.selector), labels=_labels(one.metadata.labels), started=_seconds(one.metadata.creation_timestamp),
        public=spec.type == "LoadBalancer" and not spec.source_ranges, cluster_addresses=tuple(sorted(own)),
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


def trimmed(one: PodObject) -> PodObject:
    """The pod with what its fact keeps of labels and annotations: this is held for every pod."""
    meta = one.metadata
    annotations = _annotations(meta)
    if uid := _static_uid(one):
        annotations |= {MIRROR: uid, STATIC_UID: uid}
    kept = msgspec.structs.replace(meta, labels=_labels(meta.labels), annotations=annotations)
    return msgspec.structs.replace(one, metadata=kept)


def cut(meta: ObjectMeta) -> bool:
    """Whether labels of it are left out of its fact."""
    return _size(meta.labels) > MOST_LABELS


def _labels(written: dict[str, str] | None) -> dict[str, str]:
    if _size(written) <= MOST_LABELS:
        return written or {}
    kept: dict[str, str] = {}
    left = MOST_LABELS
    for key, value in sorted((written or {}).items(), key=lambda one: (len(one[0]) + len(one[1]), one)):
        left -= len(key) + len(value)
        if left < 0:
            break
        kept[key] = value
    return kept


def _size(written: dict[str, str] | None) -> int:
    return sum(len(key) + len(value) for key, value in (written or {}).items())


def _annotations(meta: ObjectMeta) -> dict[str, str]:
    """Those that mean something. A value that is too long is kept as a mark where its annotation decides something, so that it is told."""
    written = {key: value for key, value in (meta.annotations or {}).items() if key.startswith(TOLD)}
    mine = {
        key: value if len(value) <= LONGEST else TOO_LONG
        for key, value in written.items()
        if len(value) <= LONGEST or key in DECIDING
    }
    # Those that decide something come first: who writes many of the others leaves none of them out.
    kept = sorted(mine, key=lambda key: (key not in DECIDING, key))[:MOST_ANNOTATIONS]
    return {key: mine[key] for key in sorted(kept)}


def _seconds(stamp: str | None) -> float:
    """Unix seconds of an RFC 3339 time; 0 when there is none."""
    try:
        return datetime.fromisoformat(stamp).timestamp() if stamp else 0.0
    except ValueError:
        return 0.0
