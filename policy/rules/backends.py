# SPDX-License-Identifier: Apache-2.0
"""What each enforcement backend can express, as one table of reasons: for the planner, `explain` and the lint alike.

Says what the kind of backend can do; whether this node's kernel offers it is for `hauberk probe` and the receipts. Audit rules
need no backend: they are told by the judge.
"""

from __future__ import annotations

from typing import Final

from schemas.backends import BACKENDS, FLOOR, IMPLEMENTED
from schemas.operations import Backend, Class
from schemas.refusals import Cause, RefusalCode
from schemas.rules import Match, Rule, SourceKind
from schemas.verdict import Action

ALL: Final = tuple(BACKENDS)
HERE: Final = IMPLEMENTED
"""Those that every node uses unless its settings say otherwise; the others are asked for."""
NAMES: Final = {backend: about.name for backend, about in BACKENDS.items()}
TELLING: Final = (Backend.BPF_LSM,)
"""Those that report what they stop by themselves, whether or not the sensor watches such calls."""
_INTERNET: Final = frozenset({"tcp", "udp", "icmp", "icmpv6", "sctp", "raw", "stream", "dgram", "seqpacket", "all"})


_EVERY_FAMILY: Final = frozenset({"all", "raw", "stream", "dgram", "seqpacket"})
OTHER_FAMILIES: Final = Cause(
    RefusalCode.OTHER_FAMILIES,
    "internet sockets are denied; those of other families (AF_PACKET, AF_VSOCK, AF_XDP and the like) have no cgroup hook and "
    "are only reported",
)
AUTOBIND: Final = Cause(
    RefusalCode.AUTOBIND,
    "taking a port by bind is denied; listen without bind gets a port of the ephemeral range without asking, and who connects "
    "to it is only reported",
)
LATE: Final = Cause(
    RefusalCode.LATE,
    "the process is killed as the call ends: a mere open gives it nothing, but unlink, rename, link, symlink, mkdir, mknod, chmod, chown, "
    "truncate and an open that creates or truncates have happened by then; those that name a path are known by the name the caller used",
)
"""What the signal backend leaves of a rule on files that it carries."""
_WHERE_SOCKETS: Final = Cause(RefusalCode.WRONG_CLASS, "cgroup programs see sockets only")
_WHERE_KILLED: Final = Cause(RefusalCode.WRONG_CLASS, "kills only at exec or open")


def late(rule: Rule, *, signal: bool = True) -> str:
    """What of `rule` is only answered after it has happened, where the backends of this version carry it; "" for nothing."""
    carried = rule.class_ is Class.FILE and denies(rule) and reason(rule, Backend.SIGNAL, signal=signal) is None
    return LATE.text if carried else ""


def limited(rule: Rule) -> bool:
    """Whether the rule leaves a part free by ownerOnly, readOnly or pts."""
    return rule.owner_only or rule.read_only or rule.pts is False


def denies(rule: Rule) -> bool:
    """Whether anything is ever denied by the rule: a limited Allow denies what is outside its limits."""
    return rule.action is Action.BLOCK or (rule.action is Action.ALLOW and limited(rule))


def frees(rule: Rule) -> bool:
    """Whether anything passes because of the rule that would not without it. Presets stand beside the rules: they free nothing."""
    return rule.match is not Match.PRESET and _frees(rule)


def _frees(rule: Rule) -> bool:
    return rule.action is Action.ALLOW or (rule.action is Action.BLOCK and (limited(rule) or rule.has_args))


def held(rule: Rule, *, signal: bool = True) -> bool:
    """Whether a backend that every kernel offers can carry out `rule` as it is written."""
    return any(reason(rule, backend, signal=signal) is None for backend in FLOOR)


def reason(rule: Rule, backend: Backend, *, signal: bool = True) -> Cause | None:
    """Why `backend` cannot carry out `rule`; None when it can. `signal`: its policy or node opted in to kills."""
    if rule.action is Action.AUDIT:
        return Cause(RefusalCode.AUDIT, "Audit rules are reported by the judge, nothing is denied")
    if rule.match is Match.PEER:
        return _peer(rule, backend)
    if rule.match is Match.DNS:
        return Cause(RefusalCode.DNS, "names are read from packets, which the judge sees after they were sent")
    if rule.match is Match.DEVICE:
        return Cause(
            RefusalCode.DEVICE,
            "USB devices are not opened through a system call; the device handler would authorise them",
        )
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
            return Cause(RefusalCode.WRONG_CLASS, "the observer only watches")


