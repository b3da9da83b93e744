# SPDX-License-Identifier: Apache-2.0
"""`kubectl hauberk` is the command: kubectl finds it by the name that the package installs, and its answers are the same."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl")


@pytest.fixture
def plugin(hauberk: Any) -> Any:
    """Runs `kubectl hauberk ...` with the program as an installer makes it of the entry point."""
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    module, function = scripts["kubectl-hauberk"].split(":")
    program = hauberk.home / "bin/kubectl-hauberk"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n")
    program.chmod(0o755)

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        environment = hauberk.environment()
        environment["PATH"] = f"{program.parent}:{environment['PATH']}"
        return subprocess.run(
            ["kubectl", "hauberk", *words], env=environment, cwd=hauberk.home, capture_output=True, text=True, check=False, timeout=60
        )  # fmt: skip

    return run


def test_kubectl_runs_it_and_it_answers_as_the_command_does(hauberk: Any, plugin: Any) -> None:
    policy = hauberk.home / "policy.yaml"
    policy.write_text(
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: no-udp, namespace: shop}\n"
        "spec: {selector: {matchLabels: {app: web}}, network: {matchProtocols: [{protocol: udp}]}, action: Block}\n"
    )
    (hauberk.state / "bus").mkdir(parents=True)
    assert hauberk("apply", "-f", str(policy)).returncode == 0
    told, asked = plugin("get", "policies", "-o", "json"), hauberk("get", "policies", "-o", "json")
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout == asked.stdout
    assert "no-udp" in told.stdout


def test_with_no_bus_to_be_reached_it_says_both_ways_to_one(plugin: Any) -> None:
    done = plugin("get", "policies")
    assert done.returncode == 2
    assert "bus.type=kafka" in done.stderr
    assert "kubectl exec -n hauberk deploy/hauberk-cluster" in done.stderr
    assert "Traceback" not in done.stderr
