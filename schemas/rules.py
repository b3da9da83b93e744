# SPDX-License-Identifier: Apache-2.0
"""A policy after normalisation: flat rules with everything inherited, lists expanded, paths made canonical.

`policy.rules.normalise` makes these; the compiler, the planner, the AppArmor writer and `explain` read them and nothing else.
Frozen, hashable, no dicts. Neighbours: `schemas/policy.py` (what the author wrote), `schemas/verdict.py` (the answer).
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from schemas.operations import Class
from schemas.verdict import Action, Mode, RuleRef


class Match(StrEnum):
    """What `Rule.value` holds and how it is compared."""

    PATH = "path"
    """Absolute path, canonical (no `//`, no `/./`), no slash at the end."""
    DIRECTORY = "directory"
    """Absolute, canonical, slash at the end (`/` alone is the root). The directory object itself is matched too."""
    PATTERN = "pattern"
    """Glob over the whole path."""
    EXECNAME = "execname"
    """Basename of the new executable."""
    PROTOCOL = "protocol"
    """Lower case: tcp udp raw icmp icmpv6 sctp stream dgram rdm seqpacket dccp packet all."""
    DNS = "dns"
    """Lower-case domain without dots at the ends; matches itself, its subdomains, and each with a `suffixes` element."""
    CAPABILITY = "capability"
    """Lower case, without `cap_`."""
    SYSCALL = "syscall"
    """The names are in `Rule.syscalls`; `value` is their comma list. For syscall rules on a path `match` is PATH or
    DIRECTORY with class SYSCALL, and empty `syscalls` means any."""
    PRESET = "preset"
    """filelessExec anonymousMapExec protectEnv exec protectProc."""
    DEVICE = "device"
    """See `Rule.device`; `value` is the class as written."""
    PEER = "peer"
    """See `Rule.peer`; `value` is `ingress` or `egress`."""


class SourceKind(StrEnum):
    """How a `fromSource` entry names executables."""

    PATH = "path"
    DIRECTORY = "directory"
    PATTERN = "pattern"


class Source(msgspec.Struct, frozen=True):
    """One `fromSource` entry, canonical as `Match.PATH`, `Match.DIRECTORY`, `Match.PATTERN` are."""

    kind: SourceKind
    value: str
    recursive: bool = False


class Device(msgspec.Struct, frozen=True):
    """USB device rule. -1 means any; `class_` -1 is `ALL`."""

    class_: int
    sub_class: int = -1
    protocol: int = -1
    level: int = -1


class Ports(msgspec.Struct, frozen=True):
    """A range of ports, both ends included; 0..0 is any port. `protocol`: tcp, udp, sctp or empty for any."""

    first: int = 0
    last: int = 0
    protocol: str = ""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """One ingress or egress entry of a KubeArmorNetworkPolicy. Empty tuples mean any."""

    ingress: bool
    networks: tuple[str, ...] = ()
    """Canonical CIDRs, IPv4 or IPv6."""
    interfaces: tuple[str, ...] = ()
    ports: tuple[Ports, ...] = ()
    limit: int = 0
    """Bytes per `window`; 0 is no quota."""
    window: int = 0
    """Seconds."""
    per_policy: bool = False
    """The quota is shared by all pods of the policy; otherwise each pod has its own."""


class PolicyKey(msgspec.Struct, frozen=True, order=True):
    """Names a policy. `namespace` is empty for the kinds that have none."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.namespace}/{self.name}"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is allowed, audited or blocked."""

    key: PolicyKey
    index: int
    """0, 1, 2... in the order of the policy: stable name of the rule for hit counts."""
    position: str
    """Where it was written: `spec.process.matchPaths[2]`. Elements of one comma list share it."""
    line: int = 0
    class_: Class
    match: Match
    value: str
    recursive: bool = False
    suffixes: tuple[str, ...] = ()
    syscalls: tuple[str, ...] = ()
    sources: tuple[Source, ...] = ()
    """Any of them; empty means done by anybody."""
    owner_only: bool = False
    read_only: bool = False
    pts: bool | None = None
    """False: acts only on tasks with a terminal. True and None: no effect."""
    allowed_args: tuple[str, ...] = ()
    has_args: bool = False
    """`allowedArgs` was written, even as an empty list."""
    action: Action
    severity: int = 0
    """0: not given, left out of alerts."""
    tags: tuple[str, ...] = ()
    message: str = ""
    device: Device | None = None
    peer: Peer | None = None
    void: str = ""
    """Why the rule can mean nothing: it never matches, and is told in `explain`, lint and receipts. Empty for a good rule."""
    called: str = ""
    """Only when the program was called by this name: set on the variant of a rule whose link leads to a busybox."""

    @property
    def ref(self) -> RuleRef:
        """What verdicts and alerts carry."""
        return RuleRef(self.key.name, self.key.kind, self.key.namespace, self.position, self.line, self.index)


class Operator(StrEnum):
    """Label expressions know these two."""

    IN = "In"
    NOT_IN = "NotIn"


class Expression(msgspec.Struct, frozen=True):
    """`labels` True: values are `k=v`; False: values are namespaces."""

    labels: bool
    operator: Operator
    values: tuple[str, ...]


class Target(StrEnum):
    """What the policy is for."""

    CONTAINERS = "containers"
    NODES = "nodes"


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """Whom the policy is for, as data; `policy.rules.select.predicate` makes a function of it."""

    target: Target
    namespace: str = ""
    """The namespace of a KubeArmorPolicy; empty means any (cluster and network policies)."""
    labels: tuple[tuple[str, str], ...] = ()
    """Without the special keys below; all must be there."""
    expressions: tuple[Expression, ...] = ()
    """All must hold."""
    containers: str | None = None
    """Value of `kubearmor.io/container.name` as written: a bracketed list, or a regular expression outside Kubernetes."""
    hostnames: tuple[str, ...] = ()
    """Node names, any of them; `*` is every node."""
    hostname_globs: tuple[str, ...] = ()
    """From the two `hostnamereg` keys: globs where `*` is any text."""


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A normalised policy."""

    key: PolicyKey
    selection: Selection
    rules: tuple[Rule, ...]
    mode: Mode = Mode.ENFORCE
    """SHADOW and BASELINE from `hauberk.io/mode`, AUDITED from `kubearmor-policy: audited`."""
    enabled: bool = True
    """False from `kubearmor-policy: disabled`: kept, never applied."""
    signal: bool = False
    """Its Block rules may be carried out by a kill where nothing can deny (`hauberk.io/signal: enabled`)."""
    unconfirmed: str = ""
    """When it was applied for a trial, RFC 3339 (`hauberk.io/unconfirmed-since`); "" for good."""
    force: bool = False
    """Its rules are held also where they lock the operator out (`hauberk.io/force: enabled`)."""
    native: str = ""
    """Raw AppArmor rule lines."""
    tests: str = ""
    """YAML text of `hauberk.io/tests`."""
    origin: str = ""
    line: int = 0
