# SPDX-License-Identifier: Apache-2.0
"""No backend loses a field of a rule: what a plan for all backends says of a rule shows in what each of them makes of it, or is refused
by name. The fields are those of the policy language, so that a new one has to be given a value here."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import pytest

from enforcers.apparmor_profile import render
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.cgroup import CgroupEnforcer
from enforcers.encoding import nobodys
from enforcers.signal import SignalEnforcer
from policy.kernel_plan import plan_scope
from policy.parse import parse
from policy.ruleset import PostureSettings, compile_ruleset
from schemas import policy_sections as sections
from schemas.backends import BACKENDS
from schemas.enforcement import Refusal, ScopePlan
from schemas.identity import Identity, Kind
from schemas.operations import Backend
from schemas.policy import Egress, Ingress, PortMatch
from schemas.verdict import DEFAULT_POSTURE

TABLES: Final = {
    Backend.BPF_LSM: LsmEnforcer("/nowhere"), Backend.CGROUP: CgroupEnforcer("/nowhere"), Backend.SIGNAL: SignalEnforcer("/nowhere"),
}  # fmt: skip
KINDS: Final[tuple[tuple[str, type[msgspec.Struct], dict[str, Any]], ...]] = (
    ("process.matchPaths", sections.ProcessPath, {"path": "/bin/x"}),
    ("process.matchPaths", sections.ProcessPath, {"execname": "x"}),
    ("process.matchDirectories", sections.ProcessDirectory, {"dir": "/bin/"}),
    ("process.matchPatterns", sections.ProcessPattern, {"pattern": "/bin/*"}),
    ("file.matchPaths", sections.FilePath, {"path": "/etc/x"}),
    ("file.matchDirectories", sections.FileDirectory, {"dir": "/etc/"}),
    ("file.matchPatterns", sections.FilePattern, {"pattern": "/etc/*"}),
    ("network.matchProtocols", sections.NetworkProtocol, {"protocol": "tcp"}),
    ("network.matchProtocols", sections.NetworkProtocol, {"protocol": "stream"}),
    ("network.matchProtocols", sections.NetworkProtocol, {"protocol": "all"}),
    ("network.matchDNSQueries", sections.DnsQuery, {"domain": "example.com"}),
    ("capabilities.matchCapabilities", sections.CapabilityMatch, {"capability": "net_raw"}),
    *(
        ("presets", sections.Preset, {"name": name})
        for name in ("filelessExec", "anonymousMapExec", "protectEnv", "protectProc", "exec")
    ),
    ("device.matchDevice", sections.DeviceMatch, {"class": "AUDIO"}),
    ("ingress", Ingress, {}),
    ("egress", Egress, {}),
    ("egress", Egress, {"ports": [{"port": "80"}]}),
)
VALUES: Final[dict[str, tuple[Any, ...]]] = {
    "allowedArgs": (["-l"],), "ownerOnly": (True,), "readOnly": (True,), "pts": (False,), "recursive": (True,),
    "fromSource": ([{"path": "/bin/a"}], [{"dir": "/opt/"}], [{"pattern": "/opt/*"}]),
    "subClass": (1,), "protocol": (1,), "level": (1,), "iface": (["eth0"],), "limit": ("5MB",),
    "ports": ([{"port": "443"}],), "from": ([{"ipBlock": {"cidr": "10.0.0.0/8"}}],), "to": ([{"ipBlock": {"cidr": "10.0.0.0/8"}}],),
}  # fmt: skip
OF_PORTS: Final = {"endPort": 90, "protocol": "UDP"}
NAMING: Final = {"path", "execname", "dir", "pattern", "domain", "capability", "name", "class", "port", "duration"}
LIMITS: Final = ("ownerOnly", "readOnly", "pts")
"""Outside of these an Allow rule denies."""
TOLD: Final = {"severity", "tags", "message"}
"""What an alert says."""


def fields(of: type[msgspec.Struct]) -> set[str]:
    return {field.encode_name for field in msgspec.structs.fields(of)} - NAMING - TOLD - {"action"}


def pairs() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Where a rule stands, the rule, and the same with one more field."""
    for where, of, plain in KINDS:
        for name in sorted(fields(of) - plain.keys()):
            for value in VALUES[name]:
                yield where, plain, plain | {name: value} | ({"duration": "1h"} if name == "limit" else {})
    port = {"port": "80"}
    assert fields(PortMatch) == OF_PORTS.keys(), "give each a value"
    for name, given in OF_PORTS.items():
        for where in ("ingress", "egress"):
            yield where, {"ports": [port]}, {"ports": [port | {name: given}]}


