# SPDX-License-Identifier: Apache-2.0
"""How verbs name a policy that belongs to no namespace: `kind/name`, without an empty namespace between the two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hauberk.policy_names import KINDS, named
from policy.parse import parse
from policy.tools.custom_resources import NAMES
from schemas.policy import reference

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: bare, annotations: {hauberk.io/mode: shadow}}
spec:
  nodeSelector: {matchLabels: {kubernetes.io/hostname: "*"}}
  file: {matchPaths: [{path: /etc/shadow}]}
  action: Block
"""


@pytest.fixture(scope="module")
def hauberk(make_hauberk: Callable[..., Any]) -> Any:
    """The command over the bus that a replay left, with such a policy in a file."""
    made = make_hauberk()
    assert made.replay().returncode == 0
    (made.home / "bare.yaml").write_text(POLICY)
    return made


def test_a_reference_has_a_namespace_where_there_is_one() -> None:
    assert reference("KubeArmorPolicy/shop/web") == "KubeArmorPolicy/shop/web"
    assert reference("KubeArmorHostPolicy//bare") == "KubeArmorHostPolicy/bare"
    assert reference("no key of a policy") == "no key of a policy"


def test_verbs_name_a_policy_without_a_namespace_by_kind_and_name(hauberk: Any) -> None:
    for line, told in (
        ("apply -f bare.yaml --dry-run", "kubearmorhostpolicy/bare created (dry run)\n"),
        ("apply -f bare.yaml", "kubearmorhostpolicy/bare created\n"),
        ("confirm bare", "kubearmorhostpolicy/bare needs no confirmation\n"),
        ("discover --promote bare", "kubearmorhostpolicy/bare configured (enforce)\n"),
        ("delete policy bare", "kubearmorhostpolicy/bare deleted\n"),
    ):
        done = hauberk(*line.split())
        assert (done.returncode, done.stdout) == (0, told), done.stderr
    assert hauberk("apply", "-f", "bare.yaml").returncode == 0
    assert hauberk("delete", "-f", "bare.yaml").stdout == "kubearmorhostpolicy/bare deleted\n"
    # A name that `-f` does not find is told in the same form.
    assert "expected policy `KubeArmorHostPolicy/bare`, there is none" in hauberk("delete", "-f", "bare.yaml").stderr
    event = '{"operation": "File", "resource": "/etc/hosts", "data": "syscall=SYS_OPENAT", "result": "Passed", "containerID": "c", "containerName": "web", "namespaceName": "shop", "podName": "web-1"}'
    done = hauberk("policy", "explain", "-f", "bare.yaml", "--event", event)
    assert "not for this workload: KubeArmorHostPolicy/bare\n" in done.stdout, done.stderr


def test_what_a_verb_prints_is_taken_as_a_name(hauberk: Any) -> None:
    assert hauberk("apply", "-f", "bare.yaml").returncode == 0
    for name in (
        "bare",
        "hsp/bare",
        "kubearmorhostpolicy/bare",
        "KubeArmorHostPolicy/bare",
        "KubeArmorHostPolicy//bare",
    ):
        assert hauberk("get", "policy", name, "-o", "name").stdout == "hsp/bare\n", name
        assert "name: bare" in hauberk("describe", "policy", name).stdout, name
        assert hauberk("confirm", name).stdout == "kubearmorhostpolicy/bare needs no confirmation\n", name
    for verb in (("get", "policy"), ("describe", "policy"), ("confirm",), ("delete", "policy")):
        done = hauberk(*verb, "ksp/bare")
        assert (done.returncode, done.stdout) == (1, ""), verb
    done = hauberk("describe", "ksp", "hsp/bare")
    assert (done.returncode, "expected one kind" in done.stderr) == (2, True)
    assert hauberk("delete", "policy", "hsp/bare").stdout == "kubearmorhostpolicy/bare deleted\n"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("web", ["KubeArmorPolicy/shop/web", "KubeArmorPolicy/ksp/web", "KubeArmorHostPolicy//web"]),
        ("shop/web", ["KubeArmorPolicy/shop/web"]),
        ("ksp/web", ["KubeArmorPolicy/ksp/web"]),
        ("hsp/web", ["KubeArmorHostPolicy//web"]),
        ("kubearmorpolicy/web", ["KubeArmorPolicy/shop/web", "KubeArmorPolicy/ksp/web"]),
        ("ksp/shop/web", ["KubeArmorPolicy/shop/web"]),
        ("csp/web", []),
        ("ksp/", []),
        ("/", []),
        ("", []),
    ],
)
def test_a_namespace_goes_before_a_kind(name: str, meant: list[str]) -> None:
    assert named(["KubeArmorPolicy/shop/web", "KubeArmorPolicy/ksp/web", "KubeArmorHostPolicy//web"], name) == meant


def test_kinds_are_short_as_the_cluster_has_them() -> None:
    assert {kind: short for kind, (_, short, _) in NAMES.items()} == KINDS


def test_the_second_policy_of_a_name_in_one_file_is_warned_of_by_it() -> None:
    (twice,) = [one for one in parse(f"{POLICY}---\n{POLICY}".encode(), "two.yaml").diagnostics if one.code == "P210"]
    assert twice.message == "KubeArmorHostPolicy/bare is already at line 1; this one replaces it"
