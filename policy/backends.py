# SPDX-License-Identifier: Apache-2.0
"""What each enforcement backend can express, as one table of reasons: for the planner, `explain` and the lint alike.

Says what the kind of backend can do; whether this node's kernel offers it is for `hauberk probe` and the receipts. Audit rules
need no backend: they are told by the judge.
"""

from __future__ import annotations

from typing import Final

from schemas.operations import Backend, Class
from schemas.rules import Match, Rule, SourceKind
from schemas.verdict import Action

ALL: Final = (Backend.BPF_LSM, Backend.APPARMOR, Backend.CGROUP, Backend.SIGNAL)
HERE: Final = (Backend.CGROUP, Backend.SIGNAL)
"""Those that this version has. The others are told of, so that a policy can be written for them: they hold nothing yet."""
NAMES: Final = {
    Backend.BPF_LSM: "bpf-lsm",
    Backend.APPARMOR: "apparmor",
    Backend.CGROUP: "cgroup",
    Backend.SIGNAL: "signal",
}
_INTERNET: Final = frozenset({"tcp", "udp", "icmp", "icmpv6", "sctp", "raw", "stream", "dgram", "seqpacket", "all"})


_EVERY_FAMILY: Final = frozenset({"all", "raw", "stream", "dgram", "seqpacket"})
OTHER_FAMILIES: Final = (
    "in part: internet sockets are denied; those of other families (AF_PACKET, AF_VSOCK, AF_XDP and the like) "
    "have no cgroup hook and are only told"
)
AUTOBIND: Final = (
    "in part: taking a port by bind is denied; listen without bind gets a port of the ephemeral range without asking, "
    "and who connects to it is only told"
)
LATE: Final = (
    "the process is killed as the call ends: a mere open gives it nothing, but unlink, rename, link, symlink, mkdir, mknod, chmod, chown, "
    "truncate and an open that creates or truncates have happened by then; those that name a path are known by the name the caller used"
)
"""What the signal backend does not hold of a rule on files that it carries."""


def late(rule: Rule, *, signal: bool = True) -> str:
    """What of `rule` is only answered after it has happened, where the backends of this version carry it; "" for nothing."""
    carried = rule.class_ is Class.FILE and denies(rule) and reason(rule, Backend.SIGNAL, signal=signal) is None
    return LATE if carried else ""


def limited(rule: Rule) -> bool:
    """Whether the rule leaves a part free by ownerOnly, readOnly or pts."""
    return rule.owner_only or rule.read_only or rule.pts is False


def denies(rule: Rule) -> bool:
    """Whether anything is ever denied by the rule: a limited Allow denies what is outside its limits."""
    return rule.action is Action.BLOCK or (rule.action is Action.ALLOW and limited(rule))


def frees(rule: Rule) -> bool:
    """Whether anything passes because of the rule that would not without it."""
    return rule.action is Action.ALLOW or (rule.action is Action.BLOCK and (limited(rule) or rule.has_args))


def held(rule: Rule, *, signal: bool = True) -> bool:
    """Whether a backend of this version can carry out `rule` as it is written."""
    return any(reason(rule, backend, signal=signal) is None for backend in HERE)


def reason(rule: Rule, backend: Backend, *, signal: bool = True) -> str | None:
    """Why `backend` cannot carry out `rule`; None when it can. `signal`: its policy or node opted in to kills."""
    if rule.action is Action.AUDIT:
        return "Audit rules are told by the judge, nothing is denied"
    if rule.match is Match.PEER:
        return _peer(rule, backend)
    if rule.match is Match.DNS:
        return "names are read from packets, which the judge sees after they were sent"
    if rule.match is Match.DEVICE:
        return "USB devices are not opened through a system call; the device handler would authorise them"
    match backend:
        case Backend.BPF_LSM:
            return _bpf_lsm(rule)
        case Backend.APPARMOR:
            return _apparmor(rule)
        case Backend.CGROUP:
            return _cgroup(rule)
        case Backend.SIGNAL:
            return _signal(rule, signal)
        case Backend.OBSERVER:
            return "the observer only watches"


def remainder(rule: Rule, backend: Backend) -> str | None:
    """What `backend` leaves to be told of a rule that it carries out; None when it holds the whole of it."""
    if backend is not Backend.CGROUP or not denies(rule):
        return None
    if rule.match is Match.PEER:
        return AUTOBIND if rule.value == "ingress" else None
    return OTHER_FAMILIES if rule.class_ is Class.NETWORK and rule.value in _EVERY_FAMILY else None


def _peer(rule: Rule, backend: Backend) -> str | None:
    peer = rule.peer
    assert peer is not None
    if peer.limit:
        return "quotas need a packet counter; no backend has one"
    if backend is Backend.APPARMOR:
        return "AppArmor knows socket families and types, no addresses"
    if backend is Backend.SIGNAL:
        return "kills only at exec or open"
    if peer.interfaces:
        return "a socket call does not know the interface its packets will take"
    return None


def _source(rule: Rule) -> str | None:
    if any(source.kind is not SourceKind.PATH for source in rule.sources):
        return "`fromSource` with `dir` or `pattern` is matched in userspace; name the executables with `path`"
    return None


def _bpf_lsm(rule: Rule) -> str | None:
    if rule.class_ is Class.SYSCALL:
        return "system call rules only audit"
    return _source(rule)


def _apparmor(rule: Rule) -> str | None:
    if rule.match is Match.PRESET:
        return "presets need BPF LSM hooks"
    if rule.pts is False:
        return "a profile cannot ask for a terminal"
    if rule.has_args:
        return "a profile cannot see arguments"
    return _source(rule)


def _cgroup(rule: Rule) -> str | None:
    if rule.class_ is not Class.NETWORK:
        return "cgroup programs see sockets only"
    if rule.value not in _INTERNET:
        return f"cgroup programs see internet sockets only, not `{rule.value}`"
    if rule.pts is False:
        return "a cgroup program cannot ask for a terminal"
    return _source(rule)


def _signal(rule: Rule, opted_in: bool) -> str | None:
    if rule.class_ not in (Class.PROCESS, Class.FILE) or rule.match is Match.PRESET:
        return "kills only at exec or open"
    if rule.match is Match.PATTERN:
        return "the program that kills looks up whole paths, names and directories, not patterns"
    # An Allow rule kills nobody, and without it a Block rule of another policy would kill too much.
    if not opted_in and denies(rule):
        return "the policy does not opt in to kills (annotation `hauberk.io/signal: enabled`)"
    if rule.pts is False:
        return "the program that kills does not look at the terminal"
    if rule.has_args:
        return "the program that kills does not look at arguments"
    return _source(rule)
