# SPDX-License-Identifier: Apache-2.0
"""`fromSource` by directory and pattern, decided by the LSM hooks: who acts is known by his path, whenever he began and whatever has become of
his parent.

On a kernel that asks no LSM programs all of it is skipped with the reason; `make test-vm` runs it in guests.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.loading import LoadedPrograms
from policy.ruleset import PostureSettings
from schemas.lsm import HookCount

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

DENIED = "EPERM"
FAILED = "ECHILD"
"""A program that ran, and could not do what it was to do."""
LONG = "/".join(("long", *("d" * 60 for _ in range(5))))


@pytest.fixture(scope="module")
def loaded(hooked: LoadedPrograms) -> LoadedPrograms:
    return hooked


@pytest.fixture
def place(bench: Any, tmp_path: Path) -> Callable[..., str]:
    """Programs in directories: `tools/`, `tools/deep/`, `other/`, and one whose path is too long to be kept; what they read."""

    def path(name: str) -> str:
        return str(tmp_path / name)

    for directory in ("tools", "tools/deep", "other", LONG):
        os.makedirs(path(directory))
        for program in ("sh", "cat", "touch"):
            shutil.copy(os.path.realpath(f"/bin/{program}"), path(f"{directory}/{program}"))
    for name in ("secret", "flat", "tree", "glob", "kept"):
        Path(path(name)).write_text("x\n")
    return path


def source(**words: object) -> str:
    return "fromSource: [{" + ", ".join(f"{name}: '{value}'" for name, value in words.items()) + "}]"


def test_files_by_directory_and_pattern(bench: Any, place: Callable[..., str]) -> None:
    long = place(LONG)
    receipt = bench.hold(
        "file: {matchPaths: ["
        f"{{path: {place('flat')}, {source(dir=place('tools/'))}}}, "
        f"{{path: {place('tree')}, fromSource: [{{dir: {place('tools/')}, recursive: true}}, {{dir: {place('long/')}, recursive: true}}]}}, "
        f"{{path: {place('glob')}, {source(pattern=place('*') + '/{deep,none}/c?t')}}}, "
        f"{{path: {place('kept')}}}, {{path: {place('kept')}, {source(dir=place('other/'))}, action: Allow}}"
        "]}, action: Block"
    )  # fmt: skip
    assert receipt.refused == receipt.partial == ()
    shallow, deep, other = (place(f"{where}/cat") for where in ("tools", "tools/deep", "other"))
    before = bench.count(HookCount.NO_ACTOR)
    bench.expect(
        (FAILED, ("run", shallow, place("flat"))), ("ok", ("run", deep, place("flat"))), ("ok", ("run", other, place("flat"))),
        (FAILED, ("run", shallow, place("tree"))), (FAILED, ("run", deep, place("tree"))), ("ok", ("run", other, place("tree"))),
        (FAILED, ("run", f"{long}/cat", place("tree"))), ("ok", ("run", f"{long}/cat", place("flat"))),
        ("ok", ("run", shallow, place("glob"))), (FAILED, ("run", deep, place("glob"))), ("ok", ("run", other, place("glob"))),
        (FAILED, ("run", shallow, place("kept"))), (FAILED, ("run", deep, place("kept"))), ("ok", ("run", other, place("kept"))),
        (DENIED, ("read", place("kept"))), ("ok", ("read", place("flat"))),
    )  # fmt: skip
    assert bench.count(HookCount.NO_ACTOR) == before


def test_what_is_said_most_of_the_source_decides(bench: Any, place: Callable[..., str]) -> None:
    """The deeper directory, a pattern before a directory, a path before both: as the judge has it."""
    bench.hold(
        "file: {matchPaths: ["
        f"{{path: {place('tree')}, fromSource: [{{dir: {place('tools/')}, recursive: true}}]}}, "
        f"{{path: {place('tree')}, {source(dir=place('tools/deep/'))}, action: Allow}}, "
        f"{{path: {place('glob')}, {source(dir=place('tools/'))}, action: Allow}}, "
        f"{{path: {place('glob')}, {source(pattern=place('tools/*'))}}}, "
        f"{{path: {place('glob')}, {source(path=place('tools/sh'))}, action: Allow}}"
        "]}, action: Block"
    )  # fmt: skip
    shell = place("tools/sh")
    bench.expect(
        (FAILED, ("run", place("tools/cat"), place("tree"))), ("ok", ("run", place("tools/deep/cat"), place("tree"))),
        (FAILED, ("run", place("tools/cat"), place("glob"))), ("ok", ("run", shell, "-c", f"read x < {place('glob')}")),
    )  # fmt: skip


def test_programs_are_asked_for_by_their_parents(bench: Any, place: Callable[..., str]) -> None:
    tool = place("other/touch")
    bench.hold(f"process: {{matchPaths: [{{path: {tool}, {source(dir=place('tools/'))}}}]}}, action: Block")

    def by(shell: str) -> tuple[Any, ...]:
        return ("run", place(shell), "-c", f"{tool} {place('made')}; exit $?")

    bench.expect(
        (DENIED, by("tools/sh")),
        ("ok", by("tools/deep/sh")),
        ("ok", by("other/sh")),
        ("ok", ("run", tool, place("made"))),
    )


@pytest.mark.parametrize(("first", "then", "runs"), [("tools", "other", False), ("other", "tools", True)])
def test_a_parent_that_runs_something_else_by_now(
    bench: Any, place: Callable[..., str], first: str, then: str, runs: bool
) -> None:
    """Whose child it was is what counts, and its path is not to be found in any process any more."""
    tool, gone, made = place("other/touch"), place("gone"), place("made")
    bench.hold(f"process: {{matchPaths: [{{path: {tool}, {source(pattern=place('tools/*'))}}}]}}, action: Block")
    child = f"while [ ! -e {gone} ]; do :; done; exec {tool} {made}"
    process = bench.box.start(
        place(f"{first}/sh"), "-c", f"({child}) & exec {place(then)}/touch {gone}", stdout=subprocess.PIPE
    )
    process.communicate(timeout=120)  # until the child has ended too
    assert os.path.exists(made) == runs


def test_a_script_is_known_by_its_own_path(bench: Any, place: Callable[..., str]) -> None:
    for where in ("tools", "other"):
        Path(place(f"{where}/script")).write_text(f"#!{place('other/sh')}\nread x < {place('secret')}\n")
        os.chmod(place(f"{where}/script"), 0o755)
    bench.hold(f"file: {{matchPaths: [{{path: {place('secret')}, {source(dir=place('tools/'))}}}]}}, action: Block")
    bench.expect((FAILED, ("run", place("tools/script"))), ("ok", ("run", place("other/script"))))


class Reader:
    """A shell in the cgroup that tries to read a file whenever it is asked."""

    def __init__(self, bench: Any, shell: str, file: str) -> None:
        body = f"while read line; do if read x < {file}; then echo ok; else echo denied; fi; done"
        self.process = bench.box.start(
            shell, "-c", body, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )

    def read(self) -> str:
        self.process.stdin.write(b"go\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().decode().strip()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def test_a_process_is_asked_anew_by_every_table(bench: Any, place: Callable[..., str], loaded: LoadedPrograms) -> None:
    """Older than the first table, then under others; at last as one that the sensor has not met."""
    reader = Reader(bench, place("tools/sh"), place("secret"))
    try:
        assert reader.read() == "ok"

        def hold(directory: str) -> None:
            bench.hold(
                f"file: {{matchPaths: [{{path: {place('secret')}, {source(dir=place(directory))}}}]}}, action: Block"
            )

        for directory, answer in (("tools/", "denied"), ("other/", "ok"), ("tools/", "denied"), ("tools/deep/", "ok")):
            hold(directory)
            assert (reader.read(), reader.read()) == (answer, answer), directory
        hold("tools/")
        with loaded.map("processes") as processes:
            processes.delete(struct.pack("=I", reader.process.pid))
        assert reader.read() == "denied"
    finally:
        reader.end()


def test_sockets_and_capabilities(bench: Any, server: int, place: Callable[..., str]) -> None:
    home = os.path.dirname(os.path.realpath(sys.executable)) + "/"
    connect, raw = ("connect", "127.0.0.1", server), ("socket", 2, 3, 1)
    bench.hold(f"network: {{matchProtocols: [{{protocol: tcp, {source(dir=home)}}}]}}, action: Block")
    bench.expect((DENIED, connect), ("ok", ("socket", 2, 2)))
    bench.hold(f"network: {{matchProtocols: [{{protocol: tcp, {source(dir=place('tools/'))}}}]}}, action: Block")
    bench.expect(("ok", connect))
    bench.hold(
        f"network: {{matchProtocols: [{{protocol: tcp, {source(pattern=home + '*')}}}]}}, action: Allow",
        postures=PostureSettings(network="block"),
    )
    bench.expect(("ok", connect), (DENIED, ("socket", 2, 2)))
    bench.hold(
        "capabilities: {matchCapabilities: [{capability: net_raw, action: Block}, "
        f"{{capability: net_raw, {source(pattern=home + '*')}, action: Allow}}]}}, action: Block"
    )
    bench.expect(("ok", raw))
    bench.hold(f"capabilities: {{matchCapabilities: [{{capability: net_raw, {source(dir=home)}}}]}}, action: Block")
    bench.expect((DENIED, raw))
