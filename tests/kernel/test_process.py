# SPDX-License-Identifier: Apache-2.0
"""Exec, fork and exit as the live kernel tells them."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.syscalls import number
from schemas.kernel import ProcessFlag
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
    assert image.arguments == TRUE.encode() + b"\0true\0one\0two three\0"
    assert (image.pid, image.ppid, image.flags & ProcessFlag.CUT) == (sensor.pid, os.getpid(), 0)


def test_arguments_longer_than_kept_are_marked(sensor: Any, pick: Pick) -> None:
    event = pick(sensor.run([TRUE, "x" * 6000]), Operation.EXEC)
    image = sensor.processes[event.process]
    assert image.flags & ProcessFlag.CUT
    assert image.arguments.startswith(TRUE.encode() + b"\0" + TRUE.encode() + b"\0xxx")
    assert len(image.arguments) == 4095
    assert not sensor.processes[pick(sensor.run([TRUE, "x" * 4000]), Operation.EXEC).process].flags & ProcessFlag.CUT


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


LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_EMPTY_PATH, CLONE_NEWPID = -100, 0x1000, 0x20000000


def execveat(dirfd: int, path: bytes, flags: int = 0) -> None:
    argv = (ctypes.c_char_p * 2)(b"true", None)
    LIBC.syscall(number("execveat"), dirfd, path, argv, (ctypes.c_char_p * 1)(None), flags)
    raise OSError(ctypes.get_errno(), "execveat")


@pytest.mark.parametrize("how", ["fd", "directory", "working directory", "absolute"])
def test_execveat_has_its_own_name(sensor: Any, pick: Pick, how: str) -> None:
    def act() -> None:
        if how == "fd":
            execveat(os.open(TRUE, os.O_PATH), b"", AT_EMPTY_PATH)
        elif how == "directory":
            execveat(os.open(os.path.dirname(TRUE), os.O_PATH), os.path.basename(TRUE).encode())
        elif how == "working directory":
            os.chdir(os.path.dirname(TRUE))
            execveat(AT_FDCWD, os.path.basename(TRUE).encode())
        else:
            execveat(AT_FDCWD, TRUE.encode())

    event = pick(sensor.run(act), Operation.EXEC, result=0)
    assert (event.resource, event.syscall) == (TRUE, number("execveat"))
    assert pick(sensor.run([TRUE]), Operation.EXEC).syscall == number("execve")


def test_a_failed_execveat_does_not_name_the_exec_after_it(sensor: Any) -> None:
    def act() -> None:
        with pytest.raises(OSError, match="execveat"):
            execveat(AT_FDCWD, b"/nowhere/at/all")
        os.execv(TRUE, ["true"])

    calls = [(event.syscall, event.result) for event in sensor.run(act) if event.operation is Operation.EXEC]
    assert calls == [(number("execveat"), -errno.ENOENT), (number("execve"), 0)]


def test_the_parents_number_is_that_of_the_childs_own_namespace(sensor: Any) -> None:
    """pid 1 of a namespace has no parent in it (0); what it starts has pid 1; the host's numbers stay the host's."""

    def act() -> None:
        assert LIBC.unshare(CLONE_NEWPID) == 0
        if (first := os.fork()) == 0:
            if (second := os.fork()) == 0:
                os.execv(TRUE, ["true"])
            os.waitpid(second, 0)
            os.execv(TRUE, ["true"])
        os.waitpid(first, 0)

    execs = [event for event in sensor.run(act) if event.operation is Operation.EXEC]
    child, init = execs
    assert (init.ns_pid, init.ns_ppid, init.ppid) == (1, 0, sensor.pid)
    assert (child.ns_pid, child.ns_ppid, child.ppid) == (2, 1, init.pid)
    assert child.pid != 2


def test_who_comes_into_a_namespace_from_outside_has_no_parent_there(sensor: Any) -> None:
    """As `runc exec` and nsenter(1): the parent is not in the namespace, so it has no number there."""

    def act() -> None:
        ready, done = os.pipe(), os.pipe()
        if (maker := os.fork()) == 0:
            assert LIBC.unshare(CLONE_NEWPID) == 0
            if (init := os.fork()) == 0:
                os.read(done[0], 1)
                os._exit(0)
            os.write(ready[1], str(init).encode())
            os.waitpid(init, 0)
            os._exit(0)
        init = int(os.read(ready[0], 32))
        assert LIBC.setns(os.open(f"/proc/{init}/ns/pid", os.O_RDONLY), 0) == 0
        if (inside := os.fork()) == 0:
            os.execv(TRUE, ["true"])
        os.waitpid(inside, 0)
        os.write(done[1], b"x")
        os.waitpid(maker, 0)

    (event,) = [event for event in sensor.run(act) if event.operation is Operation.EXEC]
    assert 1 < event.ns_pid != event.pid
    assert event.ns_ppid == 0
    assert event.ppid == sensor.pid


def test_a_daemons_parent_is_who_started_it_in_number_and_in_name(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    """Forked twice and adopted by somebody else: both fields still speak of the process that forked it."""
    orphaned = tmp_path / "orphaned"

    def act() -> None:
        if (middle := os.fork()) == 0:
            mine = os.getpid()
            if os.fork() == 0:
                os.setsid()
                while os.getppid() == mine:
                    os.sched_yield()
                os.stat(tmp_path)
                orphaned.write_text(str(mine))
                os.execv(TRUE, ["true"])
            os._exit(0)
        os.waitpid(middle, 0)

    events = sensor.run(act)
    deadline = time.monotonic() + 30
    while not any(event.operation is Operation.EXIT and event.executable == TRUE for event in events):
        assert time.monotonic() < deadline
        events += sensor.seen()
    middle = int(orphaned.read_text())
    event = pick(events, Operation.EXEC)
    assert (event.ppid, event.parent) == (middle, PYTHON)
    ended = pick(events, Operation.EXIT, executable=TRUE)
    assert (ended.ppid, ended.parent) == (middle, PYTHON)


def script(path: Path, interpreter: str, text: str = "") -> Path:
    path.write_text(f"#!{interpreter}\n{text}")
    path.chmod(0o755)
    return path


def execs(events: list[Any]) -> list[tuple[str, str, str]]:
    return [(e.resource, e.resource2, e.executable) for e in events if e.operation is Operation.EXEC and not e.result]


@pytest.mark.parametrize("how", ["path", "symbolic link", "relative", "descriptor", "interpreter's argument"])
def test_a_script_is_named_and_its_interpreter_too(sensor: Any, tmp_path: Path, how: str) -> None:
    """By its own path, whatever the caller called it."""
    path = script(tmp_path / "run.sh", "/bin/sh -e" if how == "interpreter's argument" else "/bin/sh")
    (tmp_path / "link").symlink_to("run.sh")

    def act() -> None:
        os.chdir(tmp_path)
        if how == "descriptor":
            os.set_inheritable(fd := os.open(path, os.O_RDONLY), True)
            os.execve(fd, ["run.sh"], {})
        os.execv({"symbolic link": "link", "relative": "./run.sh"}.get(how, str(path)), ["x", "one"])

    events = sensor.run(act)
    assert execs(events) == [(str(path), SHELL, PYTHON)]
    (event,) = [event for event in events if event.operation is Operation.EXEC]
    image = sensor.processes[event.process]
    assert image.flags & ProcessFlag.CALLED
    called, *arguments = image.arguments.rstrip(b"\0").split(b"\0")
    assert (image.executable.decode(), called in arguments) == (SHELL, True)
    assert event.owner == os.getuid()


def test_a_script_of_a_script_is_named_and_so_are_both(sensor: Any, tmp_path: Path) -> None:
    inner = script(tmp_path / "inner", "/bin/sh", "exit 0")
    outer = script(tmp_path / "outer", str(inner))
    assert execs(sensor.run([str(outer)])) == [(str(outer), SHELL, PYTHON), (str(inner), SHELL, PYTHON)]


def test_env_starts_the_interpreter_of_a_script_itself(sensor: Any, tmp_path: Path) -> None:
    env = os.path.realpath("/usr/bin/env")
    path = script(tmp_path / "run", "/usr/bin/env sh", "exit 0")
    assert execs(sensor.run([str(path)])) == [(str(path), env, PYTHON), (SHELL, "", env)]


def test_files_that_the_exec_closes_do_not_hide_the_script(sensor: Any, tmp_path: Path) -> None:
    """Each leaves work to the task, as the script's file does; so does the image that ends, and its libraries."""
    path = script(tmp_path / "run", "/bin/sh", f"exec {TRUE}")

    def act() -> None:
        for _ in range(900):
            os.open(TRUE, os.O_RDONLY)
        os.execv(path, ["run"])

    assert execs(sensor.run(act)) == [(str(path), SHELL, PYTHON), (TRUE, "", SHELL)]


def test_a_script_that_is_removed_is_still_named(sensor: Any, tmp_path: Path) -> None:
    path = script(tmp_path / "run", "/bin/sh")

    def act() -> None:
        os.set_inheritable(fd := os.open(path, os.O_RDONLY), True)
        path.unlink()
        os.execve(fd, ["run"], {})

    assert execs(sensor.run(act)) == [(str(path), SHELL, PYTHON)]


def test_a_ring_that_ends_with_the_old_image_leaves_the_name_the_caller_used(sensor: Any, tmp_path: Path) -> None:
    """io_uring's end runs the task's work, and with it goes the script's file: the path is told as not whole."""
    path = script(tmp_path / "run", "/bin/sh")

    def act() -> None:
        parameters = (ctypes.c_char * 120)()
        assert LIBC.syscall(number("io_uring_setup"), 2, parameters) >= 0
        os.execv(path, ["run"])

    (event,) = [event for event in sensor.run(act) if event.operation is Operation.EXEC]
    assert (event.resource, event.resource2) == (f"...{path}", SHELL)
    assert event.access & Access.PARTIAL
