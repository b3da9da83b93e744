# SPDX-License-Identifier: Apache-2.0
"""Why a rule is not enforced, or not all of it: one closed list of codes, each with its meaning.

A `Refusal` carries a code for programs and a sentence for people; the sentence may name what the code does not (a path, a
number, the rule that is the exception). docs/reference/refusals.md is generated from this list.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple


class RefusalCode(StrEnum):
    """See `MEANING`. A code that this version does not know is read as UNSPECIFIED: a newer node wrote it."""

    UNSPECIFIED = "unspecified"
    AUDIT = "audit"
    UNSEEN = "unseen"
    NEVER_MATCHES = "never-matches"
    WRONG_CLASS = "wrong-class"
    NO_OPT_IN = "no-opt-in"
    PATTERN = "pattern"
    SOURCE = "source"
    TERMINAL = "terminal"
    ARGUMENTS = "arguments"
    CALLED_NAME = "called-name"
    PRESET = "preset"
    SYSCALL = "syscall"
    DNS = "dns"
    DEVICE = "device"
    ADDRESS = "address"
    INTERFACE = "interface"
    QUOTA = "quota"
    SOCKET_FAMILY = "socket-family"
    INGRESS_NETWORK = "ingress-network"
    TOO_MANY_ENTRIES = "too-many-entries"
    PATH_TOO_LONG = "path-too-long"
    NOT_IN_PLAN = "not-in-plan"
    EXCEPTION = "exception"
    POSTURE = "posture"
    NOT_CHOSEN = "not-chosen"
    LOCKOUT = "lockout"
    UNCONFIRMED = "unconfirmed"
    NO_PROFILE = "no-profile"
    LEFT_OUT = "left-out"
    OTHER_FAMILIES = "other-families"
    AUTOBIND = "autobind"
    LATE = "late"
    MOVED = "moved"
    SHADOW = "shadow"

    @classmethod
    def _missing_(cls, value: object) -> RefusalCode:
        return cls.UNSPECIFIED

    @property
    def partial(self) -> bool:
        """Whether the rule is in force, and the code says what of it is not."""
        return self in _PARTIAL


_PARTIAL: Final = frozenset({RefusalCode.OTHER_FAMILIES, RefusalCode.AUTOBIND, RefusalCode.LATE, RefusalCode.MOVED})

MEANING: Final = {
    RefusalCode.UNSPECIFIED: "Written by a version without codes, or with a code that this version does not know; the sentence says why.",
    RefusalCode.AUDIT: "An Audit rule denies nothing; the judge reports it. Shown by `explain`, never in a receipt.",
    RefusalCode.UNSEEN: "No sensor of this version reports what the rule is about.",
    RefusalCode.NEVER_MATCHES: "The rule can never match.",
    RefusalCode.WRONG_CLASS: "The backend does not decide operations of this class.",
    RefusalCode.NO_OPT_IN: "The rule could be enforced by killing, and neither its policy nor the node opted in.",
    RefusalCode.PATTERN: "The backend looks up whole paths, names and directories, no patterns.",
    RefusalCode.SOURCE: "`fromSource` by directory or pattern is decided by the hooks of `bpf-lsm` alone, and by no profile at all.",
    RefusalCode.TERMINAL: "The backend cannot ask whether the process has a terminal (`pts`).",
    RefusalCode.ARGUMENTS: "The backend cannot see arguments (`allowedArgs`).",
    RefusalCode.CALLED_NAME: "The name is a link to a program of many names, and a kernel sees the program alone.",
    RefusalCode.PRESET: "Presets need BPF LSM hooks.",
    RefusalCode.SYSCALL: "System call rules only audit.",
    RefusalCode.DNS: "Names are read from packets after they were sent.",
    RefusalCode.DEVICE: "USB devices are not opened by a system call.",
    RefusalCode.ADDRESS: "The backend knows socket families and types, no addresses.",
    RefusalCode.INTERFACE: "A socket call does not know which interface its packets will take.",
    RefusalCode.QUOTA: "Quotas need a packet counter, and no backend has one.",
    RefusalCode.SOCKET_FAMILY: "The backend decides on internet sockets only.",
    RefusalCode.INGRESS_NETWORK: "Who will connect is not known at bind.",
    RefusalCode.TOO_MANY_ENTRIES: "Written out, the rule or its workload would take more entries of the kernel's table than are allowed.",
    RefusalCode.PATH_TOO_LONG: "The path is longer than a kernel program keeps.",
    RefusalCode.NOT_IN_PLAN: "A plan has no field for this kind of rule.",
    RefusalCode.EXCEPTION: "An exception to the rule cannot be enforced, and without it too much would be denied.",
    RefusalCode.POSTURE: "A posture `block` is not enforced, because an Allow rule of its class cannot be.",
    RefusalCode.NOT_CHOSEN: "Host policies are enforced in the cgroups of `planner.plan.host_cgroups` only.",
    RefusalCode.LOCKOUT: "Held on the host, the rule would keep the operator out; `hauberk apply --force` holds it all the same.",
    RefusalCode.UNCONFIRMED: "The policy was applied with `--confirm`, and nobody confirmed it within a minute.",
    RefusalCode.NO_PROFILE: "The workload was started under no profile that the backend may change.",
    RefusalCode.LEFT_OUT: "The rule or its policy was left out when the policies were compiled.",
    RefusalCode.OTHER_FAMILIES: "Enforced for internet sockets; those of other families have no cgroup hook and are only reported.",
    RefusalCode.AUTOBIND: "Enforced at bind; a listen without bind gets an ephemeral port without being asked.",
    RefusalCode.SHADOW: "The node's settings make the backend a shadow (`enforcement.shadow`): it counts and tells what it would deny.",
    RefusalCode.LATE: "Enforced by a kill as the call ends: what it did to files has happened by then.",
    RefusalCode.MOVED: "Enforced; but a directory that a pattern's wildcards stand for can be renamed, and the pattern may not cover its new name.",
}  # fmt: skip
"""RefusalCode -> what it means, one sentence."""


class Cause(NamedTuple):
    """Why something is not enforced: `code` for programs, `text` for people."""

    code: RefusalCode
    text: str
