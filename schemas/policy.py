# SPDX-License-Identifier: Apache-2.0
"""The four policy kinds as they are written: KubeArmor's field tree (API `security.kubearmor.com/v1`), camelCase on the wire.

This is the shape alone. What a field means is in `policy/`, what a rule is after inheritance is in `schemas/rules.py`.
`docs/policies.md` and the checks of `policy/check.py` are generated from these structs, so a field, its limits and its
description exist once. Never add a default that hides "not written": `None` means the author said nothing and inherits.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, field

API_VERSION: Final = "security.kubearmor.com/v1"

ANNOTATION_MODE: Final = "hauberk.io/mode"
"""`enforce` (default) or `shadow`: a shadow policy is judged beside the enforced set and never blocks."""
ANNOTATION_SIGNAL: Final = "hauberk.io/signal"
"""`enabled` lets the signal backend kill for Block rules of this policy where no LSM can deny; default `disabled`."""
ANNOTATION_TESTS: Final = "hauberk.io/tests"
"""YAML text: a list of `{event: {KubeArmor log fields}, expect: {action, policy?}}`, run by `hauberk policy test`."""
ANNOTATION_STATUS: Final = "kubearmor-policy"
"""`enabled` (default), `audited` (Block and Allow only tell) or `disabled` (as if the policy were not there)."""

Severity = Annotated[int, Meta(ge=1, le=10)]
ActionName = Literal["Allow", "Audit", "Block"]
LabelOperator = Literal["In", "NotIn"]
Path = Annotated[
    str,
    Meta(
        pattern=r"^\/+.*[^\/]$",
        description="Absolute path of a file, without a slash at the end.",
        examples=["/usr/bin/curl"],
        extra={"kubearmor_max_length": 200},
    ),
]
Directory = Annotated[
    str,
    Meta(pattern=r"^\/$|^\/.*\/$", description="Absolute path of a directory, slash at the end.", examples=["/etc/"]),
]
PathOrDirectory = Annotated[
    str, Meta(pattern=r"^\/.*$", description="A file, or a directory when it ends with a slash.", examples=["/etc/"])
]
Basename = Annotated[
    str, Meta(pattern=r"^[^\/]+$", description="Name of the executable without its directory.", examples=["curl"])
]
Pattern = Annotated[
    str, Meta(description="Glob over the whole absolute path: `*`, `**`, `?`, classes, braces.", examples=["/*/*sh"])
]
Protocol = Annotated[
    str,
    Meta(
        description="Protocol or socket type, or a comma list of them, all lower or all upper case.",
        examples=["tcp", "udp,icmp"],
    ),
]
Domain = Annotated[
    str, Meta(description="Domain name, its subdomains included, or a comma list of them.", examples=["example.com"])
]
Capability = Annotated[
    str, Meta(description="Lower-case capability without `CAP_`, or a comma list of them.", examples=["net_raw"])
]
Syscall = Annotated[str, Meta(description="Lower-case system call name.", examples=["ptrace"])]
OwnerOnly = Annotated[
    bool | None, Meta(description="Only the owner of the file may do it: Allow and Block mean the same for others.")
]
ReadOnly = Annotated[bool | None, Meta(description="The rule is about changing the file; reading stays free.")]
Pts = Annotated[bool | None, Meta(description="`false`: the rule acts only on tasks that have a terminal.")]


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="camel"):
    """Options shared by every struct here."""


class Attributes(Wire, frozen=True, kw_only=True):
    """What an alert says and what is done; inherited rule <- section <- spec, each field on its own."""

    severity: Annotated[Severity | None, Meta(description="1 (low) to 10 (high).", examples=[5])] = None
    tags: Annotated[
        tuple[str, ...] | None, Meta(description="Words copied to the alert.", examples=[["MITRE", "T1059"]])
    ] = None
    message: Annotated[str | None, Meta(description="Sentence copied to the alert.")] = None
    action: Annotated[
        ActionName | None, Meta(description="What happens on a match. `spec.action` missing means Block.")
    ] = None


class SourceMatch(Wire, frozen=True, kw_only=True):
    """`fromSource`: the rule holds only for what these executables do (process rules: the parent's executable)."""

    path: Annotated[Path | None, Meta(description="Exact executable.")] = None
    dir: Annotated[
        str | None, Meta(description="Executables in this directory; the slash at the end may be left out.")
    ] = None
    recursive: Annotated[bool | None, Meta(description="With `dir`: its subdirectories too.")] = None
    pattern: Annotated[Pattern | None, Meta(description="Executables by glob; an extension of Hauberk.")] = None


Sources = Annotated[tuple[SourceMatch, ...], Meta(description="Only when done by one of these executables.")]


class ProcessPath(Attributes, frozen=True, kw_only=True):
    """One executable, by path or by name."""

    path: Path | None = None
    execname: Basename | None = None
    allowed_args: Annotated[
        tuple[str, ...] | None,
        Meta(
            description="Arguments that may be used; any other makes the rule act.",
            examples=[["-l"]],
            extra={"kubearmor_max_items": 20},
        ),
    ] = None
    owner_only: OwnerOnly = None
    pts: Pts = None
    from_source: Sources = ()


class ProcessDirectory(Attributes, frozen=True, kw_only=True):
    """Executables in a directory."""

    dir: Directory
    recursive: Annotated[bool | None, Meta(description="Subdirectories too.")] = None
    owner_only: OwnerOnly = None
    pts: Pts = None
    from_source: Sources = ()


class ProcessPattern(Attributes, frozen=True, kw_only=True):
    """Executables by glob."""

    pattern: Pattern
    owner_only: OwnerOnly = None


class ProcessSection(Attributes, frozen=True, kw_only=True):
    """What may be executed."""

    match_paths: Annotated[tuple[ProcessPath, ...], Meta(description="Executables by path or name.")] = ()
    match_directories: Annotated[tuple[ProcessDirectory, ...], Meta(description="Executables by directory.")] = ()
    match_patterns: Annotated[tuple[ProcessPattern, ...], Meta(description="Executables by glob.")] = ()


class FilePath(Attributes, frozen=True, kw_only=True):
    """One file."""

    path: Path
    read_only: ReadOnly = None
    owner_only: OwnerOnly = None
    pts: Pts = None
    from_source: Sources = ()


class FileDirectory(Attributes, frozen=True, kw_only=True):
    """Files in a directory, and the directory itself."""

    dir: Directory
    recursive: Annotated[bool | None, Meta(description="Subdirectories too.")] = None
    read_only: ReadOnly = None
    owner_only: OwnerOnly = None
    pts: Pts = None
    from_source: Sources = ()


class FilePattern(Attributes, frozen=True, kw_only=True):
    """Files by glob."""

    pattern: Pattern
    read_only: ReadOnly = None
    owner_only: OwnerOnly = None


class FileSection(Attributes, frozen=True, kw_only=True):
    """What may be opened, changed, made, removed."""

    match_paths: Annotated[tuple[FilePath, ...], Meta(description="Files by path.")] = ()
    match_directories: Annotated[tuple[FileDirectory, ...], Meta(description="Files by directory.")] = ()
    match_patterns: Annotated[tuple[FilePattern, ...], Meta(description="Files by glob.")] = ()


class NetworkProtocol(Attributes, frozen=True, kw_only=True):
    """Sockets of a protocol or type."""

    protocol: Protocol
    pts: Pts = None
    from_source: Sources = ()


class DnsQuery(Attributes, frozen=True, kw_only=True):
    """Names asked for in DNS."""

    domain: Domain
    from_source: Sources = ()


class NetworkSection(Attributes, frozen=True, kw_only=True):
    """Which sockets may be used and which names may be asked for."""

    match_protocols: Annotated[tuple[NetworkProtocol, ...], Meta(description="Sockets by protocol.")] = ()
    match_dns_queries: Annotated[tuple[DnsQuery, ...], Meta(description="DNS names.")] = field(
        default=(), name="matchDNSQueries"
    )


class CapabilityMatch(Attributes, frozen=True, kw_only=True):
    """Use of a capability."""

    capability: Capability
    from_source: Sources = ()


class CapabilitiesSection(Attributes, frozen=True, kw_only=True):
    """Which capabilities may be used."""

    match_capabilities: Annotated[tuple[CapabilityMatch, ...], Meta(description="Capabilities by name.")] = ()


class SyscallAttributes(Wire, frozen=True, kw_only=True):
    """Attributes of system call rules: no action, they always audit."""

    severity: Annotated[Severity | None, Meta(description="1 (low) to 10 (high).")] = None
    tags: Annotated[tuple[str, ...] | None, Meta(description="Words copied to the alert.")] = None
    message: Annotated[str | None, Meta(description="Sentence copied to the alert.")] = None


class SyscallMatch(SyscallAttributes, frozen=True, kw_only=True):
    """System calls by name."""

    syscall: Annotated[tuple[Syscall, ...], Meta(description="System calls.", examples=[["ptrace", "mount"]])]
    from_source: Sources = ()


class SyscallPath(SyscallAttributes, frozen=True, kw_only=True):
    """System calls that name a path."""

    path: PathOrDirectory
    recursive: Annotated[bool | None, Meta(description="With a directory: subdirectories too.")] = None
    syscall: Annotated[tuple[Syscall, ...], Meta(description="System calls; none means all.")] = ()
    from_source: Sources = ()


class SyscallsSection(SyscallAttributes, frozen=True, kw_only=True):
    """System calls to tell about."""

    match_syscalls: Annotated[tuple[SyscallMatch, ...], Meta(description="System calls by name.")] = ()
    match_paths: Annotated[tuple[SyscallPath, ...], Meta(description="System calls on a path.")] = ()


PresetName = Literal["filelessExec", "anonymousMapExec", "protectEnv", "exec", "protectProc"]


class Preset(Attributes, frozen=True, kw_only=True):
    """A ready-made rule."""

    name: Annotated[PresetName, Meta(description="Which one.", examples=["filelessExec"])]


class DeviceMatch(Attributes, frozen=True, kw_only=True):
    """USB devices of a class."""

    class_: Annotated[
        str, Meta(description="Class name, decimal or 0x number, or `ALL`.", examples=["MASS-STORAGE"])
    ] = field(name="class")
    sub_class: Annotated[int | None, Meta(description="Interface subclass; all when missing.")] = None
    protocol: Annotated[int | None, Meta(description="Interface protocol; all when missing.")] = None
    level: Annotated[Annotated[int, Meta(ge=1)] | None, Meta(description="Depth behind hubs; all when missing.")] = None


class DeviceSection(Attributes, frozen=True, kw_only=True):
    """Which USB devices may be plugged in."""

    match_device: Annotated[tuple[DeviceMatch, ...], Meta(description="Devices by class.")] = ()


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
    duration: Annotated[
        Annotated[str, Meta(pattern=r"^[0-9]+(s|m|h)$")] | None,
        Meta(description="Window of the limit.", examples=["30m"]),
    ] = None


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

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`.")] = API_VERSION
    metadata: Annotated[Metadata, Meta(description="Name and namespace.")]
    spec: Annotated[Spec, Meta(description="The rules.")]


class KubeArmorHostPolicy(Wire, frozen=True, kw_only=True, tag_field="kind", tag="KubeArmorHostPolicy"):
    """Rules for processes of nodes that are in no container."""

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`.")] = API_VERSION
    metadata: Annotated[Metadata, Meta(description="Name.")]
    spec: Annotated[HostSpec, Meta(description="The rules.")]


class KubeArmorClusterPolicy(Wire, frozen=True, kw_only=True, tag_field="kind", tag="KubeArmorClusterPolicy"):
    """Rules for containers of many namespaces."""

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`.")] = API_VERSION
    metadata: Annotated[Metadata, Meta(description="Name.")]
    spec: Annotated[ClusterSpec, Meta(description="The rules.")]


class KubeArmorNetworkPolicy(Wire, frozen=True, kw_only=True, tag_field="kind", tag="KubeArmorNetworkPolicy"):
    """Firewall rules of nodes, bandwidth quotas of pods."""

    api_version: Annotated[str, Meta(description="`security.kubearmor.com/v1`.")] = API_VERSION
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
    """Every list item under `spec`, in document order."""

    @property
    def key(self) -> str:
        """`kind/namespace/name`: the key of `policies.v1`."""
        return f"{self.kind}/{self.namespace}/{self.name}"
