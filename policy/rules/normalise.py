# SPDX-License-Identifier: Apache-2.0
"""A document as flat rules: everything inherited, comma lists expanded, paths canonical (kubearmor.md 1.2 to 1.4).

Inheritance is rule <- section <- spec, for severity, tags, message and action each on its own; `spec.action` missing is
Block; system call rules audit whatever is written. Pure and total: a valid document always normalises, and what the API takes
and nobody can mean becomes a rule with `Rule.void`, which never matches.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from policy.match import glob
from policy.text import values
from schemas import policy as written
from schemas import policy_sections as sections
from schemas.errors import PolicyError
from schemas.operations import Class
from schemas.policy import PolicyDocument
from schemas.rules import (
    Device,
    Expression,
    Match,
    Operator,
    Peer,
    Policy,
    PolicyKey,
    Ports,
    Rule,
    Selection,
    Source,
    SourceKind,
    Target,
)
from schemas.syscalls import ALIASES
from schemas.verdict import Action, Mode

CONTAINER_LABEL: Final = "kubearmor.io/container.name"
HOSTNAME_LABELS: Final = ("kubernetes.io/hostname", "kubearmor.io/hostname")
HOSTNAME_GLOBS: Final = ("kubernetes.io/hostnamereg", "kubearmor.io/hostnamereg")
DOMAIN_SUFFIXES: Final = ("cluster.local", "svc.cluster.local", "domain.name")
_PRESET_CLASS: Final = {"protectEnv": Class.FILE, "protectProc": Class.FILE}
_UNITS: Final = {"K": 10**3, "M": 10**6, "G": 10**9, "": 10**9}
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600}


def canonical(path: str) -> str:
    """`//a/./b/` as `/a/b/`: one slash between names, no `.`; a slash at the end is kept. `..` is left as written."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    tail = "/" if path.endswith("/") and parts else ""
    return "/" + "/".join(parts) + tail


def normalise(document: PolicyDocument) -> Policy:
    """The rules and the selection of a document."""
    annotations = document.policy.metadata.annotations
    mode, enabled = mode_of(annotations)
    spec = document.policy.spec
    return Policy(
        key=PolicyKey(document.kind, document.namespace, document.name),
        selection=selection(document),
        rules=tuple(_Rules(document)),
        mode=mode,
        enabled=enabled,
        signal=annotations.get(written.ANNOTATION_SIGNAL) == "enabled",
        force=annotations.get(written.ANNOTATION_FORCE) == "enabled",
        unconfirmed=annotations.get(written.ANNOTATION_UNCONFIRMED, ""),
        native=getattr(spec, "apparmor", None) or "",
        tests=annotations.get(written.ANNOTATION_TESTS, ""),
        origin=document.origin,
        line=document.line,
    )


def mode_of(annotations: Mapping[str, str]) -> tuple[Mode, bool]:
    """How a policy with these annotations acts, and whether it does at all."""
    status = annotations.get(written.ANNOTATION_STATUS, "enabled")
    mode = Mode.AUDITED if status == "audited" else Mode.ENFORCE
    if (beside := annotations.get(written.ANNOTATION_MODE)) in ("shadow", "baseline"):
        mode = Mode(beside)
    return mode, status != "disabled"


def selection(document: PolicyDocument) -> Selection:
    """Whom a document is for, as data."""
    spec = document.policy.spec
    node_selector = getattr(spec, "node_selector", None)
    if node_selector is not None:
        return _nodes(node_selector.match_labels)
    selector = getattr(spec, "selector", None) or written.Selector()
    labels = dict(getattr(selector, "match_labels", {}))
    containers = labels.pop(CONTAINER_LABEL, None)
    return Selection(
        target=Target.CONTAINERS,
        # A network policy for pods belongs to no namespace, but its author may have named one, and means it.
        namespace=document.namespace
        or (document.policy.metadata.namespace if document.kind == "KubeArmorNetworkPolicy" else ""),
        labels=tuple(sorted(labels.items())),
        expressions=tuple(_expression(entry) for entry in selector.match_expressions),
        containers=containers,
    )


