# SPDX-License-Identifier: Apache-2.0
"""One policy per lint code that must be found, and one next to it that must not."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from policy.lint import CHECKS, lint
from policy.parse import parse
from policy.ruleset import PostureSettings, compile_ruleset

BLOCK = {"posture": {"file": "block", "network": "block", "capabilities": "block", "host_file": "block"}}


def codes(spec: dict[str, Any], kind: str = "KubeArmorPolicy", **settings: Any) -> list[str]:
    metadata = {"name": "p", "namespace": "demo"} if kind == "KubeArmorPolicy" else {"name": "p"}
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
    return [finding.code for finding in lint(compile_ruleset(parsed.policies, PostureSettings(**settings)))]


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
]
CLEAN = [
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


def test_every_check_is_tested_and_described() -> None:
    assert set(CHECKS) == {code for code, *_ in FOUND} | {"L106"}
    for code, check in CHECKS.items():
        assert (check.__doc__ or "").startswith(f"{code}: ")


def test_findings_say_what_to_do() -> None:
    text = yaml.safe_dump(
        {
            "apiVersion": "security.kubearmor.com/v1",
            "kind": "KubeArmorPolicy",
            "metadata": {"name": "p", "namespace": "demo"},
            "spec": {"selector": {}, "file": {"matchPatterns": [{"pattern": "/srv/a"}]}},
        }
    )
    (finding,) = lint(compile_ruleset(parse(text, "lint").policies))
    assert finding.rule.position == "spec.file.matchPatterns[0]"
    assert finding.recommendation.startswith("use matchPaths with `path: /srv/a`")
