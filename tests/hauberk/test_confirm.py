# SPDX-License-Identifier: Apache-2.0
"""`hauberk apply --confirm` and `hauberk confirm` as a person types them, over the embedded bus. What nodes make of it: test_trials.py."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from schemas.policy import ANNOTATION_UNCONFIRMED

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: NAME, namespace: shop, annotations: {team: red}}
spec: {selector: {matchLabels: {app: web}}, network: {matchProtocols: [{protocol: tcp}]}, action: Block}
"""


@pytest.fixture(scope="module")
def hauberk(make_hauberk: Callable[..., Any]) -> Any:
    """The command over the bus that a replay left."""
    made = make_hauberk()
    done = made.replay()
    assert done.returncode == 0, done.stderr
    for name in ("one", "two", "dry", "four", "five"):
        (made.home / f"{name}.yaml").write_text(POLICY.replace("NAME", name))
    return made


def annotations(hauberk: Any, name: str) -> dict[str, str]:
    return dict(json.loads(hauberk("get", "ksp", name, "-o", "json").stdout)[0]["metadata"]["annotations"])


def test_what_is_applied_for_a_minute_is_kept_by_its_name(hauberk: Any) -> None:
    done = hauberk("apply", "-f", "one.yaml", "-f", "two.yaml", "--confirm")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (
        0, "held for 60 s on each node, then lifted unless: hauberk confirm one two",
    )  # fmt: skip
    first = annotations(hauberk, "one")[ANNOTATION_UNCONFIRMED]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", first)
    # Given again it is another trial: its minute begins again.
    assert hauberk("apply", "-f", "one.yaml", "--confirm").returncode == 0
    assert annotations(hauberk, "one")[ANNOTATION_UNCONFIRMED] > first
    # Names of all forms, one that is not there, and one twice: what is there is confirmed all the same.
    done = hauberk("confirm", "shop/one", "three", "two", "two")
    assert done.returncode == 1
    assert done.stdout == "kubearmorpolicy/shop/one confirmed\nkubearmorpolicy/shop/two confirmed\n"
    assert done.stderr == "hauberk confirm: expected policy `three`, there is none; `hauberk get policies` lists them\n"
    assert annotations(hauberk, "one") == {"team": "red"}
    done = hauberk("confirm", "one")
    assert (done.returncode, done.stdout) == (0, "kubearmorpolicy/shop/one needs no confirmation\n")


def test_a_minute_that_is_over_does_not_stop_a_confirmation(hauberk: Any) -> None:
    """Nodes lift by their own clocks, and the policy stays on the bus: to confirm it holds it again."""
    over = POLICY.replace("NAME", "old").replace(
        "team: red", f"team: red, {ANNOTATION_UNCONFIRMED}: '2020-01-01T00:00:00Z'"
    )
    assert hauberk("apply", "-f", "-", stdin=over).returncode == 0
    assert ANNOTATION_UNCONFIRMED in annotations(hauberk, "old")
    assert hauberk("confirm", "KubeArmorPolicy/shop/old").stdout == "kubearmorpolicy/shop/old confirmed\n"
    assert annotations(hauberk, "old") == {"team": "red"}


def test_a_dry_run_holds_nothing_and_promises_nothing(hauberk: Any) -> None:
    done = hauberk("apply", "-f", "dry.yaml", "--confirm", "--dry-run")
    assert done.stdout == "kubearmorpolicy/shop/dry created (dry run)\n"
    assert hauberk("confirm", "dry").returncode == 1
    assert hauberk("confirm").returncode == 2


def test_a_policy_that_was_there_is_lifted_with_the_change_and_that_is_said(hauberk: Any) -> None:
    assert hauberk("apply", "-f", "four.yaml").returncode == 0
    done = hauberk("apply", "-f", "four.yaml", "-f", "five.yaml", "--confirm")
    assert (
        "warning: four: what was there of it is not kept: after the minute nothing of this policy holds" in done.stderr
    )
    assert "five: what was there" not in done.stderr
