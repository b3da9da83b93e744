# SPDX-License-Identifier: Apache-2.0
"""Exec, fork and exit as the live kernel tells them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.operations import Access, Operation

pytestmark = pytest.mark.kernel
Pick = Callable[..., Any]
PYTHON = os.path.realpath("/proc/self/exe")
TRUE = os.path.realpath(shutil.which("true") or "/bin/true")
SHELL = os.path.realpath("/bin/sh")


def test_exec_tells_image_arguments_cwd_and_caller(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    def act() -> None:
        os.chdir(tmp_path)
        os.execv(TRUE, ["true", "one", "two three", ""])

    event = pick(sensor.run(act), Operation.EXEC, result=0)
    assert (event.executable, event.resource, event.access) == (PYTHON, TRUE, Access.EXEC)
    assert (event.pid, event.ppid, event.ns_pid) == (sensor.pid, os.getpid(), sensor.pid)
    assert (event.uid, event.owner) == (os.getuid(), os.stat(TRUE).st_uid)
    image = sensor.processes[event.process]
    assert (image.executable.decode(), image.parent.decode(), image.cwd.decode()) == (TRUE, PYTHON, str(tmp_path))
    assert image.arguments == b"true\0one\0two three\0"
    assert (image.pid, image.ppid, image.truncated) == (sensor.pid, os.getpid(), 0)


def test_arguments_longer_than_kept_are_marked(sensor: Any, pick: Pick) -> None:
    event = pick(sensor.run([TRUE, "x" * 6000]), Operation.EXEC)
    image = sensor.processes[event.process]
    assert image.truncated == 1
    assert image.arguments.startswith(TRUE.encode() + b"\0xxx")
    assert len(image.arguments) == 4095


def test_failed_exec_is_told_with_its_errno(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    def act() -> None:
        os.chdir(tmp_path)
        try:
            os.execv("missing/../gone", ["gone"])
        except FileNotFoundError:
            return

    event = pick(sensor.run(act), Operation.EXEC)
    assert (event.resource, event.result, event.ret) == (f"{tmp_path}/gone", -errno.ENOENT, -errno.ENOENT)
    assert sensor.processes[event.process].executable.decode() == PYTHON


def test_children_descend_from_their_shell(sensor: Any, pick: Pick) -> None:
    events = sensor.run([SHELL, "-c", f"{TRUE}; {TRUE}; exit 7"], status=7 << 8)
    first = pick(events, Operation.EXEC, resource=SHELL)
    children = [event for event in events if event.operation is Operation.EXEC and event.resource == TRUE]
    assert len(children) == 2
    assert {(event.executable, event.parent) for event in children} == {(SHELL, SHELL)}
    assert {event.ppid for event in children} == {sensor.pid}
    assert {sensor.processes[event.process].parent_process for event in children} == {first.process}
    exits = {event.pid: event.ret for event in events if event.operation is Operation.EXIT}
    assert exits == {sensor.pid: 7, **{event.pid: 0 for event in children}}


def test_exit_by_signal(sensor: Any, pick: Pick) -> None:
    events = sensor.run([SHELL, "-c", "kill -TERM $$"], status=15)
    assert pick(events, Operation.EXIT).ret == 128 + 15


def test_a_file_that_was_bound_and_detached_is_told_by_its_place_in_its_filesystem(
    sensor: Any, pick: Pick, tmp_path: Path
) -> None:
    """As runc 1.1 runs: from a bind mount of itself that is no longer anywhere, so that a container cannot write to it."""
    libc = ctypes.CDLL(None, use_errno=True)
    image, place = tmp_path / "image", tmp_path / "place"
    shutil.copy(TRUE, image)
    place.touch()
    inside = subprocess.run(["stat", "-c", "%m", image], capture_output=True, text=True, check=True).stdout.strip()

    def act() -> None:
        clone_newns, ms_bind, ms_rec, ms_private, mnt_detach = 0x20000, 4096, 16384, 1 << 18, 2
        assert libc.unshare(clone_newns) == 0
        assert libc.mount(b"none", b"/", None, ms_rec | ms_private, None) == 0
        assert libc.mount(os.fsencode(image), os.fsencode(place), None, ms_bind, None) == 0
        fd = os.open(place, os.O_PATH)
        assert libc.umount2(os.fsencode(place), mnt_detach) == 0
        os.execve(fd, ["hidden"], {})

    event = pick(sensor.run(act), Operation.EXEC)
    assert (event.resource, event.result) == (f"/{image.relative_to(inside)}", 0)


def test_exec_of_a_memfd_has_no_place_in_the_tree(sensor: Any, pick: Pick) -> None:
    def act() -> None:
        fd = os.memfd_create("hidden")
        os.write(fd, Path(TRUE).read_bytes())
        os.execve(fd, ["x"], {})

    assert pick(sensor.run(act), Operation.EXEC).resource == "memfd:hidden"


def test_threads_are_not_processes(sensor: Any) -> None:
    import threading

    def act() -> None:
        threads = [threading.Thread(target=lambda: os.stat("/")) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    events = sensor.run(act)
    assert [event.pid for event in events if event.operation is Operation.EXIT] == [sensor.pid]


def test_sequences_have_no_holes(sensor: Any) -> None:
    seen: dict[int, list[int]] = {}
    for event in sensor.run([SHELL, "-c", f"{TRUE}; {TRUE}; {TRUE}"]):
        seen.setdefault(event.sequence >> 48, []).append(event.sequence & (1 << 48) - 1)
    for numbers in seen.values():
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
