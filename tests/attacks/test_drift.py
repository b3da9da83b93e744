# SPDX-License-Identifier: Apache-2.0
"""What a workload under a baseline has never done: learned from what it did, put on the bus, told once when it does something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from waiting import eventually


@pytest.fixture(scope="module")
def learned(make_container: Callable[[str], Any], make_node: Callable[..., Any]) -> Any:
    """A node whose container `box` is under the baseline of what it did: it read two files."""
    box = make_container("box")
    node = make_node("", box, start=False)
    node.start(policies=False)

    def seen() -> bool:
        assert box.run("/bin/cat", "/etc/hostname", "/etc/os-release").returncode == 0
        found = node.hauberk("discover", "-l", "app=box").stdout
        # The first program may have begun before anybody knew whose cgroup that was: without a rule for programs none is outside.
        return "hostname" in found and "  process:" in found

    eventually(seen)
    done = node.hauberk("discover", "-l", "app=box", "--apply", "--mode", "baseline")
    assert done.returncode == 0, done.stderr
    eventually(lambda: "baseline" in node.hauberk("get", "policies").stdout)
    return node


@pytest.mark.attack("A program and a file that the workload never used, under a baseline", "told", by="processor")
def test_what_is_new_is_told_once_and_what_is_known_is_not(learned: Any) -> None:
    box = learned.containers["box"]
    eventually(lambda: box.run("/bin/cat", "/etc/passwd").returncode == 0 and learned.alerts("/etc/passwd"))
    for _ in range(5):
        assert box.run("/bin/cat", "/etc/passwd", "/etc/hostname").returncode == 0
    assert box.run("/bin/ls", "/").returncode == 0
    program = learned.alert(Operation="Process", Mode="baseline")
    assert program["Resource"].split()[0].endswith("/ls")
    (file,) = learned.alerts(Operation="File", Resource="/etc/passwd")
    assert (file["Action"], file["Mode"], file["Result"], file["ATags"]) == ("Audit", "baseline", "Passed", ["Drift"])
    assert not learned.alerts("hostname")
    assert not learned.alerts("os-release")
