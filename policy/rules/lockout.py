# SPDX-License-Identifier: Apache-2.0
"""What a host policy must not take from whoever runs the machine: exceptions for what the node lives on, and rules that lock out.

    scope -> fenced (exceptions in front, for programs that no rule names) -> is each way in still open? -> scope, refusals

A rule is refused when it decides that one of `NEEDS` is denied; that is asked again without it, until none is. A policy with
`hauberk.io/force: enabled` is not refused. Only known paths of today's distributions are asked for: an operator who comes in by
another program is not known here. Pure. Neighbours: `enforcers.protected` (which cgroups), `enforcers.plan` (who asks).
"""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

import msgspec

from policy.match.covering import acts, covers
from schemas.enforcement import NetworkRule, PathRule, Refusal, ScopePlan
from schemas.operations import Class
from schemas.refusals import RefusalCode
from schemas.socket_names import CAPABILITIES
from schemas.verdict import DEFAULT_POSTURE, PROTECTED, Action, RuleRef

INIT: Final = ("/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd")
AGENT: Final = ("/usr/bin/hauberk", "/usr/local/bin/hauberk")
SSH: Final = (
    "/usr/sbin/sshd", "/usr/lib/openssh/sshd-session", "/usr/lib/openssh/sshd-auth", "/usr/libexec/openssh/sshd-session",
    "/usr/libexec/openssh/sshd-auth",
)  # fmt: skip
CONSOLE: Final = ("/sbin/agetty", "/usr/sbin/agetty", "/bin/login", "/usr/bin/login")
PRIVILEGE: Final = (
    "/usr/bin/sudo", "/bin/su", "/usr/bin/su", "/sbin/unix_chkpwd", "/usr/sbin/unix_chkpwd",
)  # fmt: skip
SHELLS: Final = ("/bin/sh", "/usr/bin/sh", "/bin/bash", "/usr/bin/bash", "/bin/dash", "/usr/bin/dash")
EXECUTABLES: Final = (
    *INIT, "/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2",
    "/usr/bin/crio", "/usr/bin/conmon", "/usr/bin/runc", "/usr/sbin/runc", "/usr/bin/crun", "/usr/bin/podman",
    "/usr/bin/kubelet", "/usr/local/bin/kubelet", *AGENT, *SSH, *CONSOLE, *PRIVILEGE,
)  # fmt: skip
"""Programs that a rule reaches only by naming them."""
_REF: Final = RuleRef(PROTECTED)
_LOGINS: Final = (*SSH, *CONSOLE, *PRIVILEGE)
_ACCOUNTS: Final = (
    "/etc/passwd", "/etc/group", "/etc/shadow", "/etc/nsswitch.conf", "/etc/pam.d/login", "/etc/pam.d/sshd", "/etc/pam.d/su",
)  # fmt: skip
_OF_SSH: Final = ("/etc/ssh/sshd_config", "/etc/ssh/ssh_host_ed25519_key", "/root/.ssh/authorized_keys")
_TO_RUN: Final = (
    "/etc/ld.so.cache", "/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib64/libc.so.6", "/dev/null", "/dev/tty", "/dev/pts/0",
)  # fmt: skip
_TAKEN: Final = ("setuid", "setgid", "audit_write", "chown", "dac_read_search", "sys_chroot")
"""Capabilities that a login asks for."""
_SSH_PORT: Final = 22


class Need(NamedTuple):
    """Something that a way in does. `by`: the program that asks; `object`: path, capability or port."""

    cls: Class
    by: str
    object: str

    def __str__(self) -> str:
        match self.cls:
            case Class.PROCESS:
                return f"starts {self.object}"
            case Class.FILE:
                return f"lets {self.by} read {self.object}"
            case Class.CAPABILITIES:
                return f"gives {self.by} the capability {self.object}"
            case _:
                return f"lets {self.by} listen on port {self.object}"


def _needs() -> Iterator[Need]:
    for path in (*INIT, *AGENT, *SSH, *CONSOLE):
        yield Need(Class.PROCESS, "", path)
    for shell in SHELLS:
        for by in (*SSH[:1], *CONSOLE[2:], *PRIVILEGE[:1]):
            yield Need(Class.PROCESS, by, shell)
        for path in (*_TO_RUN, "/etc/passwd"):
            yield Need(Class.FILE, shell, path)
    for by in (*SSH, *CONSOLE):
        for path in (*_ACCOUNTS, *_TO_RUN, *(_OF_SSH if by in SSH else ())):
            yield Need(Class.FILE, by, path)
        for capability in _TAKEN:
            yield Need(Class.CAPABILITIES, by, capability)
    yield Need(Class.NETWORK, SSH[0], str(_SSH_PORT))


NEEDS: Final = tuple(_needs())


