# SPDX-License-Identifier: Apache-2.0
"""The four policy kinds as they are written: KubeArmor's field tree (API `security.kubearmor.com/v1`), camelCase on the wire.

This is the shape alone. The rules inside of a kind are in `schemas/policy_sections.py`, what a field means is in `policy/`, what a rule is after inheritance is in
`schemas/rules.py`.
`docs/policies.md` and the checks of `policy/text/check.py` are generated from these structs, so a field, its limits and its
description exist once. Never add a default that hides "not written": `None` means the author said nothing and inherits.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

from schemas.policy_sections import (
    Attributes,
    CapabilitiesSection,
    DeviceSection,
    FileSection,
    NetworkSection,
    Preset,
    ProcessSection,
    SyscallsSection,
    Wire,
)

API_VERSION: Final = "security.kubearmor.com/v1"

ANNOTATION_MODE: Final = "hauberk.io/mode"
"""`enforce` (default), `shadow`: judged beside the enforced set, never blocks; or `baseline`: never blocks, what is outside is told once."""
ANNOTATION_SIGNAL: Final = "hauberk.io/signal"
"""`enabled` lets the signal backend kill for Block rules of this policy where no LSM can deny; default `disabled`."""
ANNOTATION_FORCE: Final = "hauberk.io/force"
"""`enabled` holds rules of a host policy also where they lock the operator out; `hauberk apply --force` writes it."""
ANNOTATION_UNCONFIRMED: Final = "hauberk.io/unconfirmed-since"
"""When `hauberk apply --confirm` published it, RFC 3339: each node lifts it after a minute unless `hauberk confirm` takes this away."""
ANNOTATION_TESTS: Final = "hauberk.io/tests"
"""YAML text: a list of `{event: {KubeArmor log fields}, expect: {action, policy?}}`, run by `hauberk policy test`."""
ANNOTATION_STATUS: Final = "kubearmor-policy"
"""`enabled` (default), `audited` (Block and Allow only audit) or `disabled` (as if the policy were not there)."""

LabelOperator = Literal["In", "NotIn"]


class LabelExpression(Wire, frozen=True, kw_only=True):
    """One condition on labels (or, in a cluster policy, on the namespace)."""

    key: Annotated[Literal["label", "namespace"], Meta(description="`namespace` in cluster policies only.")]
    operator: Annotated[LabelOperator, Meta(description="`In`: any of the values; `NotIn`: none of them.")]
    values: Annotated[
        tuple[str, ...], Meta(description="`k=v` strings for labels, names for namespaces.", examples=[["app=web"]])
    ] = ()


class Selector(Wire, frozen=True, kw_only=True):
    """Which workloads. Everything that is written must hold."""

    match_labels: Annotated[
        dict[str, str],
        Meta(description="Labels the workload carries; `kubearmor.io/container.name` names containers."),
    ] = field(default_factory=dict)
    match_expressions: Annotated[tuple[LabelExpression, ...], Meta(description="Conditions, all of which hold.")] = ()


class ClusterSelector(Wire, frozen=True, kw_only=True):
    """Which workloads of which namespaces."""

    match_expressions: Annotated[tuple[LabelExpression, ...], Meta(description="Conditions, all of which hold.")] = ()


class NodeSelector(Wire, frozen=True, kw_only=True):
    """Which nodes."""

    match_labels: Annotated[
        dict[str, str], Meta(description="Node labels; `kubearmor.io/hostname` takes a name, `*` or a comma list.")
    ] = field(default_factory=dict)


class HostSpec(Attributes, frozen=True, kw_only=True):
    """Rules for processes of the node that are in no container."""

    node_selector: Annotated[NodeSelector, Meta(description="Which nodes; empty means every node.")] = field(
        default_factory=NodeSelector
    )
    process: Annotated[ProcessSection | None, Meta(description="Execution.")] = None
    file: Annotated[FileSection | None, Meta(description="File access.")] = None
    network: Annotated[NetworkSection | None, Meta(description="Sockets and DNS.")] = None
    capabilities: Annotated[CapabilitiesSection | None, Meta(description="Capabilities.")] = None
    syscalls: Annotated[SyscallsSection | None, Meta(description="System calls (audit only).")] = None
    device: Annotated[DeviceSection | None, Meta(description="USB devices.")] = None
    apparmor: Annotated[str | None, Meta(description="Raw AppArmor rule lines.")] = None


class Spec(Attributes, frozen=True, kw_only=True):
    """Rules for the containers of one namespace."""

    selector: Annotated[Selector, Meta(description="Which workloads; empty means all of the namespace.")] = field(
        default_factory=Selector
    )
    process: Annotated[ProcessSection | None, Meta(description="Execution.")] = None
    file: Annotated[FileSection | None, Meta(description="File access.")] = None
    network: Annotated[NetworkSection | None, Meta(description="Sockets and DNS.")] = None
    capabilities: Annotated[CapabilitiesSection | None, Meta(description="Capabilities.")] = None
    syscalls: Annotated[SyscallsSection | None, Meta(description="System calls (audit only).")] = None
    presets: Annotated[tuple[Preset, ...], Meta(description="Ready-made rules.")] = ()
    apparmor: Annotated[str | None, Meta(description="Raw AppArmor rule lines.")] = None


class ClusterSpec(Attributes, frozen=True, kw_only=True):
    """Rules for the containers of many namespaces."""

    selector: Annotated[
        ClusterSelector, Meta(description="Which namespaces and workloads; empty means all of the cluster.")
    ] = field(default_factory=ClusterSelector)
    process: Annotated[ProcessSection | None, Meta(description="Execution.")] = None
    file: Annotated[FileSection | None, Meta(description="File access.")] = None
    network: Annotated[NetworkSection | None, Meta(description="Sockets and DNS.")] = None
    capabilities: Annotated[CapabilitiesSection | None, Meta(description="Capabilities.")] = None
    syscalls: Annotated[SyscallsSection | None, Meta(description="System calls (audit only).")] = None
    presets: Annotated[tuple[Preset, ...], Meta(description="Ready-made rules.")] = ()
    apparmor: Annotated[str | None, Meta(description="Raw AppArmor rule lines.")] = None


class IpBlock(Wire, frozen=True, kw_only=True):
    """A network."""

    cidr: Annotated[str, Meta(description="IPv4 or IPv6 network or address.", examples=["10.0.0.0/8"])]


class PeerBlock(Wire, frozen=True, kw_only=True):
    """The far side."""

    ip_block: Annotated[IpBlock, Meta(description="Its network.")]


class PortMatch(Wire, frozen=True, kw_only=True):
    """A port or a range of ports."""

    port: Annotated[int | str, Meta(description="Number or service name.", examples=[443, "dns"])]
    end_port: Annotated[Annotated[int, Meta(ge=1, le=65535)] | None, Meta(description="Last port of the range.")] = None
    protocol: Annotated[
        Literal["TCP", "UDP", "SCTP", "tcp", "udp", "sctp"] | None, Meta(description="Transport; any when missing.")
    ] = None


class Traffic(Attributes, frozen=True, kw_only=True):
    """Fields shared by both directions."""

    iface: Annotated[tuple[str, ...], Meta(description="Network interfaces; any when missing.")] = ()
    ports: Annotated[tuple[PortMatch, ...], Meta(description="Ports; any when missing.")] = ()
    limit: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9]+(KB|MB|GB|K|M|G)?$")] | None,
        Meta(description="Bytes per `duration`; no unit means GB.", examples=["500MB"]),
    ] = None
    duration: Annotated[str | None, Meta(description="Window of the limit.", examples=["30m"])] = None


class Ingress(Traffic, frozen=True, kw_only=True):
    """Connections that arrive."""

    from_: Annotated[tuple[PeerBlock, ...], Meta(description="Who connects; anybody when missing.")] = field(
        default=(), name="from"
    )


class Egress(Traffic, frozen=True, kw_only=True):
    """Connections that leave."""

    to: Annotated[tuple[PeerBlock, ...], Meta(description="Where to; anywhere when missing.")] = ()


class NetworkSpec(Attributes, frozen=True, kw_only=True):
    """Firewall of nodes, and bandwidth quotas of pods. Either `selector` or `nodeSelector`."""

    selector: Annotated[Selector | None, Meta(description="Which pods; every rule then needs limit and duration.")] = (
        None
    )
    node_selector: Annotated[NodeSelector | None, Meta(description="Which nodes.")] = None
    level: Annotated[
        Literal["pod", "policy", "Pod", "Policy"] | None,
        Meta(description="Who shares a quota: each pod has its own (default), or all pods of the policy one."),
    ] = None
    ingress: Annotated[tuple[Ingress, ...], Meta(description="Connections that arrive.")] = ()
    egress: Annotated[tuple[Egress, ...], Meta(description="Connections that leave.")] = ()


class Metadata(Wire, frozen=True, kw_only=True):
    """Name, namespace, labels and annotations; what else Kubernetes writes there is let through."""

    name: Annotated[str, Meta(description="Name of the policy: RFC 1123 subdomain.", examples=["block-curl"])]
    namespace: Annotated[str, Meta(description="Namespace of a KubeArmorPolicy; `default` when missing.")] = ""
    labels: Annotated[dict[str, str], Meta(description="Labels of the policy itself.")] = field(default_factory=dict)
    annotations: Annotated[
        dict[str, str],
        Meta(description="`hauberk.io/mode`, `hauberk.io/signal`, `hauberk.io/tests`, `kubearmor-policy`."),
    ] = field(default_factory=dict)


class KubeArmorPolicy(Wire, frozen=True, kw_only=True, tag_field="kind", tag="KubeArmorPolicy"):
    """Rules for containers of one namespace."""

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`; must be written.")] = API_VERSION
    metadata: Annotated[Metadata, Meta(description="Name and namespace.")]
    spec: Annotated[Spec, Meta(description="The rules.")] = field(default_factory=Spec)


class KubeArmorHostPolicy(Wire, frozen=True, kw_only=True, tag_field="kind", tag="KubeArmorHostPolicy"):
    """Rules for processes of nodes that are in no container."""

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`; must be written.")] = API_VERSION
    metadata: Annotated[Metadata, Meta(description="Name.")]
    spec: Annotated[HostSpec, Meta(description="The rules.")] = field(default_factory=HostSpec)


class KubeArmorClusterPolicy(Wire, frozen=True, kw_only=True, tag_field="kind", tag="KubeArmorClusterPolicy"):
    """Rules for containers of many namespaces."""

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`; must be written.")] = API_VERSION
    metadata: Annotated[Metadata, Meta(description="Name.")]
    spec: Annotated[ClusterSpec, Meta(description="The rules.")] = field(default_factory=ClusterSpec)


class KubeArmorNetworkPolicy(Wire, frozen=True, kw_only=True, tag_field="kind", tag="KubeArmorNetworkPolicy"):
    """Firewall rules of nodes, bandwidth quotas of pods."""

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`; must be written.")] = API_VERSION
    metadata: Annotated[Metadata, Meta(description="Name.")]
    spec: Annotated[NetworkSpec, Meta(description="The rules.")]


AnyPolicy = KubeArmorPolicy | KubeArmorHostPolicy | KubeArmorClusterPolicy | KubeArmorNetworkPolicy

KINDS: Final[dict[str, type[AnyPolicy]]] = {
    kind.__name__: kind
    for kind in (KubeArmorPolicy, KubeArmorHostPolicy, KubeArmorClusterPolicy, KubeArmorNetworkPolicy)
}


class Position(msgspec.Struct, frozen=True):
    """Where something was written: its path in the document, line and column from 1."""

    path: str
    line: int
    column: int


class PolicyDocument(msgspec.Struct, frozen=True, kw_only=True):
    """One policy that parsed. `raw` is the author's document as JSON, unchanged: the value of `policies.v1`."""

    kind: str
    namespace: str
    """Empty for the three kinds that belong to no namespace."""
    name: str
    policy: AnyPolicy
    raw: bytes
    origin: str = ""
    line: int = 1
    positions: tuple[Position, ...] = ()
    """Every list item under `spec`, in document order, and before them each test of the annotation `hauberk.io/tests`."""

    @property
    def key(self) -> str:
        """`kind/namespace/name`: the key of `policies.v1`."""
        return f"{self.kind}/{self.namespace}/{self.name}"


def reference(key: str) -> str:
    """A policy as people are told of it, from its key `kind/namespace/name`: `kind/name` where it belongs to no namespace."""
    kind, _, rest = key.partition("/")
    return f"{kind}/{rest.removeprefix('/')}" if rest else key
