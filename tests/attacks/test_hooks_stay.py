# SPDX-License-Identifier: Apache-2.0
"""The end of the agent under the LSM hooks: a denied path is opened without pause through a stop, a SIGKILL, starts and an upgrade.

The upgrade is to programs of another layout, as another version's are: they attach with the rules before the old ones leave.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hammering import Hammer

from kernel.features import lsm_programs
from kernel.loading import existing

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: held}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  file: {{matchPaths: [{{path: {home}/secret}}]}}
  process: {{matchPaths: [{{path: {home}/tool}}]}}
  action: Block
"""
LOAD = {
    "occurrence_pages": 256, "definition_pages": 256, "behaviours": 65536, "strings": 65536, "processes": 65536, "rules": 262144,
    "net_rules": 65536, "scopes": 16384,
}  # fmt: skip
"""Sizes whose programs the rig compiles beforehand (tests/vm/vmrig/programs.py), and OTHER's."""
OTHER = 131072
pytestmark = pytest.mark.timeout(2400)


@pytest.fixture
def node(make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path: Path) -> Any:
    offered = lsm_programs()
    if not offered.available:
        pytest.skip(offered.why)
    shutil.copy("/bin/true", tmp_path / "tool")
    return make_node(
        POLICY.format(home=tmp_path), make_container("box"), start=False, sensor={"keep": True, "load": LOAD},
        enforcement={"backends": ["bpf-lsm", "cgroup", "signal"]},
    )  # fmt: skip


def layout(node: Any) -> int:
    """Of the programs that are pinned."""
    from schemas.kernel import Config

    found = existing(node.pins)
    assert found is not None
    with found.map("config") as config:
        return int(config.sum_u64(int(Config.LAYOUT).to_bytes(4, "little")))


@pytest.mark.attack(
    "Open of a blocked file while the agent is stopped, killed, started or upgraded", "held", by="bpf-lsm"
)
def test_no_open_passes_through_a_stop_a_kill_and_an_upgrade(
    node: Any, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    node.start()
    first = layout(node)
    hammer = Hammer(node.containers["box"].start, tmp_path)

    def held() -> None:
        assert hammer.process.poll() is None
        assert node.containers["box"].run(f"{tmp_path}/tool").returncode == 126

    try:
        eventually(hammer.begun)
        held()
        assert node.ended(signal.SIGTERM) == 0, node.said()
        held()
        node.start()
        held()
        node.process.kill()
        node.process.wait(60)
        held()
        node.start("--set", f"sensor.load.rules={OTHER}")
        assert layout(node) != first, "the same programs were reused"
        held()
        node.process.kill()
        node.process.wait(60)
        held()
    finally:
        hammer.stop()
    hammer.expect_held()