def remainder(rule: Rule, backend: Backend) -> Cause | None:
    """What `backend` leaves to be reported of a rule that it carries out; None when it holds the whole of it."""
    if backend is not Backend.CGROUP or not denies(rule):
        return None
    if rule.match is Match.PEER:
        return AUTOBIND if rule.value == "ingress" else None
    return OTHER_FAMILIES if rule.class_ is Class.NETWORK and rule.value in _EVERY_FAMILY else None


def _peer(rule: Rule, backend: Backend) -> Cause | None:
    peer = rule.peer
    assert peer is not None
    if peer.limit:
        return Cause(RefusalCode.QUOTA, "quotas need a packet counter; no backend has one")
    if backend is Backend.APPARMOR:
        return Cause(RefusalCode.ADDRESS, "AppArmor knows socket families and types, no addresses")
    if backend is Backend.SIGNAL:
        return _WHERE_KILLED
    if peer.interfaces:
        return Cause(RefusalCode.INTERFACE, "a socket call does not know the interface its packets will take")
    return None


def _source(rule: Rule) -> Cause | None:
    if any(source.kind is not SourceKind.PATH for source in rule.sources):
        return Cause(
            RefusalCode.SOURCE,
            "`fromSource` with `dir` or `pattern` is decided by the hooks of `bpf-lsm` alone; name the executables with `path`",
        )
    return None


def _bpf_lsm(rule: Rule) -> Cause | None:
    if rule.class_ is Class.SYSCALL:
        return Cause(RefusalCode.SYSCALL, "system call rules only audit")
    if rule.has_args:
        return Cause(RefusalCode.ARGUMENTS, "the LSM hooks do not look at arguments")
    return None


def _apparmor(rule: Rule) -> Cause | None:
    if rule.match is Match.PRESET:
        return Cause(RefusalCode.PRESET, "presets need BPF LSM hooks")
    if rule.pts is False:
        return Cause(RefusalCode.TERMINAL, "a profile cannot ask for a terminal")
    if rule.has_args:
        return Cause(RefusalCode.ARGUMENTS, "a profile cannot see arguments")
    if rule.sources:
        return Cause(
            RefusalCode.SOURCE,
            "a profile binds a rule to its program by a change of profile at exec, which no_new_privs forbids",
        )
    if rule.class_ is Class.NETWORK and rule.value not in _EVERY_FAMILY:
        return Cause(RefusalCode.SOCKET_FAMILY, "a profile knows families and types of sockets, no protocols")
    return None


def _cgroup(rule: Rule) -> Cause | None:
    if rule.class_ is not Class.NETWORK:
        return _WHERE_SOCKETS
    if rule.value not in _INTERNET:
        return Cause(RefusalCode.SOCKET_FAMILY, f"cgroup programs see internet sockets only, not `{rule.value}`")
    return _source(rule)


def _signal(rule: Rule, opted_in: bool) -> Cause | None:
    if rule.class_ not in (Class.PROCESS, Class.FILE) or rule.match is Match.PRESET:
        return _WHERE_KILLED
    if rule.match is Match.PATTERN:
        return Cause(
            RefusalCode.PATTERN, "the program that kills looks up whole paths, names and directories, not patterns"
        )
    # An Allow rule kills nobody, and without it a Block rule of another policy would kill too much.
    if not opted_in and denies(rule):
        return Cause(
            RefusalCode.NO_OPT_IN, "the policy does not opt in to kills (annotation `hauberk.io/signal: enabled`)"
        )
    if rule.pts is False:
        return Cause(RefusalCode.TERMINAL, "the program that kills does not look at the terminal")
    if rule.has_args:
        return Cause(RefusalCode.ARGUMENTS, "the program that kills does not look at arguments")
    return _source(rule)
