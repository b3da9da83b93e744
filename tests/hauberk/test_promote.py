# SPDX-License-Identifier: Apache-2.0
"""`discover --promote` makes one policy enforce, never its namesakes in other namespaces."""

from __future__ import annotations

import json
from typing import Any

import pytest

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: web, namespace: NAMESPACE, annotations: {hauberk.io/mode: shadow}}
spec: {selector: {matchLabels: {app: web}}, network: {matchProtocols: [{protocol: udp}]}, action: Block}
"""


@pytest.fixture
def command(hauberk: Any) -> Any:
    (hauberk.state / "bus").mkdir(parents=True)
    file = hauberk.home / "policies.yaml"
    file.write_text("---\n".join(POLICY.replace("NAMESPACE", one) for one in ("shop", "bank", "mill")))
    assert hauberk("apply", "-f", str(file)).returncode == 0
    return hauberk


def shadows(command: Any) -> list[str]:
    told = json.loads(command("get", "policies", "-o", "json").stdout)
    return sorted(one["metadata"]["namespace"] for one in told if one["metadata"].get("annotations"))


def test_one_of_several_is_named_by_its_namespace(command: Any) -> None:
    done = command("discover", "--promote", "web")
    assert done.returncode == 2
    assert "expected one policy `web`, got KubeArmorPolicy/bank/web, " in done.stderr
    assert "NAMESPACE/NAME" in done.stderr
    assert shadows(command) == ["bank", "mill", "shop"]
    assert (
        command("discover", "--promote", "web", "-n", "shop").stdout
        == "kubearmorpolicy/shop/web configured (enforce)\n"
    )
    assert shadows(command) == ["bank", "mill"]
    assert command("discover", "--promote", "bank/web").stdout == "kubearmorpolicy/bank/web configured (enforce)\n"
    assert shadows(command) == ["mill"]
    assert "enforces already" in command("discover", "--promote", "bank/web").stderr
    assert "there is none" in command("discover", "--promote", "none/web").stderr
