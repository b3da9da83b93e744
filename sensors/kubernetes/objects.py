# SPDX-License-Identifier: Apache-2.0
"""The part of Kubernetes' objects that facts are made of (API reference v1.37); what is not named here is not decoded."""

from __future__ import annotations

import msgspec


class OwnerReference(msgspec.Struct, frozen=True):
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Meta(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None


class Metadata(msgspec.Struct, frozen=True):
    """Any object of which only metadata is wanted: a namespace, a ReplicaSet, a Job."""

    metadata: Meta


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


class Pod(msgspec.Struct, frozen=True):
    metadata: Meta
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Address(msgspec.Struct, frozen=True):
    type: str = ""
    address: str = ""


class NodeStatus(msgspec.Struct, frozen=True):
    addresses: list[Address] | None = None


class Node(msgspec.Struct, frozen=True):
    metadata: Meta
    status: NodeStatus = NodeStatus()


class Port(msgspec.Struct, frozen=True, rename="camel"):
    port: int = 0
    protocol: str = "TCP"
    name: str = ""
    target_port: int | str = 0


class ServiceSpec(msgspec.Struct, frozen=True, rename={"cluster_ips": "clusterIPs", "external_ips": "externalIPs"}):
    cluster_ips: list[str] | None = None
    external_ips: list[str] | None = None
    ports: list[Port] | None = None
    selector: dict[str, str] | None = None


class Ingress(msgspec.Struct, frozen=True):
    ip: str = ""


class LoadBalancer(msgspec.Struct, frozen=True):
    ingress: list[Ingress] | None = None


class ServiceStatus(msgspec.Struct, frozen=True, rename="camel"):
    load_balancer: LoadBalancer = LoadBalancer()


class Service(msgspec.Struct, frozen=True):
    metadata: Meta
    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()
