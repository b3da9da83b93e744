# SPDX-License-Identifier: Apache-2.0
"""A disk of 24 MiB under a flood: the bus makes room by itself, alerts and offsets are written, and it is told.

The file system is a tmpfs in a mount namespace that ends with the process, so nothing is left mounted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bus.disk import Disk, DiskReserve, capped, look, segment

SCRIPT = Path(__file__).with_name("full_disk.py")
MIB = 1 << 20


def flooded(directory: Path, ballast: int) -> dict[str, Any]:
    line = 'mount -t tmpfs -o size=24m none "$1" && exec "$2" "$3" "$1" "$4"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", line, "sh",
         str(directory), sys.executable, str(SCRIPT), str(ballast)],
        capture_output=True, text=True, check=False, timeout=240, cwd=SCRIPT.parents[2],
        env=os.environ | {"PYTHONPATH": str(SCRIPT.parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts a tmpfs in a namespace of its own")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("ballast", [0, 12 * MIB])
def test_a_flood_on_a_small_disk_loses_raw_events_and_no_alert(tmp_path: Path, ballast: int) -> None:
    said = flooded(tmp_path, ballast)
    assert said["failed"]["alert"] == said["failed"]["commit"] == 0, said
    assert said["ours"] == 300, "every alert is there"
    assert max(said["failed"]["raw"], said["failed"]["take"]) < 100, said
    assert said["quarantined"] == 0
    assert said["disk_bytes"] <= said["total"] // 2
    assert said["free"] > 0
    if ballast:
        assert said["shed"].get("events.raw", 0) > 0, said
        assert "alerts" not in said["shed"]
        assert any("free some space" in one for one in said["notices"]), said
    assert not os.path.ismount(tmp_path)


def test_caps_are_a_share_of_the_disk(tmp_path: Path) -> None:
    there = look(tmp_path / "not" / "made" / "yet")
    assert there.total > 0
    assert capped(0, tmp_path, 2) == there.total // 2
    assert capped(1 << 60, tmp_path, 4) == there.total // 4
    assert capped(1000, tmp_path, 2) == 1000
    small = Disk(total=24 * MIB, free=MIB)
    assert (small.spare, small.short) == (3 * MIB, 2 * MIB)
    assert segment(64 * MIB, 12 * MIB) == 12 * MIB // 32
    assert segment(64 * MIB, 0) == 64 * MIB


def test_a_reserve_is_held_given_up_once_and_taken_again(tmp_path: Path) -> None:
    reserve = DiskReserve(tmp_path)
    roomy = Disk(total=100 * MIB, free=90 * MIB)
    reserve.take(Disk(total=100 * MIB, free=2 * MIB))
    assert not reserve.held, "never from the last of it"
    reserve.take(roomy)
    assert reserve.held
    assert os.stat(tmp_path / "reserve").st_blocks * 512 >= roomy.reserve, "room, not a hole"
    assert reserve.give_up()
    assert not reserve.give_up()
    reserve.take(roomy)
    assert reserve.held
