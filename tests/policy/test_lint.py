# SPDX-License-Identifier: Apache-2.0
"""One policy per lint code that must be found, and one next to it that must not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from policy.parse import parse
from policy.ruleset import PostureSettings, compile_ruleset
from policy.tools.lint import CHECKS, lint
from policy.tools.lint_findings import EVERYTHING, Finding, Holding
from schemas.backends import FLOOR
from schemas.operations import Backend

PAGE = (Path(__file__).parents[2] / "docs" / "policies.md").read_text()
BLOCK = {"posture": {"file": "block", "network": "block", "capabilities": "block", "host_file": "block"}}


SIGNAL = {"hauberk.io/signal": "enabled"}


def findings(
    spec: dict[str, Any],
    kind: str = "KubeArmorPolicy",
    annotations: dict[str, str] | None = None,
    holding: Holding = EVERYTHING,
    **settings: Any,
) -> tuple[Finding, ...]:
    metadata: dict[str, Any] = {"name": "p", "annotations": annotations or {}}
    if kind == "KubeArmorPolicy":
        metadata["namespace"] = "demo"
    selector = (
        {"nodeSelector": {"matchLabels": {}}}
        if kind != "KubeArmorPolicy"
        else {"selector": {"matchLabels": {"a": "b"}}}
    )
    text = yaml.safe_dump(
        {"apiVersion": "security.kubearmor.com/v1", "kind": kind, "metadata": metadata, "spec": selector | spec}
    )
    parsed = parse(text, "lint")
    assert parsed.ok, parsed.diagnostics
    return lint(compile_ruleset(parsed.policies, PostureSettings(**settings)), holding)


def codes(spec: dict[str, Any], kind: str = "KubeArmorPolicy", **settings: Any) -> list[str]:
    """Of what is wrong with the policy itself; what this version does not hold are notes."""
    return [finding.code for finding in findings(spec, kind, **settings) if finding.level == "warning"]


def unheld(*args: Any, **more: Any) -> Finding | None:
    """The one L110, if any."""
    return next((finding for finding in findings(*args, **more) if finding.code == "L110"), None)


def files(
    *paths: dict[str, Any], patterns: tuple[str, ...] = (), directories: tuple[dict[str, Any], ...] = ()
) -> dict[str, Any]:
    return {
        "file": {
            "matchPaths": list(paths),
            "matchPatterns": [{"pattern": pattern} for pattern in patterns],
            "matchDirectories": list(directories),
        }
    }


FOUND = [
    (
        "L101",
        files(patterns=("/srv/**",), directories=({"dir": "/srv/", "action": "Allow"},)) | {"action": "Block"},
        {"file": "block"},
    ),
    ("L102", files({"path": "/a"}, {"path": "/a", "action": "Allow"}), {"file": "block"}),
    ("L103", files({"path": "/a"}, {"path": "/a", "severity": 3}), {}),
    ("L104", files(patterns=("srv/*",)), {}),
    ("L105", files(directories=({"dir": "/", "recursive": True},)), {}),
    ("L107", files({"path": "/a", "action": "Audit"}), {"visibility": ("process",)}),
    ("L108", files(patterns=("/srv/a",)), {}),
    ("L109", {"process": {"matchPaths": [{"execname": "sh"}]}}, {}),
    ("L110", {"network": {"matchDNSQueries": [{"domain": "x.org"}]}}, {}),
    ("L111", files({"path": "/a", "action": "Allow"}), {}),
    ("L112", {"presets": [{"name": "exec", "action": "Allow"}]}, {}),
    ("L113", {"capabilities": {"matchCapabilities": [{"capability": "net_raw", "action": "Audit"}]}}, {}),
    ("L113", {"presets": [{"name": "anonymousMapExec", "action": "Block"}]}, {}),
    ("L113", {"syscalls": {"matchSyscalls": [{"syscall": ["ptrace", "clone"]}]}}, {}),
    ("L113", {"syscalls": {"matchPaths": [{"path": "/etc/", "syscall": ["stat"]}]}}, {}),
]
CLEAN = [
    ({"syscalls": {"matchSyscalls": [{"syscall": ["umount", "unshare", "setns", "chroot", "pivot_root"]}]}}, {}),
    (files({"path": "/a"}, {"path": "/b", "action": "Allow"}), {"file": "block"}),
    (files({"path": "/srv/x"}, directories=({"dir": "/srv/", "action": "Allow"},)), {"file": "block"}),
    (files({"path": "/a"}, {"path": "/a", "fromSource": [{"path": "/b"}]}), {}),
    (files({"path": "/a"}, {"path": "/a", "readOnly": True}), {}),
    (files(patterns=("/**/x", "/srv/?", "{/a,/b}/*")), {}),
    (files(directories=({"dir": "/", "recursive": True, "readOnly": True},)), {}),
    (files({"path": "/a", "action": "Audit"}), {}),
    ({"process": {"matchPaths": [{"execname": "curl"}, {"path": "/bin/sh"}]}}, {}),
]


@pytest.mark.parametrize(("code", "spec", "settings"), FOUND, ids=[f"{code}-{n}" for n, (code, *_) in enumerate(FOUND)])
def test_found(code: str, spec: dict[str, Any], settings: dict[str, Any]) -> None:
    assert code in codes(spec, **settings)


@pytest.mark.parametrize(("spec", "settings"), CLEAN)
def test_clean(spec: dict[str, Any], settings: dict[str, Any]) -> None:
    assert codes(spec, **settings) == []


def test_host_rules_on_protected_processes() -> None:
    spec = {"process": {"matchDirectories": [{"dir": "/usr/sbin/", "recursive": True}]}}
    assert "L106" in codes(spec, "KubeArmorHostPolicy")
    assert "L106" not in codes(spec)


def test_the_limit_of_a_rule_that_allows_is_to_be_held_too() -> None:
    assert unheld(files({"path": "/a", "action": "Allow", "readOnly": True})) is not None
    assert unheld(files({"path": "/a", "action": "Allow"})) is None


def test_a_block_that_this_version_does_not_hold_is_a_note() -> None:
    pattern = unheld(files(patterns=("/srv/*",)), annotations=SIGNAL)
    assert pattern is not None
    assert pattern.level == "note"
    assert pattern.message == (
        "is only audited: bpf-lsm or apparmor could enforce it, and neither is used by default; of those that are: cgroup programs see "
        "sockets only (cgroup); the program that kills looks up whole paths, names and directories, not patterns (signal)"
    )
    assert "hauberk.io/signal" not in pattern.recommendation


def test_rings_go_around_a_file_rule_that_a_kill_holds() -> None:
    spec = files({"path": "/srv/a"}, {"path": "/srv/b"})
    (found,) = findings(spec, annotations=SIGNAL)
    assert (found.code, found.level) == ("L114", "note")
    assert "enforcement.io_uring" in found.recommendation
    assert findings(spec, annotations=SIGNAL, holding=Holding(rings_stopped=True)) == ()
    assert "L114" not in {one.code for one in findings(spec)}


def test_nothing_is_told_of_a_rule_that_nothing_sees() -> None:
    """For a Block neither: there is no `is only told ... use Audit` where Audit tells nothing."""
    for action in ("Audit", "Block"):
        (found,) = findings({"capabilities": {"matchCapabilities": [{"capability": "net_raw"}]}, "action": action})
        assert (found.code, found.level) == ("L113", "warning")
        assert "neither reported nor enforced" in found.message


def test_a_block_that_could_be_held_by_a_kill_says_how() -> None:
    spec = files({"path": "/srv/a"})
    found = unheld(spec)
    assert found is not None
    assert found.level == "note"
    assert found.message == (
        "is only audited: bpf-lsm or apparmor could enforce it, and neither is used by default; signal could, and the policy does "
        "not opt in to kills"
    )
    assert "add the annotation `hauberk.io/signal: enabled`" in found.recommendation
    assert unheld(spec, annotations=SIGNAL) is None
    assert unheld(spec, holding=Holding(signal=True)) is None
    asked = unheld(spec, holding=Holding(backends=(Backend.BPF_LSM, *FLOOR)))
    assert asked is not None
    assert asked.message == (
        "is only audited where the kernel does not offer bpf-lsm: signal could, and the policy does not opt in to kills"
    )


def test_a_backend_that_the_settings_leave_out_holds_nothing() -> None:
    spec = {"network": {"matchProtocols": [{"protocol": "tcp"}]}}
    assert unheld(spec) is None
    found = unheld(spec, holding=Holding(backends=(Backend.SIGNAL,)))
    assert found is not None
    assert found.level == "note"
    assert "`enforcement.backends` of the settings leaves out cgroup" in found.message
    assert "add cgroup to `enforcement.backends`" in found.recommendation


def test_a_host_rule_is_held_in_chosen_cgroups_only() -> None:
    spec = files({"path": "/srv/a"})
    found = unheld(spec, "KubeArmorHostPolicy", SIGNAL)
    assert found is not None
    assert found.level == "note"
    assert "`planner.plan.host_cgroups`" in found.recommendation
    assert unheld(spec, "KubeArmorHostPolicy", SIGNAL, Holding(hosts=True)) is None
    assert unheld(files({"path": "/srv/a"}), "KubeArmorHostPolicy", None, Holding(hosts=True)) is not None


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        ({"network": {"matchDNSQueries": [{"domain": "x.org"}]}}, "names are read from packets"),
        ({"process": {"matchPaths": [{"path": "/srv/a", "allowedArgs": ["-l"]}]}}, "arguments"),
    ],
)
def test_a_block_that_nothing_will_ever_hold_is_a_warning(spec: dict[str, Any], why: str) -> None:
    found = unheld(spec)
    assert found is not None
    assert found.level == "warning"
    assert "no backend can enforce it" in found.message
    assert why in found.message


def test_a_block_of_sources_that_only_the_hooks_know_is_a_note() -> None:
    found = unheld(files({"path": "/srv/a", "fromSource": [{"dir": "/usr/bin/"}]}), annotations=SIGNAL)
    assert found is not None
    assert found.level == "note"
    assert "bpf-lsm could enforce it" in found.message


@pytest.mark.parametrize("annotations", [{}, SIGNAL])
@pytest.mark.parametrize("kind", ["KubeArmorPolicy", "KubeArmorHostPolicy"])
def test_notes_are_for_blocks_alone(kind: str, annotations: dict[str, str]) -> None:
    for action in ("Audit", "Allow"):
        spec = files({"path": "/srv/a"}, patterns=("/srv/*",)) | {"action": action}
        assert unheld(spec, kind, annotations) is None


def test_every_check_is_tested_and_described() -> None:
    assert set(CHECKS) == {code for code, *_ in FOUND} | {"L106", "L114"}
    for code, check in CHECKS.items():
        assert (check.__doc__ or "").startswith(f"{code}: ")
        assert f"| {code} | " in PAGE


def test_findings_say_what_to_do() -> None:
    text = yaml.safe_dump(
        {
            "apiVersion": "security.kubearmor.com/v1",
            "kind": "KubeArmorPolicy",
            "metadata": {"name": "p", "namespace": "demo"},
            "spec": {"selector": {}, "file": {"matchPatterns": [{"pattern": "/srv/a"}]}},
        }
    )
    (finding,) = [one for one in lint(compile_ruleset(parse(text, "lint").policies)) if one.code == "L108"]
    assert finding.rule.position == "spec.file.matchPatterns[0]"
    assert finding.recommendation.startswith("use matchPaths with `path: /srv/a`")
