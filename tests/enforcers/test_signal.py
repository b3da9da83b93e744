# SPDX-License-Identifier: Apache-2.0
"""Kills on the live kernel: at exec and after an open, only with the opt-in, only inside the cgroup."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.kernel

OPT_IN = "{hauberk.io/signal: enabled}"


@pytest.fixture
def tool(tmp_path: Path) -> Path:
    """A program with a name and place of its own."""
    (tmp_path / "bin").mkdir()
    return Path(shutil.copy("/bin/true", tmp_path / "bin/tool"))


async def test_a_blocked_exec_is_killed_inside_only(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tool: Path
) -> None:
    inside, outside = new_cgroup(), new_cgroup()
    assert inside.run(str(tool)) == 0
    async with house() as here:
        await here.know(identity(inside), identity(outside, labels={"app": "db"}))
        await here.apply(ksp("no-tool", f"process: {{matchPaths: [{{path: {tool}}}]}}, action: Block", OPT_IN))
        await here.enforced(inside)
        assert inside.run(str(tool)) == -9
        assert inside.run("/bin/echo") == 0
        assert outside.run(str(tool)) == 0
        assert subprocess.run([str(tool)], check=False).returncode == 0
        receipt = here.agent.receipt
        assert receipt.rules == 1
        assert receipt.refused == receipt.partial == ()


async def test_what_of_a_rule_on_files_comes_too_late_is_in_the_receipt(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path
) -> None:
    """A kill undoes nothing: who unlinks the file is killed, and the file is gone."""
    (tmp_path / "file").write_text("x")
    box = new_cgroup()
    async with house() as here:
        await here.know(identity(box))
        rules = f"file: {{matchPaths: [{{path: {tmp_path}/file}}, {{path: {tmp_path}/free, action: Allow}}]}}, action: Block"
        await here.apply(ksp("no-file", rules, OPT_IN))
        await here.enforced(box)
        assert [(one.ref.position, "unlink" in one.reason) for one in here.agent.receipt.partial] == [
            ("spec.file.matchPaths[0]", True)
        ]
        assert box.run("rm", str(tmp_path / "file")) == -9
        assert not (tmp_path / "file").exists()


async def test_a_script_is_killed_by_its_own_path(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path
) -> None:
    for name in ("backup.sh", "free.sh"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 0\n")
        (tmp_path / name).chmod(0o755)
    box = new_cgroup()
    async with house() as here:
        await here.know(identity(box))
        await here.apply(
            ksp("no-backup", f"process: {{matchPaths: [{{path: {tmp_path}/backup.sh}}]}}, action: Block", OPT_IN)
        )
        await here.enforced(box)
        assert box.run(str(tmp_path / "backup.sh")) == -9
        assert box.run(str(tmp_path / "free.sh")) == 0


async def test_without_the_opt_in_nothing_is_killed_and_the_receipt_says_so(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tool: Path
) -> None:
    box = new_cgroup()
    async with house() as here:
        await here.know(identity(box))
        await here.apply(ksp("no-tool", f"process: {{matchPaths: [{{path: {tool}}}]}}, action: Block"))
        await here.until(lambda: here.agent.receipt and here.agent.receipt.refused)
        assert box.run(str(tool)) == 0
        assert not here.agent.applier.enforced
        assert ["hauberk.io/signal" in one.reason for one in here.agent.receipt.refused] == [True]


@pytest.mark.parametrize("how", ["directory", "recursive", "name", "source", "node opt-in"])
async def test_directories_names_and_sources(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tool: Path, how: str
) -> None:
    box = new_cgroup()
    python = os.path.realpath(sys.executable)
    rules = {
        "directory": f"matchDirectories: [{{dir: {tool.parent}/}}]",
        "recursive": f"matchDirectories: [{{dir: {tool.parent.parent}/, recursive: true}}]",
        "name": "matchPaths: [{execname: tool}]",
        "source": f"matchPaths: [{{path: {tool}, fromSource: [{{path: {python}}}]}}]",
        "node opt-in": f"matchPaths: [{{path: {tool}}}]",
    }[how]
    async with house(signal=how == "node opt-in") as here:
        await here.know(identity(box))
        await here.apply(
            ksp("no-tool", f"process: {{{rules}}}, action: Block", OPT_IN if how != "node opt-in" else "{}")
        )
        await here.enforced(box)
        if how == "source":
            # The parent's executable counts: of a shell's child it is the shell.
            assert box.run("/bin/sh", "-c", f"{tool}; exit $?") == 0
            code = f"import subprocess,sys; sys.exit(subprocess.run([{str(tool)!r}]).returncode == -9)"
            assert box.run(python, "-S", "-c", code) == 1
        else:
            assert box.run(str(tool)) == -9
        assert box.run("/bin/echo") == 0


async def test_a_whitelist_with_an_exception_inside(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tool: Path
) -> None:
    box = new_cgroup()
    other = Path(shutil.copy("/bin/true", tool.parent / "other"))
    async with house() as here:
        await here.know(identity(box))
        rules = f"process: {{matchDirectories: [{{dir: {tool.parent}/, action: Block}}], matchPaths: [{{path: {tool}, action: Allow}}]}}"
        await here.apply(ksp("mostly", rules, OPT_IN))
        await here.enforced(box)
        assert box.run(str(tool)) == 0
        assert box.run(str(other)) == -9


async def test_an_open_of_a_secret_ends_the_reader(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path
) -> None:
    box = new_cgroup()
    secret, plain = tmp_path / "secret", tmp_path / "plain"
    secret.write_text("s")
    plain.write_text("p")
    async with house() as here:
        await here.know(identity(box))
        await here.apply(ksp("no-secret", f"file: {{matchPaths: [{{path: {secret}}}]}}, action: Block", OPT_IN))
        await here.enforced(box)
        assert box.run("/bin/cat", str(plain)) == 0
        assert box.run("/bin/cat", str(secret)) == -9


async def test_read_only_lets_read(house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path) -> None:
    box = new_cgroup()
    file = tmp_path / "config"
    file.write_text("c")
    async with house() as here:
        await here.know(identity(box))
        await here.apply(ksp("ro", f"file: {{matchPaths: [{{path: {file}, readOnly: true}}]}}, action: Block", OPT_IN))
        await here.enforced(box)
        assert box.run("/bin/cat", str(file)) == 0
        assert box.run("/bin/sh", "-c", f"exec /usr/bin/tee {file} </dev/null") == -9
