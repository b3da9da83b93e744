# SPDX-License-Identifier: Apache-2.0
"""What a broad host policy must never reach: init, the agent, container runtimes, the kubelet, sshd. Pure.

Three fences. The root cgroup is never enforced. A host cgroup that runs a protected service is enforced only when the
settings name it exactly. In every other host cgroup the protected executables get exceptions in front of all rules, unless
a rule names the executable itself. `override_protected` takes down the last two, not the first. Containers are not
concerned: what runs in them is not the node's. Neighbours: `plan` (who asks), `apply` (which knows its own cgroup).
"""

from __future__ import annotations

import posixpath
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from enforcers.networks import PROTECTED
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.operations import Class
from schemas.verdict import Action, RuleRef

EXECUTABLES: Final = (
    "/sbin/init", "/usr/sbin/init", "/lib/systemd/systemd", "/usr/lib/systemd/systemd", "/usr/bin/dockerd",
    "/usr/sbin/dockerd", "/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2", "/usr/bin/crio", "/usr/bin/conmon",
    "/usr/bin/runc", "/usr/sbin/runc", "/usr/bin/crun", "/usr/bin/podman", "/usr/bin/kubelet", "/usr/local/bin/kubelet",
    "/usr/sbin/sshd", "/usr/bin/hauberk", "/usr/local/bin/hauberk",
)  # fmt: skip
SERVICES: Final = (
    "init.scope", "docker.service", "containerd.service", "crio.service", "podman.service", "kubelet.service",
    "ssh.service", "sshd.service", "hauberk.service",
)  # fmt: skip
_REF: Final = RuleRef(PROTECTED)


def chosen(path: str, patterns: tuple[str, ...], override: bool) -> bool:
    """Whether a host cgroup is to be enforced: its path is named, or matched by a glob that may not reach a protected one."""
    if path in ("", "/"):
        return False
    if path in patterns:
        return True
    guarded = not override and not set(path.split("/")).isdisjoint(SERVICES)
    return not guarded and any(fnmatchcase(path, pattern) for pattern in patterns)


def fenced(scope: ScopePlan, executables: tuple[str, ...]) -> ScopePlan:
    """`scope` with exceptions for `executables`, but for those that one of its rules names."""
    named = {rule.value for rule in scope.paths if rule.match == "path"} | {rule.source for rule in scope.paths}
    named |= {rule.source for rule in scope.network}
    names = {rule.value for rule in scope.paths if rule.match == "execname"}
    kept = [path for path in executables if path not in named and posixpath.basename(path) not in names]
    classes = {rule.cls for rule in scope.paths}
    paths = [
        PathRule(cls=Class.PROCESS, match="path", value=path, action=Action.ALLOW, ref=_REF)
        for path in kept
        if Class.PROCESS in classes
    ]
    paths += [
        PathRule(cls=Class.FILE, match="directory_recursive", value="/", source=path, action=Action.ALLOW, ref=_REF)
        for path in kept
        if Class.FILE in classes
    ]
    network = [
        NetworkRule(protocol="all", direction=direction, source=path, action=Action.ALLOW, ref=_REF)
        for path in kept
        for direction in ("egress", "ingress")
        if scope.network
    ]
    return msgspec.structs.replace(scope, paths=(*paths, *scope.paths), network=(*network, *scope.network))