def judged(
    scope: ScopePlan, executables: tuple[str, ...] = EXECUTABLES, forced: Collection[str] = ()
) -> tuple[ScopePlan, tuple[Refusal, ...]]:
    """`scope` with exceptions for `executables`, without the rules that would lock the operator out, and a refusal for each of those.
    `forced`: keys of policies that are held all the same."""
    refused: dict[RuleRef, Refusal] = {}
    while True:
        made = fenced(scope, executables)
        found: dict[RuleRef, Need] = {}
        postures: set[Class] = set()
        for need in NEEDS:
            ref = denied_by(made, need)
            if ref is None or f"{ref.kind}/{ref.namespace}/{ref.policy}" in forced:
                continue
            if ref.policy == DEFAULT_POSTURE:
                if forced:
                    # Whose Allow rules made the whitelist is not known any more: one of the policies was forced.
                    continue
                postures.add(need.cls)
            found.setdefault(ref, need)
        if not found:
            return made, tuple(refused.values())
        for ref, need in found.items():
            refused.setdefault(ref, _refusal(ref, need, scope.uid))
        scope = msgspec.structs.replace(
            scope,
            paths=tuple(rule for rule in scope.paths if rule.ref not in found),
            network=tuple(rule for rule in scope.network if rule.ref not in found),
            posture=tuple(one for one in scope.posture if one[0] not in postures),
        )


def fenced(scope: ScopePlan, executables: tuple[str, ...]) -> ScopePlan:
    """`scope` with exceptions for `executables`, but for those that one of its rules names."""
    named = {rule.value for rule in scope.paths if rule.match == "path"} | {
        rule.source for rule in scope.paths if not rule.many
    }
    named |= {rule.source for rule in scope.network if not rule.many}
    names = {rule.value for rule in scope.paths if rule.match == "execname"}
    kept = [path for path in executables if path not in named and posixpath.basename(path) not in names]
    postures = {cls for cls, action in scope.posture if action is Action.BLOCK}
    classes = {rule.cls for rule in scope.paths} | postures
    capabilities = {rule.value for rule in scope.paths if rule.match == "capability"}
    if Class.CAPABILITIES in postures:
        capabilities |= set(CAPABILITIES)
    paths: list[PathRule] = []
    for path in kept:
        if Class.PROCESS in classes:
            paths.append(PathRule(cls=Class.PROCESS, match="path", value=path, action=Action.ALLOW, ref=_REF))
        if Class.FILE in classes:
            paths.append(
                PathRule(
                    cls=Class.FILE, match="directory_recursive", value="/", source=path, action=Action.ALLOW, ref=_REF
                )
            )
        paths += [
            PathRule(cls=Class.CAPABILITIES, match="capability", value=name, source=path, action=Action.ALLOW, ref=_REF)
            for name in sorted(capabilities)
        ]
    network = [
        NetworkRule(protocol="all", direction=direction, source=path, action=Action.ALLOW, ref=_REF)
        for path in kept
        for direction in ("egress", "ingress")
        if scope.network or Class.NETWORK in postures
    ]
    return msgspec.structs.replace(scope, paths=(*paths, *scope.paths), network=(*network, *scope.network))


def denied_by(scope: ScopePlan, need: Need) -> RuleRef | None:
    """The rule that denies `need`, the first that matches as in every plan; None when it is allowed."""
    if need.cls is Class.NETWORK:
        for rule in scope.network:
            if acts(rule, need.by) and _listens(rule):
                return rule.ref if rule.stops else None
    for one in scope.paths:
        if one.cls is need.cls and acts(one, need.by) and covers(one, need.object):
            # Reading stays free under `readOnly`; an owner or a terminal is not everybody.
            free = one.read_only if one.limited else one.action is not Action.BLOCK
            return None if free and not (one.owner_only or one.no_terminal) else one.ref
    return RuleRef(DEFAULT_POSTURE) if (need.cls, Action.BLOCK) in scope.posture else None


def _listens(rule: NetworkRule) -> bool:
    to_here = rule.direction == "ingress" and rule.cidr in ("", "0.0.0.0/0", "::/0")
    port = not rule.port or rule.port <= _SSH_PORT <= max(rule.port, rule.end_port)
    return to_here and port and rule.protocol in ("tcp", "stream", "all")


def _refusal(ref: RuleRef, need: Need, uid: str) -> Refusal:
    what = "without an Allow rule for it the posture" if ref.policy == DEFAULT_POSTURE else "it"
    reason = (
        f"{what} would lock the operator out: nothing else {need}; leave that out of the rule, or apply the policy with "
        "`--force` (annotation `hauberk.io/force: enabled`)"
    )
    return Refusal(ref=ref, uid=uid, reason=reason, code=RefusalCode.LOCKOUT)
