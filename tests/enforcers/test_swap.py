# SPDX-License-Identifier: Apache-2.0
"""Programs of a new build take the place of the old ones, and the rules hold before, meanwhile and after."""

from __future__ import annotations

import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enforcers.plan import Planner
from enforcers.settings import EnforceSettings
from enforcers.swap import carry_over
from kernel.loading import LoadSettings, load, mount_bpffs, unload, unmount
from policy.ruleset import compile_ruleset
from schemas.enforcement import encode

pytestmark = pytest.mark.kernel
SMALL = LoadSettings(occurrence_pages=256, definition_pages=256, new_visibility=("none",), rules=64, net_rules=64)
OPT_IN = "{hauberk.io/signal: enabled}"


@pytest.fixture
def home(bpffs_home: Callable[[str], str]) -> Iterator[str]:
    """A bpffs for pins that are made and replaced here."""
    if os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs")
    where = bpffs_home("swap")
    mount_bpffs(where)
    yield where
    unload(f"{where}/pins")
    unmount(where)


def test_rules_hold_while_programs_are_replaced(
    home: str, new_cgroup: Any, identity: Any, policies: Any, ksp: Any, tmp_path: Path
) -> None:
    box, tool = new_cgroup(), Path(shutil.copy("/bin/true", tmp_path / "tool"))
    rules = (
        f"process: {{matchPaths: [{{path: {tool}}}]}}, network: {{matchProtocols: [{{protocol: tcp}}]}}, action: Block"
    )
    plan = Planner(compile_ruleset(policies(ksp("held", rules, OPT_IN)))).plan("n1", [identity(box)], 1)
    (tmp_path / "plan.msgpack").write_bytes(encode(plan))
    settings = EnforceSettings(state_dir=str(tmp_path))

    def prepare(pins: str) -> None:
        carry_over(pins, "n1", settings)

    load(SMALL, f"{home}/pins", prepare=prepare)
    ends: list[int] = [box.run(str(tool))]
    over = threading.Event()

    def probe() -> None:
        while not over.is_set():
            ends.append(box.run(str(tool)))

    probing = threading.Thread(target=probe)
    probing.start()
    try:
        load(msgspec.structs.replace(SMALL, rules=128), f"{home}/pins", prepare=prepare)
    finally:
        over.set()
        probing.join()
    assert set(ends) == {-9}, f"{len(ends) - ends.count(-9)} of {len(ends)} were not stopped"
    assert box.connect(9) in ("EPERM", "EACCES")


@pytest.mark.parametrize("saved", [None, b"", b"\xc1"])
def test_a_plan_that_cannot_be_carried_over_stops_no_load(
    saved: bytes | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if saved is not None:
        (tmp_path / "plan.msgpack").write_bytes(saved)
    with caplog.at_level(logging.ERROR):
        carry_over(f"{tmp_path}/none", "n1", EnforceSettings(state_dir=str(tmp_path)))
    assert ("not in force until enforcement has started" in caplog.text) is (saved is not None)
