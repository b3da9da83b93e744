# SPDX-License-Identifier: Apache-2.0
"""Attacking what the agent keeps on disk: a disk that is filled under it, a table of policies that is damaged."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: state, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  file: {{matchPaths: [{{path: {home}/audited, action: Audit}}, {{path: {home}/blocked}}]}}
  action: Block
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = Path(os.path.realpath(tmp_path))
    for name in ("audited", "blocked"):
        (place / name).write_text("secret")
    return place


@pytest.fixture
def small_disk(make_container: Callable[[str], Any], make_node: Callable[..., Any], home: Path) -> Iterator[Any]:
    """A node whose state, alerts and summaries lie on 24 MiB."""
    node = make_node(POLICY.format(home=home), make_container("box"), start=False)
    node.state.mkdir(mode=0o700)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "hauberk-test", node.state], check=False
    )
    if mounted.returncode:
        pytest.skip("needs to mount a tmpfs")
    settings = node.home / "settings.json"
    text = settings.read_text()
    for name in ("alerts.jsonl", "summary.db"):
        text = text.replace(str(node.home / name), str(node.state / name))
    settings.write_text(text)
    node.alerts_file = node.state / "alerts.jsonl"
    try:
        yield node
    finally:
        node.ended()
        subprocess.run(["umount", "-l", node.state], check=True)


@pytest.mark.attack("Audited open after new names have filled the disk under the agent", "told", by="bus")
def test_a_disk_that_is_filled_under_the_agent(small_disk: Any, home: Path, build: Callable[[str], str]) -> None:
    node = small_disk
    node.start()
    box = node.containers["box"]
    flood = build("new_names")
    for _ in range(3):
        box.run(flood, "3", "2")
    # The rest of the disk as well, as somebody else on the machine would take it.
    with (node.state / "ballast").open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(1 << 16))
            except OSError:
                break
    assert box.run("cat", f"{home}/blocked").returncode == -9
    assert box.run("cat", f"{home}/audited").returncode == 0
    node.alert(f"{home}/audited", Action="Audit")
    node.alert(f"{home}/blocked", Action="Block")
    assert box.run("cat", f"{home}/blocked").returncode == -9


@pytest.mark.attack(
    "Blocked open after the table of policies was damaged and the agent killed and started", "held", by="signal"
)
def test_policies_that_are_damaged_while_the_agent_is_down(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], home: Path, eventually: Callable[..., Any]
) -> None:
    node = make_node(POLICY.format(home=home), make_container("box"))
    box = node.containers["box"]
    assert box.run("cat", f"{home}/blocked").returncode == -9
    node.process.kill()
    node.process.wait(60)
    (table,) = node.state.glob("bus/**/policies.v1/compacted.db")
    with table.open("r+b") as file:
        file.seek(100)
        file.write(os.urandom(8000))
    for suffix in ("-wal", "-shm"):
        Path(f"{table}{suffix}").unlink(missing_ok=True)
    assert box.run("cat", f"{home}/blocked").returncode == -9, "while nobody runs"
    node.start(policies=False)
    node.alert(Operation="PoliciesDamaged")
    for _ in range(20):
        assert box.run("cat", f"{home}/blocked").returncode == -9
    found = node.hauberk("get", "nodes", "-o", "json")
    assert found.returncode == 0, found.stderr
