# SPDX-License-Identifier: Apache-2.0
"""Names that claim an identity: a cgroup may be called what a container's is called.

SECURITY.md promises that host policies are judged for it until a runtime confirms it.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kernel.features import cgroup2_mount

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: hostaudit}}
spec:
  nodeSelector: {{matchLabels: {{kubernetes.io/hostname: "*"}}}}
  severity: 8
  file: {{matchPaths: [{{path: {secret}}}]}}
  action: Audit
"""


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    secret = Path(os.path.realpath(tmp_path_factory.mktemp("identity"))) / "secret"
    secret.write_text("s3cret")
    docker = {"type": "docker", "socket": "/no/such/docker.sock"}
    node = make_node(
        POLICY.format(secret=secret), make_container("box"), inventory={"runtimes": [docker], "answer_seconds": 0.5}
    )
    node.secret = secret
    return node


@pytest.fixture
def cgroup() -> Iterator[Callable[[str], Path]]:
    """cgroup(name): made below one of the test's own, removed afterwards."""
    top = Path(f"{cgroup2_mount()}/hauberk-named-{os.getpid()}-{time.monotonic_ns()}")
    made = [top]
    top.mkdir()

    def make(name: str) -> Path:
        (top / name).mkdir()
        made.append(top / name)
        return top / name

    yield make
    for path in reversed(made):
        path.rmdir()


def read(attacked: Any, cgroup: Path, program: str) -> None:
    """Opens the secret from `cgroup`."""
    script = f'echo $$ > {cgroup}/cgroup.procs && exec {program} "$0"'
    subprocess.run(["/bin/sh", "-c", script, str(attacked.secret)], check=True, capture_output=True)


@pytest.mark.attack("Audited act of a host process in a cgroup named like a container's", "told", by="sensor")
def test_a_host_process_in_a_cgroup_named_like_a_containers(attacked: Any, cgroup: Callable[[str], Path]) -> None:
    read(attacked, cgroup("plain"), "head")
    attacked.alert(Resource=str(attacked.secret), PolicyName="hostaudit", Type="MatchedHostPolicy")
    ident = f"c0ffee{time.monotonic_ns():058d}"
    read(attacked, cgroup(f"docker-{ident}.scope"), "tail")
    alert = attacked.alert("/tail", Resource=str(attacked.secret), PolicyName="hostaudit")
    assert (alert["Type"], alert["HostName"], alert["Action"]) == ("MatchedHostPolicy", "attacked", "Audit")
    assert alert["ContainerID"] == ident
