# SPDX-License-Identifier: Apache-2.0
"""The LSM hooks while their agent is gone, killed, back, and of another version: a denied path is opened without pause, and no open passes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hammering import Hammer

from enforcers.plan import Planner
from enforcers.settings import EnforceSettings
from enforcers.swap import carry_over
from kernel.features import lsm_programs
from kernel.loading import LoadSettings, load, mount_bpffs, unload, unmount
from policy.ruleset import compile_ruleset
from schemas.enforcement import encode

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(2400)]
ROOT = Path(__file__).parents[2]
CALLS = str(Path(__file__).with_name("calls.py"))
FIRST = LoadSettings(occurrence_pages=256, definition_pages=256, new_visibility=("none",), hooks=True, timeout=1200.0)
OTHER = msgspec.structs.replace(FIRST, rules=131072)
"""Another layout, as another version's is. Both are compiled beforehand for guests (tests/vm/vmrig/programs.py)."""
AGENT = """
import sys
from enforcers.settings import EnforceSettings
from enforcers.swap import opened, saved_plan
settings = EnforceSettings(state_dir=sys.argv[2], backends=("bpf-lsm",))
applier = opened(sys.argv[1], "n1", settings)
while True:
    assert applier.apply(saved_plan(settings)).failed == ()
    print("applied", flush=True)
"""


@pytest.fixture
def home(bpffs_home: Callable[[str], str]) -> Iterator[str]:
    """A bpffs for pins that are made and replaced here."""
    if os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs")
    if not (offered := lsm_programs()).available:
        pytest.skip(offered.why)
    where = bpffs_home("hooks-swap")
    mount_bpffs(where)
    yield where
    unload(f"{where}/pins")
    unmount(where)


def killed_agent(pins: str, state: Path) -> None:
    """An agent that carries the saved plan out again and again, and is killed in the midst of it."""
    command = [sys.executable, "-c", AGENT, pins, str(state)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert process.stdout.readline() == "applied\n"
        process.kill()


def test_no_open_passes_while_the_agent_is_stopped_killed_and_upgraded(
    home: str, new_cgroup: Any, identity: Any, policies: Any, ksp: Any, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    box, pins = new_cgroup(), f"{home}/pins"
    rules = f"file: {{matchPaths: [{{path: {tmp_path}/secret}}]}}, action: Block"
    plan = Planner(compile_ruleset(policies(ksp("held", rules)))).plan("n1", [identity(box)], 1)
    (tmp_path / "plan.msgpack").write_bytes(encode(plan))
    settings = EnforceSettings(state_dir=str(tmp_path), backends=("bpf-lsm",))

    def prepare(where: str) -> None:
        carry_over(where, "n1", settings)

    assert load(FIRST, pins, prepare=prepare).refused == {}
    hammer = Hammer(box.start, tmp_path)
    try:
        eventually(hammer.begun, 300)  # nobody is there: the agent is stopped
        killed_agent(pins, tmp_path)
        assert load(FIRST, pins, prepare=prepare).reused
        killed_agent(pins, tmp_path)
        assert not load(OTHER, pins, prepare=prepare).reused
        killed_agent(pins, tmp_path)
        assert hammer.process.poll() is None
    finally:
        hammer.stop()
    hammer.expect_held()
