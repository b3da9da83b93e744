# SPDX-License-Identifier: Apache-2.0
"""A Block that nothing of this version can hold is told as that, by `apply` and by `policy explain`."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: demo, namespace: shop, annotations: {ANNOTATIONS}}
spec:
  selector: {matchLabels: {app: web}}
  process: {matchPaths: [{path: /usr/bin/curl}], matchPatterns: [{pattern: /tmp/*.sh}]}
  network: {matchProtocols: [{protocol: tcp, fromSource: [{path: /usr/bin/a}, {path: /usr/bin/b}]}]}
  action: ACTION
"""
HOST = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: demo, annotations: {hauberk.io/signal: enabled}}
spec: {nodeSelector: {matchLabels: {a: b}}, process: {matchPaths: [{path: /usr/bin/curl}]}, action: Block}
"""
SIGNAL = "hauberk.io/signal: enabled"


def policy(action: str = "Block", annotations: str = "") -> str:
    return POLICY.replace("ANNOTATIONS", annotations).replace("action: ACTION", f"action: {action}")


@pytest.fixture(scope="module")
def hauberk(make_hauberk: Callable[..., Any]) -> Any:
    """The command, and a bus that a replay left."""
    made = make_hauberk()
    done = made.replay()
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (policy(), "demo: 2 of 3 Block rules are only audited by the backends that a node uses by default: add the annotation "
         "hauberk.io/signal: enabled to end the process instead (1 of them); `hauberk policy explain -f FILE` says which"),
        (policy(annotations=SIGNAL), "demo: 1 of 3 Block rules is only audited by the backends that a node uses by default; `hauberk"),
        (HOST, "demo: Block rules of host policies are enforced only in the cgroups of `planner.plan.host_cgroups`"),
        (policy("Audit"), ""),
        (policy(annotations="hauberk.io/mode: shadow"), ""),
    ],
)  # fmt: skip
def test_apply_warns_in_one_line(hauberk: Any, text: str, words: str) -> None:
    done = hauberk("apply", "-f", "-", "--dry-run", stdin=text)
    assert done.returncode == 0, done.stderr
    warned = [line for line in done.stderr.splitlines() if line.startswith("warning: demo:")]
    assert len(warned) == bool(words)
    assert words in done.stderr


def test_the_settings_opt_in_for_all(hauberk: Any) -> None:
    done = hauberk("apply", "-f", "-", "--dry-run", "--set", "planner.plan.signal=true", stdin=policy())
    assert "demo: 1 of 3 Block rules is only audited" in done.stderr


def test_explain_marks_what_this_version_does_not_have(hauberk: Any) -> None:
    (hauberk.home / "demo.yaml").write_text(policy(annotations=SIGNAL))
    done = hauberk("policy", "explain", "-f", "demo.yaml")
    rows = {line.split()[1]: line.split()[3:] for line in done.stdout.splitlines() if line.startswith("demo ")}
    assert rows["spec.process.matchPaths[0]"] == ["later", "later", "no", "yes"]
    assert rows["spec.network.matchProtocols[0]"] == ["later", "no", "yes", "no"]
    assert "no node uses bpf-lsm or apparmor unless `enforcement.backends` names it" in done.stdout
    assert "host_cgroups" not in done.stdout
    assert ": apparmor (off by default): " in done.stdout
    assert "not in this version" not in done.stdout
    first = json.loads(hauberk("policy", "explain", "-f", "demo.yaml", "-o", "json").stdout)[0]
    assert first["not_in_this_version"] == ["bpf-lsm", "apparmor"]
    assert first["note"] == ""


def test_explain_says_where_host_rules_are_held(hauberk: Any) -> None:
    (hauberk.home / "host.yaml").write_text(HOST)
    done = hauberk("policy", "explain", "-f", "host.yaml")
    assert (
        "demo: Block rules of host policies are enforced only in the cgroups of `planner.plan.host_cgroups`"
        in done.stdout
    )
    assert "host_cgroups" in json.loads(hauberk("policy", "explain", "-f", "host.yaml", "-o", "json").stdout)[0]["note"]


LOCKING = HOST.replace("/usr/bin/curl}", "/usr/bin/curl}, {path: /usr/sbin/sshd}")


def test_what_locks_out_is_told_rule_by_rule_and_forced_by_name(hauberk: Any) -> None:
    checked = hauberk("policy", "check", "-f", "-", stdin=LOCKING)
    assert checked.returncode == 1
    assert "warning[P608]" in checked.stdout
    assert "lock the operator out" in checked.stdout
    told = hauberk("apply", "-f", "-", "--dry-run", stdin=LOCKING)
    (line,) = [one for one in told.stderr.splitlines() if "not enforced" in one]
    assert "demo: not enforced: spec.process.matchPaths[1]: it would lock the operator out" in line
    assert "--force" in line
    assert hauberk("apply", "-f", "-", "--force", stdin=LOCKING).returncode == 0
    listed = hauberk("get", "policies", "demo").stdout
    assert "enabled, forced" in listed
    assert hauberk("delete", "policy", "demo").returncode == 0
