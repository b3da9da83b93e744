# SPDX-License-Identifier: Apache-2.0
"""A container's first act: what it does before anybody knows whose cgroup it is."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: birth, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  process: {{matchPaths: [{{path: {program}}}]}}
  action: Block
"""


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("birth")))
    shutil.copy(str(shutil.which("true")), home / "blocked")
    node = make_node(POLICY.format(program=home / "blocked"), make_container("box"))
    node.program = home / "blocked"
    return node


def ends(directory: Path, program: Path) -> int:
    """Wait status of an exec of `program` inside a cgroup, forked here: a shell would take longer than the gap."""
    pid = os.fork()
    if not pid:
        try:
            (directory / "cgroup.procs").write_text("0")
            os.execv(program, [program])
        finally:
            os._exit(99)
    return os.waitpid(pid, 0)[1]


@pytest.mark.attack("First exec in a cgroup that a container makes inside itself", "held", by="signal")
def test_a_cgroup_made_inside(attacked: Any) -> None:
    box = attacked.containers["box"]
    for number in range(20):
        inner = box.path / f"inner-{number}" / "deeper"
        inner.mkdir(parents=True)
        assert ends(inner, attacked.program) == 9


@pytest.mark.attack("First exec of a container that was just made, before the node knows it", "told", by="signal")
def test_a_container_made_anew(attacked: Any, record_property: Callable[[str, object], None]) -> None:
    box = attacked.containers["box"]
    assert ends(box.path, attacked.program) == 9
    before = len(attacked.alerts(str(attacked.program), Result="Passed"))
    gaps, early = [], 0
    for _ in range(5):
        box._remove()
        box.path.mkdir()
        born = time.monotonic()
        while ends(box.path, attacked.program) != 9:
            early += 1
            assert time.monotonic() - born < 60, "the rule never came back"
        gaps.append(round((time.monotonic() - born) * 1000))
    record_property("milliseconds", gaps)
    print("ms until the rule holds:", gaps, "execs before:", early)
    if early:
        attacked.alert(str(attacked.program), Result="Passed")
        assert len(attacked.alerts(str(attacked.program), Result="Passed")) >= before
