# SPDX-License-Identifier: Apache-2.0
"""Tables of the kernel programs filled by one container: rules hold in it and everywhere else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: {name}, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: {name}}}}}
  severity: 9
  file: {{matchPaths: [{{path: {secret}}}]}}
  network: {{matchProtocols: [{{protocol: tcp}}]}}
  action: Block
"""
CONNECT = "import socket; socket.socket().connect(('127.0.0.1', 9))"


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("full")))
    (home / "secret").write_text("s3cret")
    policies = "---".join(POLICY.format(name=name, secret=home / "secret") for name in ("box", "other"))
    sizes = {
        "pin_dir": f"/sys/fs/bpf/hauberk-full-{os.getpid()}",
        "load": {"scopes": 32, "processes": 64},
    }
    node = make_node(policies, make_container("box"), make_container("other"), sensor=sizes)
    node.secret = home / "secret"
    return node


def act(container: Any, cgroup: Path, *command: str) -> Any:
    """A process of the container that moves to a cgroup below it, then becomes `command`."""
    return container.run("/bin/sh", "-c", f'echo $$ > {cgroup}/cgroup.procs && exec "$@"', "sh", *command)


@pytest.mark.attack("A container makes more cgroups than the kernel's map of scopes holds", "held", by="cgroup, signal")
def test_more_cgroups_than_scopes(attacked: Any) -> None:
    box, other = attacked.containers["box"], attacked.containers["other"]
    for number in range(100):
        (box.path / f"child-{number}").mkdir()
    for container, cgroup in ((box, box.path), (box, box.path / "child-99"), (other, other.path)):
        assert act(container, cgroup, "cat", str(attacked.secret)).returncode == -9
        assert "PermissionError" in act(container, cgroup, "python3", "-c", CONNECT).stderr


@pytest.mark.attack(
    "A container runs more processes than the kernel's map of processes holds", "held", by="cgroup, signal"
)
def test_more_processes_than_the_map_holds(attacked: Any) -> None:
    box, other = attacked.containers["box"], attacked.containers["other"]
    crowd = box.start("/bin/sh", "-c", "i=0; while [ $i -lt 150 ]; do sleep 300 & i=$((i+1)); done; wait")
    try:
        for container in (box, other):
            assert container.run("cat", str(attacked.secret)).returncode == -9
            assert "PermissionError" in container.run("python3", "-c", CONNECT).stderr
    finally:
        (box.path / "cgroup.kill").write_text("1")
        crowd.wait(60)
