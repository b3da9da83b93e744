# SPDX-License-Identifier: Apache-2.0
"""The units, as systemd itself reads them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UNITS = sorted((ROOT / "deploy/systemd").glob("*.service"))
WORST = {"hauberk-node": 5.0, "hauberk-up": 5.5}
"""Exposure by `systemd-analyze security`, 10 is worst. Measured 4.9 and 5.4: capabilities and the view of other processes are the price."""


@pytest.fixture
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy whose program exists, which `verify` insists on."""
    if not shutil.which("systemd-analyze"):
        pytest.skip("needs `systemd-analyze`: apt-get install systemd")
    source: Path = request.param
    copy = tmp_path / source.name
    copy.write_text(source.read_text().replace("/opt/hauberk/bin/hauberk", "/bin/true"))
    return copy


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem, indirect=True)
def test_systemd_has_nothing_to_say(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False, timeout=90
    )
    ours = [line for line in done.stderr.splitlines() if "hauberk" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem, indirect=True)
def test_exposure_does_not_grow(unit: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", unit],
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    if found is None:
        pytest.skip(f"needs systemd 250 for `security --offline`: {done.stderr.strip()[:200]}")
    assert float(found[1]) <= WORST[unit.stem]


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.stem)
def test_a_child_that_is_killed_for_memory_does_not_end_the_service(path: Path) -> None:
    """systemd's default is to stop a unit of which any process was killed for want of memory; children here are meant to be the first."""
    settings = dict(line.split("=", 1) for line in path.read_text().splitlines() if re.match(r"[A-Z]\w+=", line))
    assert settings.get("OOMPolicy") == "continue"
    assert settings["Restart"] in ("always", "on-failure"), "the main process is started again all the same"