def planned(where: str, rule: dict[str, Any], action: str) -> tuple[ScopePlan, tuple[Refusal, ...]]:
    """The plan for all backends of a policy with this rule alone; of a posture `block`, or an Allow rule would be an exception to nothing."""
    host = where in ("ingress", "egress", "device.matchDevice")
    who = Identity(
        kind=Kind.HOST if host else Kind.CONTAINER, node="n", uid="u", cgroups=(7,), cgroup_path="/u", namespace="" if host else "shop",
        labels={} if host else {"app": "web"}, node_labels={"app": "web"} if host else {},
    )  # fmt: skip
    section, _, entries = where.partition(".")
    listed = [rule | {"action": action}]
    document = {
        "apiVersion": "security.kubearmor.com/v1",
        "kind": "KubeArmorPolicy" if not host else "KubeArmorHostPolicy" if entries else "KubeArmorNetworkPolicy",
        "metadata": {"name": "p"} | ({} if host else {"namespace": "shop"}),
        "spec": {
            "nodeSelector" if host else "selector": {"matchLabels": {"app": "web"}}, section: {entries: listed} if entries else listed,
        },
    }  # fmt: skip
    parsed = parse(json.dumps(document), "p.yaml")
    assert parsed.ok, parsed.diagnostics
    postures = {f"{of}{name}": "block" for of in ("", "host_") for name in ("file", "network", "capabilities")}
    scope = compile_ruleset(parsed.policies, PostureSettings(**postures)).scope(who)
    return plan_scope(scope, who, backends=BACKENDS, signal=True)


def made(backend: Backend, plan: ScopePlan) -> tuple[object, tuple[Refusal, ...]]:
    """What a node whose only backend it is has in force, and what it refuses."""
    unheld = tuple(nobodys(plan, (backend,)))
    if backend is Backend.APPARMOR:
        profile = render(plan)
        return profile.text, (*profile.refused, *unheld)
    part = TABLES[backend].encode(plan, lambda text: zlib.crc32(text.encode()) + 1)
    return (part.entries, part.flags, part.cells) if part.flags else "", (*part.refused, *unheld)


def shows(backend: Backend, where: str, plain: dict[str, Any], more: dict[str, Any], action: str) -> bool:
    """Whether what `more` has beside `plain` is in what the backend has in force, or refused."""
    plan, refused = planned(where, more, action)
    entries, left = made(backend, plan)
    if any(one.ref.policy == "p" and not one.code.partial for one in (*refused, *left)):
        return True
    if entries == "" and action == "Allow" and not any(name in more for name in LIMITS):
        return True  # nothing is denied, so that there is nothing to except
    return entries != made(backend, planned(where, plain, action)[0])[0]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: BACKENDS[one].name)
def test_every_field_shows_or_is_refused(backend: Backend) -> None:
    lost = [
        (where, more, action)
        for where, plain, more in pairs()
        for action in ("Allow", "Block")
        if not shows(backend, where, plain, more, action)
    ]
    assert lost == []


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: BACKENDS[one].name)
def test_a_rule_that_allows_is_not_one_that_blocks(backend: Backend) -> None:
    same = []
    for where, _, plain in KINDS:
        allowing, blocking = (planned(where, plain, action) for action in ("Allow", "Block"))
        what, _ = made(backend, allowing[0])
        other, left = made(backend, blocking[0])
        if what == other and not any(one.ref.policy == "p" for one in (*blocking[1], *left)):
            same.append((where, plain))
    assert same == []


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda one: BACKENDS[one].name)
def test_a_posture_is_held_or_refused(backend: Backend) -> None:
    for where, _, plain in KINDS:
        plan, refused = planned(where, plain, "Allow")
        entries, left = made(backend, plan)
        if entries == "" and (plan.posture or plan.network):
            assert any(one.ref.policy == DEFAULT_POSTURE for one in (*refused, *left)), (where, plain)