def _nodes(labels: dict[str, str]) -> Selection:
    # Both keys written: both hold, as for any two labels. A value without a name selects no node.
    written_names = [values.elements(labels[key]) or [""] for key in HOSTNAME_LABELS if key in labels]
    hostnames = written_names[0] if written_names else []
    for more in written_names[1:]:
        hostnames = (
            more
            if "*" in hostnames
            else hostnames
            if "*" in more
            else [name for name in hostnames if name in more] or [""]
        )
    return Selection(
        target=Target.NODES,
        labels=tuple(
            sorted((key, value) for key, value in labels.items() if key not in (*HOSTNAME_LABELS, *HOSTNAME_GLOBS))
        ),
        hostnames=tuple(hostnames),
        hostname_globs=tuple(labels[key] for key in HOSTNAME_GLOBS if labels.get(key)),
    )


def _expression(entry: written.LabelExpression) -> Expression:
    items = entry.values
    if entry.key == "label":
        items = tuple("=".join(part.strip() for part in item.split("=", 1)) for item in items)
    return Expression(entry.key == "label", Operator(entry.operator), items)


class _Rules:
    """Walks the sections of one document and makes its rules."""

    def __init__(self, document: PolicyDocument) -> None:
        self.document = document
        self.key = PolicyKey(document.kind, document.namespace, document.name)
        self.spec: Any = document.policy.spec
        self.lines = {position.path: position.line for position in document.positions}
        self.index = 0

    def __iter__(self) -> Iterator[Rule]:
        for entry, section, position, fields in self.entries():
            yield self.rule(entry, section, position, **fields)

    def rule(self, entry: Any, section: Any, position: str, **fields: Any) -> Rule:
        levels = [level for level in (entry, section, self.spec) if level is not None]

        def inherited(name: str) -> Any:
            return next((value for level in levels if (value := getattr(level, name, None)) is not None), None)

        action = Action.AUDIT if fields["class_"] is Class.SYSCALL else Action(inherited("action") or "Block")
        written_sources = getattr(entry, "from_source", ())
        sources = _sources(written_sources)
        if written_sources and not sources:
            fields["void"] = fields.get("void") or "`fromSource` names no executable"
        index, self.index = self.index, self.index + 1
        return Rule(
            key=self.key,
            index=index,
            position=position,
            line=self.lines.get(position, 0),
            action=action,
            severity=inherited("severity") or 0,
            tags=inherited("tags") or (),
            message=inherited("message") or "",
            sources=sources,
            owner_only=bool(getattr(entry, "owner_only", None)),
            read_only=bool(getattr(entry, "read_only", None)),
            pts=getattr(entry, "pts", None),
            **fields,
        )

    def entries(self) -> Iterator[tuple[Any, Any, str, dict[str, Any]]]:
        """Entry, section, position and the fields that differ, for every rule in the order of the schema."""
        spec = self.spec
        if isinstance(spec, written.NetworkSpec):
            yield from self.peers(spec)
            return
        for name, class_ in (("process", Class.PROCESS), ("file", Class.FILE)):
            if (section := getattr(spec, name)) is not None:
                yield from self.paths(section, f"spec.{name}", class_)
        if spec.network is not None:
            yield from self.network(spec.network)
        if spec.capabilities is not None:
            for at, entry in enumerate(spec.capabilities.match_capabilities):
                for value in dict.fromkeys(values.elements(entry.capability)):
                    void = "" if value in values.CAPABILITIES else f"`{value}` is not a capability"
                    fields = {"class_": Class.CAPABILITIES, "match": Match.CAPABILITY, "value": value, "void": void}
                    yield entry, spec.capabilities, f"spec.capabilities.matchCapabilities[{at}]", fields
        if spec.syscalls is not None:
            yield from self.syscalls(spec.syscalls)
        for at, entry in enumerate(getattr(spec, "presets", ())):
            class_ = _PRESET_CLASS.get(entry.name, Class.PROCESS)
            void = "" if entry.name in values.PRESETS else f"`{entry.name}` is not a preset"
            fields = {"class_": class_, "match": Match.PRESET, "value": entry.name, "void": void}
            yield entry, None, f"spec.presets[{at}]", fields
        if getattr(spec, "device", None) is not None:
            for at, entry in enumerate(spec.device.match_device):
                device = Device(
                    class_=_or_any(values.class_number(entry.class_)),
                    sub_class=_or_any(entry.sub_class),
                    protocol=_or_any(entry.protocol),
                    level=_or_any(entry.level),
                )
                void = "" if values.class_number(entry.class_) is not None else f"`{entry.class_}` is not a USB class"
                fields = {
                    "class_": Class.DEVICE,
                    "match": Match.DEVICE,
                    "value": entry.class_,
                    "device": device,
                    "void": void,
                }
                yield entry, spec.device, f"spec.device.matchDevice[{at}]", fields

    def paths(self, section: Any, where: str, class_: Class) -> Iterator[tuple[Any, Any, str, dict[str, Any]]]:
        for at, entry in enumerate(section.match_paths):
            fields: dict[str, Any] = {"class_": class_, "match": Match.PATH, "value": canonical(entry.path or "")}
            if entry.path is None and entry.execname is None:
                fields |= {"value": "", "void": "it names no executable"}
            elif entry.path is None:
                fields |= {"match": Match.EXECNAME, "value": entry.execname}
            if getattr(entry, "allowed_args", None) is not None:
                fields |= {"allowed_args": entry.allowed_args, "has_args": True}
            yield entry, section, f"{where}.matchPaths[{at}]", fields
        for at, entry in enumerate(section.match_directories):
            fields = {
                "class_": class_,
                "match": Match.DIRECTORY,
                "value": canonical(entry.dir),
                "recursive": bool(entry.recursive),
            }
            yield entry, section, f"{where}.matchDirectories[{at}]", fields
        for at, entry in enumerate(section.match_patterns):
            fields = {
                "class_": class_,
                "match": Match.PATTERN,
                "value": entry.pattern,
                "void": _unreadable(entry.pattern),
            }
            yield entry, section, f"{where}.matchPatterns[{at}]", fields

    def network(self, section: Any) -> Iterator[tuple[Any, Any, str, dict[str, Any]]]:
        for at, entry in enumerate(section.match_protocols):
            told: set[tuple[str, str]] = set()
            for name in values.elements(entry.protocol):
                known = name.lower() in values.PROTOCOLS and name in (name.lower(), name.upper())
                void = "" if known else f"`{name}` is not a protocol"
                fields: dict[str, Any] = {
                    "class_": Class.NETWORK,
                    "match": Match.PROTOCOL,
                    "value": name.lower() if known else name,
                    "void": void,
                }
                if (fields["value"], void) in told:
                    continue
                told.add((fields["value"], void))
                yield entry, section, f"spec.network.matchProtocols[{at}]", fields
        suffixes: tuple[str, ...] = DOMAIN_SUFFIXES
        if self.document.namespace:
            suffixes = (*suffixes, f"{self.document.namespace}.svc.cluster.local")
        for at, entry in enumerate(section.match_dns_queries):
            for value in dict.fromkeys(values.elements(entry.domain.lower())) or ("",):
                void = "" if values.is_domain(value) else f"`{value}` is not a domain name"
                name = value if void else value.removeprefix("*.").strip(".")
                fields = {
                    "class_": Class.NETWORK,
                    "match": Match.DNS,
                    "value": name,
                    "suffixes": suffixes,
                    "void": void,
                }
                yield entry, section, f"spec.network.matchDNSQueries[{at}]", fields

    def syscalls(self, section: Any) -> Iterator[tuple[Any, Any, str, dict[str, Any]]]:
        for at, entry in enumerate(section.match_syscalls):
            names = tuple(dict.fromkeys(entry.syscall))
            fields: dict[str, Any] = {
                "class_": Class.SYSCALL,
                "match": Match.SYSCALL,
                "value": ",".join(names),
                "syscalls": tuple(dict.fromkeys(ALIASES.get(name, name) for name in names)),
                "void": "" if names else "it names no system call",
            }
            yield entry, section, f"spec.syscalls.matchSyscalls[{at}]", fields
        for at, entry in enumerate(section.match_paths):
            directory = (entry.path or "").endswith("/")
            fields = {
                "class_": Class.SYSCALL,
                "match": Match.DIRECTORY if directory else Match.PATH,
                "value": canonical(entry.path) if entry.path else "",
                "void": "" if entry.path else "it names no path",
                "recursive": directory and bool(entry.recursive),
                "syscalls": tuple(dict.fromkeys(ALIASES.get(name, name) for name in entry.syscall)),
            }
            yield entry, section, f"spec.syscalls.matchPaths[{at}]", fields

    def peers(self, spec: written.NetworkSpec) -> Iterator[tuple[Any, Any, str, dict[str, Any]]]:
        per_policy = (spec.level or "pod").lower() == "policy"
        for name in ("ingress", "egress"):
            for at, entry in enumerate(getattr(spec, name)):
                blocks = entry.from_ if name == "ingress" else entry.to
                networks = tuple(
                    known for block in blocks if (known := values.network(block.ip_block.cidr)) is not None
                )
                ports = tuple(made for port in entry.ports if (made := _ports(port)) is not None)
                peer = Peer(
                    ingress=name == "ingress",
                    networks=networks,
                    interfaces=entry.iface,
                    ports=ports,
                    limit=_bytes(entry.limit),
                    window=_window(entry.duration),
                    per_policy=per_policy,
                )
                void = ""
                if blocks and not networks:
                    void = "none of its networks is one"
                elif entry.ports and not ports:
                    void = "none of its ports is one"
                elif (entry.limit is None) != (entry.duration is None):
                    void = "a quota is an amount per time, and half of it is missing"
                elif entry.duration is not None and not peer.window:
                    void = f"`{entry.duration}` is not a duration"
                fields = {"class_": Class.NETWORK, "match": Match.PEER, "value": name, "peer": peer, "void": void}
                yield entry, None, f"spec.{name}[{at}]", fields


