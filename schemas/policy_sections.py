# SPDX-License-Identifier: Apache-2.0
"""The sections of a policy as they are written: process, file, network, capabilities, syscalls, presets, device.

Every field of KubeArmor's tree (kubearmor.md 1.2 to 1.4), camelCase on the wire. `None` means the author said nothing and the rule
inherits; never a default that hides this. Neighbour: `schemas/policy.py` (the kinds that hold these sections).
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta, field

Severity = Annotated[int, Meta(ge=1, le=10)]
ActionName = Literal["Allow", "Audit", "Block"]
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

    syscall: Annotated[tuple[Syscall, ...], Meta(description="System calls.", examples=[["ptrace", "mount"]])] = ()
    from_source: Sources = ()


class SyscallPath(SyscallAttributes, frozen=True, kw_only=True):
    """System calls that name a path."""

    path: PathOrDirectory | None = None
    recursive: Annotated[bool | None, Meta(description="With a directory: subdirectories too.")] = None
    syscall: Annotated[tuple[Syscall, ...], Meta(description="System calls; none means all.")] = ()
    from_source: Sources = ()


class SyscallsSection(SyscallAttributes, frozen=True, kw_only=True):
    """System calls to report."""

    match_syscalls: Annotated[tuple[SyscallMatch, ...], Meta(description="System calls by name.")] = ()
    match_paths: Annotated[tuple[SyscallPath, ...], Meta(description="System calls on a path.")] = ()


class Preset(Attributes, frozen=True, kw_only=True):
    """A ready-made rule."""

    name: Annotated[
        str,
        Meta(
            description="`filelessExec`, `anonymousMapExec`, `protectEnv`, `exec` or `protectProc`.",
            examples=["filelessExec"],
        ),
    ]


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
