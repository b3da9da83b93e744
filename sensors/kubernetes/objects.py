# SPDX-License-Identifier: Apache-2.0
"""The part of Kubernetes' objects that facts are made of (API reference v1.37); what is not named here is not decoded."""

from __future__ import annotations

import msgspec


class OwnerReference(msgspec.Struct, frozen=True, rename="camel"):
    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class ObjectMeta(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None


class MetadataOnly(msgspec.Struct, frozen=True):
    """Any object of which only metadata is wanted: a namespace, a ReplicaSet, a Job."""

    metadata: ObjectMeta


class PodIp(msgspec.Struct, frozen=True):
    ip: str = ""


class PodSpec(msgspec.Struct, frozen=True, rename="camel"):
    node_name: str = ""
    host_network: bool = False
    service_account_name: str = ""


class PodStatus(msgspec.Struct, frozen=True, rename={"pod_ip": "podIP", "pod_ips": "podIPs"}):
    phase: str = ""
    pod_ip: str = ""
    pod_ips: list[PodIp] | None = None


class PodObject(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class NodeAddress(msgspec.Struct, frozen=True):
    type: str = ""
    address: str = ""


class NodeStatus(msgspec.Struct, frozen=True):
    addresses: list[NodeAddress] | None = None


class NodeSpec(msgspec.Struct, frozen=True, rename={"pod_networks": "podCIDRs"}):
    pod_networks: list[str] | None = None


class NodeObject(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class ServicePortSpec(msgspec.Struct, frozen=True, rename="camel"):
    port: int = 0
    protocol: str = "TCP"
    name: str = ""
    target_port: int | str = 0
    node_port: int = 0


class ServiceSpec(
    msgspec.Struct,
    frozen=True,
    rename={"cluster_ips": "clusterIPs", "external_ips": "externalIPs", "source_ranges": "loadBalancerSourceRanges"},
):
    type: str = ""
    source_ranges: list[str] | None = None
    cluster_ips: list[str] | None = None
    external_ips: list[str] | None = None
    ports: list[ServicePortSpec] | None = None
    selector: dict[str, str] | None = None


class BalancerIngress(msgspec.Struct, frozen=True):
    ip: str = ""


class BalancerStatus(msgspec.Struct, frozen=True):
    ingress: list[BalancerIngress] | None = None


class ServiceStatus(msgspec.Struct, frozen=True, rename="camel"):
    load_balancer: BalancerStatus = BalancerStatus()


class ServiceObject(msgspec.Struct, frozen=True):
    metadata: ObjectMeta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class SliceEndpoint(msgspec.Struct, frozen=True):
    addresses: list[str] | None = None


class SlicePort(msgspec.Struct, frozen=True):
    port: int | None = None
    protocol: str | None = None
    name: str | None = None


class EndpointSliceObject(msgspec.Struct, frozen=True, rename="camel"):
    metadata: ObjectMeta
    address_type: str = ""
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None