def _or_any(number: int | None) -> int:
    return -1 if number is None else number


def _sources(entries: tuple[sections.SourceMatch, ...]) -> tuple[Source, ...]:
    found: list[Source] = []
    for entry in entries:
        if entry.path is not None:
            found.append(Source(SourceKind.PATH, canonical(entry.path)))
        if entry.dir is not None:
            found.append(Source(SourceKind.DIRECTORY, canonical(entry.dir + "/"), bool(entry.recursive)))
        if entry.pattern is not None:
            found.append(Source(SourceKind.PATTERN, entry.pattern))
    return tuple(dict.fromkeys(found))


def _unreadable(pattern: str) -> str:
    """Why a pattern matches nothing; "" for a good one."""
    if not pattern:
        return "the pattern is empty"
    try:
        glob.parse(pattern)
    except PolicyError as error:
        return str(error)
    return ""


def _ports(entry: written.PortMatch) -> Ports | None:
    first = values.port_number(str(entry.port))
    if first is None or (entry.end_port is not None and entry.end_port < first):
        return None
    return Ports(first, entry.end_port or first, (entry.protocol or "").lower())


def _bytes(limit: str | None) -> int:
    found = re.fullmatch(values.QUANTITY, limit) if limit else None
    return int(found[1]) * _UNITS[(found[2] or "")[:1]] if found else 0


def _window(duration: str | None) -> int:
    found = re.fullmatch(values.DURATION, duration) if duration else None
    return int(found[1]) * _SECONDS[found[2]] if found else 0
