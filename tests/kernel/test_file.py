# SPDX-License-Identifier: Apache-2.0
"""File operations as the live kernel tells them: each call made for real, path, access and result compared."""

from __future__ import annotations

import ast
import ctypes
import errno
import fcntl
import os
import stat
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from schemas.kernel import Loss
from schemas.operations import Access, Operation
from schemas.syscalls import number

pytestmark = pytest.mark.kernel
Pick = Callable[..., Any]
libc = ctypes.CDLL(None, use_errno=True)


@pytest.mark.parametrize(
    ("flags", "access", "operation"),
    [
        (os.O_RDONLY, Access.READ, Operation.OPEN),
        (os.O_WRONLY, Access.WRITE, Operation.OPEN),
        (os.O_RDWR | os.O_APPEND, Access.READ | Access.WRITE | Access.APPEND, Operation.OPEN),
        (os.O_WRONLY | os.O_TRUNC, Access.WRITE | Access.TRUNCATE, Operation.OPEN),
        (os.O_WRONLY | os.O_CREAT, Access.WRITE | Access.CREATE, Operation.OPEN),
        (os.O_PATH, Access(0), Operation.OPEN),
        (os.O_PATH | os.O_DIRECTORY, Access.DIRECTORY, Operation.OPEN),
    ],
)
def test_open_modes(sensor: Any, pick: Pick, tmp_path: Path, flags: int, access: Access, operation: Operation) -> None:
    path = tmp_path / "file"
    path.mkdir() if flags & os.O_DIRECTORY else path.write_text("x")
    os.chown(path, 1234, 1234)
    event = pick(sensor.run(lambda: os.open(path, flags)), operation, resource=str(path))
    assert (event.access, event.result, event.owner) == (access, 0, 1234)
    assert event.flags & ~os.O_CLOEXEC == flags
    assert event.ret >= 0


def test_access_is_the_files_own_whatever_the_callers_memory_says_by_then(sensor: Any, tmp_path: Path) -> None:
    """Another thread writes to struct open_how all the time: what was opened for writing is told as that, and nothing else is."""
    path = tmp_path / "file"
    path.write_text("x")

    def act() -> None:
        syscall, how = ctypes.CDLL(None, use_errno=True).syscall, (ctypes.c_uint64 * 3)()
        done = threading.Event()

        def flip() -> None:
            while not done.is_set():
                for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_PATH) * 16:
                    how[0] = flags

        thread = threading.Thread(target=flip)
        thread.start()
        written = []
        for _ in range(3000):
            fd = syscall(number("openat2"), -100, os.fsencode(path), how, 24)
            written.append(fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_PATH))
            os.close(fd)
        done.set()
        thread.join()
        (tmp_path / "modes").write_text(repr(written))

    events = [event for event in sensor.run(act) if event.resource == str(path)]
    expected = ast.literal_eval((tmp_path / "modes").read_text())
    assert [event.flags & (os.O_ACCMODE | os.O_PATH) for event in events] == expected
    assert [bool(event.access & Access.WRITE) for event in events] == [bool(mode & os.O_ACCMODE) for mode in expected]
    assert len(set(expected)) > 1, "nothing was flipped"


def test_open_that_makes_the_file_is_a_create(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    path = tmp_path / "new"
    event = pick(sensor.run(lambda: os.open(path, os.O_CREAT | os.O_WRONLY, 0o600)), Operation.CREATE)
    assert (event.resource, event.access) == (str(path), Access.WRITE | Access.CREATE)


def test_symbolic_links_are_followed_by_an_open_that_succeeds(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    (tmp_path / "real").write_text("x")
    (tmp_path / "link").symlink_to("real")
    pick(sensor.run(lambda: os.open(tmp_path / "link", os.O_RDONLY)), Operation.OPEN, resource=f"{tmp_path}/real")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("missing", "{base}/missing"),
        ("./a//b/../missing", "{base}/a/missing"),
        ("../../../../../../../../../../missing", "/missing"),
        ("/a/./b/..//missing/", "/a/missing"),
        ("..", None),
        ("sub/..//", None),
        ("/..", None),
    ],
)
def test_a_failed_open_is_told_by_the_callers_string(
    sensor: Any, pick: Pick, tmp_path: Path, given: str, expected: str | None
) -> None:
    def act() -> None:
        os.chdir(tmp_path)
        with pytest.raises(OSError):
            os.open(given, os.O_WRONLY)

    event = pick(sensor.run(act), Operation.OPEN, flags=os.O_WRONLY | os.O_CLOEXEC)
    wanted = os.path.normpath(os.path.join(tmp_path, given)) if expected is None else expected.format(base=tmp_path)
    assert event.resource == wanted
    assert event.result in (-errno.ENOENT, -errno.EISDIR)
    assert event.owner == 0xFFFFFFFF


def test_open_relative_to_a_descriptor(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    def act() -> None:
        fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        with pytest.raises(FileNotFoundError):
            os.open("gone", os.O_RDONLY, dir_fd=fd)

    events = sensor.run(act)
    assert pick(events, Operation.OPEN, resource=str(tmp_path)).access == Access.READ | Access.DIRECTORY
    assert pick(events, Operation.OPEN, resource=f"{tmp_path}/gone").result == -errno.ENOENT


def test_openat2(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    def act() -> None:
        how = (ctypes.c_uint64 * 3)(os.O_RDWR, 0, 0)
        assert libc.syscall(number("openat2"), -100, os.fsencode(tmp_path / "file"), how, 24) >= 0

    event = pick(sensor.run(act), Operation.OPEN, resource=f"{tmp_path}/file")
    assert (event.flags, event.access) == (os.O_RDWR, Access.READ | Access.WRITE)


def test_calls_that_name_paths(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    def act() -> None:
        os.chdir(tmp_path)
        os.mkdir("dir", 0o750)
        os.rename("file", "dir/./moved")
        os.link("dir/moved", "hard")
        os.symlink("../some/where", "soft")
        os.chmod("hard", 0o640)
        os.chown("hard", 5, 6)
        os.truncate("hard", 77)
        os.mkfifo("fifo", 0o600)
        fd = os.open("hard", os.O_RDWR)
        os.fchmod(fd, 0o600)
        os.fchown(fd, 7, 8)
        os.ftruncate(fd, 3)
        os.unlink("hard")
        os.unlink("dir/moved")
        os.rmdir("dir")

    events = sensor.run(act)
    base = str(tmp_path)
    assert pick(events, Operation.MKDIR, resource=f"{base}/dir").args[0] == 0o750
    renamed = pick(events, Operation.RENAME)
    assert (renamed.resource, renamed.resource2) == (f"{base}/file", f"{base}/dir/moved")
    linked = pick(events, Operation.LINK)
    assert (linked.resource, linked.resource2) == (f"{base}/hard", f"{base}/dir/moved")
    soft = pick(events, Operation.SYMLINK)
    assert (soft.resource, soft.resource2) == (f"{base}/soft", "../some/where")
    assert [e.args[0] for e in events if e.operation is Operation.CHMOD and e.resource == f"{base}/hard"] == [
        0o640,
        0o600,
    ]
    assert [e.args for e in events if e.operation is Operation.CHOWN and e.resource == f"{base}/hard"] == [
        (5, 6),
        (7, 8),
    ]
    assert [e.args[0] for e in events if e.operation is Operation.TRUNCATE] == [77, 3]
    node = pick(events, Operation.MKNOD, resource=f"{base}/fifo")
    assert stat.S_ISFIFO(node.args[0])
    assert [e.resource for e in events if e.operation is Operation.UNLINK] == [f"{base}/hard", f"{base}/dir/moved"]
    assert pick(events, Operation.RMDIR).resource == f"{base}/dir"
    assert {e.result for e in events} == {0}


def test_failed_calls_carry_their_errno(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    def act() -> None:
        for call in (os.unlink, os.rmdir):
            with pytest.raises(FileNotFoundError):
                call(tmp_path / "gone")

    events = sensor.run(act)
    assert pick(events, Operation.UNLINK).result == -errno.ENOENT
    assert pick(events, Operation.RMDIR).result == -errno.ENOENT


def make_deep(base: Path, name: str, count: int) -> None:
    """`count` nested directories, made step by step: the whole path may be longer than a call accepts."""
    os.chdir(base)
    for _ in range(count):
        os.mkdir(name)
        os.chdir(name)


@pytest.mark.parametrize(
    ("name", "count"), [("d", 100), ("component-of-some-length", 80), ("n", 1900), ("x" * 250, 15)]
)
def test_deep_paths_are_whole(sensor: Any, pick: Pick, tmp_path: Path, name: str, count: int) -> None:
    before = sensor.lost(Loss.PATH_TRUNCATED)

    def act() -> None:
        make_deep(tmp_path, name, count)
        os.open("leaf", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(FileNotFoundError):
            os.open("gone", os.O_RDONLY)

    events = sensor.run(act)
    whole = f"{tmp_path}" + f"/{name}" * count
    made = [event for event in events if event.operation is Operation.CREATE]
    assert [event.resource for event in made] == [f"{whole}/leaf"]
    assert pick(events, Operation.OPEN, resource=f"{whole}/gone").result == -errno.ENOENT
    assert sensor.lost(Loss.PATH_TRUNCATED) == before
    subprocess.run(["rm", "-rf", str(tmp_path / name)], check=True)


def test_a_path_beyond_path_max_is_counted_and_marked(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    before = sensor.lost(Loss.PATH_TRUNCATED)

    def act() -> None:
        make_deep(tmp_path, "y" * 200, 22)
        os.open("leaf", os.O_CREAT | os.O_WRONLY)

    event = pick(sensor.run(act), Operation.CREATE)
    assert event.access & Access.PARTIAL
    whole = f"{tmp_path}" + f"/{'y' * 200}" * 22
    told, mark = event.resource[:-4], event.resource[-4:]
    assert (mark, whole.startswith(told + "/")) == ("/...", True)
    assert 4096 - 201 - 5 < len(told) <= 4096 - 5
    assert sensor.lost(Loss.PATH_TRUNCATED) > before
    subprocess.run(["rm", "-rf", str(tmp_path / ("y" * 200))], check=True)


def test_a_root_of_its_own_gives_a_file_no_other_path(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    jail = tmp_path / "jail"
    (jail / "etc").mkdir(parents=True)
    (jail / "etc" / "hosts").write_text("x")

    def act() -> None:
        os.chroot(jail)
        os.open("/etc/hosts", os.O_RDONLY)
        for gone in ("/etc/gone", "etc/../../../../etc/up", "/../../etc/above"):
            os.chdir("/etc")
            os.chdir("/")
            with pytest.raises(FileNotFoundError):
                os.open(gone, os.O_RDONLY)
        os.chdir("/etc")
        with pytest.raises(FileNotFoundError):
            os.open("../../../top", os.O_RDONLY)
        os.unlink("/etc/hosts")

    events = sensor.run(act)
    assert pick(events, Operation.OPEN, resource=f"{jail}/etc/hosts").ret >= 0
    for gone in ("etc/gone", "etc/up", "etc/above", "top"):
        assert pick(events, Operation.OPEN, resource=f"{jail}/{gone}").result == -errno.ENOENT
    assert pick(events, Operation.UNLINK, resource=f"{jail}/etc/hosts").result == 0


def test_paths_end_at_the_root_of_a_container(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    """As runtimes make one: a mount namespace whose root was exchanged."""
    root = tmp_path / "rootfs"
    for name in ("etc", "old"):
        (root / name).mkdir(parents=True)
    (root / "etc" / "hosts").write_text("x")

    def act() -> None:
        clone_newns, ms_bind, ms_rec, ms_private, mnt_detach = 0x20000, 4096, 16384, 1 << 18, 2
        assert libc.unshare(clone_newns) == 0
        assert libc.mount(b"none", b"/", None, ms_rec | ms_private, None) == 0
        assert libc.mount(os.fsencode(root), os.fsencode(root), None, ms_bind, None) == 0
        os.chdir(root)
        assert libc.syscall(number("pivot_root"), b".", b"old") == 0
        os.chdir("/")
        assert libc.umount2(b"/old", mnt_detach) == 0
        os.open("/etc/hosts", os.O_RDONLY)
        for gone in ("/etc/gone", "../etc/up"):
            with pytest.raises(FileNotFoundError):
                os.open(gone, os.O_RDONLY)

    events = sensor.run(act)
    assert pick(events, Operation.OPEN, resource="/etc/hosts").ret >= 0
    for gone in ("/etc/gone", "/etc/up"):
        assert pick(events, Operation.OPEN, resource=gone).result == -errno.ENOENT


def test_what_a_process_opens_of_itself_in_proc_is_marked(sensor: Any, pick: Pick) -> None:
    def act() -> None:
        for path in (
            "/proc/self/environ",
            f"/proc/{os.getppid()}/environ",
            "/proc/thread-self/comm",
            "/proc/version",
            "/proc/1/comm",
        ):
            os.open(path, os.O_RDONLY)

    own = {
        event.resource: bool(event.access & Access.OWN)
        for event in sensor.run(act)
        if event.resource.startswith("/proc/")
    }
    assert own == {
        f"/proc/{sensor.pid}/environ": True,
        f"/proc/{os.getpid()}/environ": False,
        f"/proc/{sensor.pid}/task/{sensor.pid}/comm": True,
        "/proc/version": False,
        "/proc/1/comm": False,
    }


def test_own_is_counted_in_the_pid_namespace_of_the_process(sensor: Any, pick: Pick) -> None:
    events = sensor.run(["/usr/bin/unshare", "-pf", "--mount-proc", "sh", "-c", "cat /proc/self/stat /proc/1/stat"])
    own = {event.resource: bool(event.access & Access.OWN) for event in events if event.resource.endswith("/stat")}
    assert own == {"/proc/2/stat": True, "/proc/1/stat": False}


def test_a_number_in_the_proc_of_another_pid_namespace_is_not_its_own(sensor: Any, pick: Pick) -> None:
    # The shell's child is 2 in its namespace; the /proc it sees is ours, where 2 is a thread of the kernel.
    events = sensor.run(["/usr/bin/unshare", "-pf", "sh", "-c", "cat /proc/2/stat; :"])
    assert Access.OWN not in pick(events, Operation.OPEN, resource="/proc/2/stat").access


def test_a_detached_clone_of_a_directory_hides_no_path(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # A mount that hangs nowhere has no place but the one in its filesystem: /tmp is one of its own in many machines.
    home = next(parent for parent in (tmp_path, *tmp_path.parents) if parent.is_mount())
    inside = f"/{tmp_path.relative_to(home)}"

    def act() -> None:
        open_tree, clone = 428, 1
        clone_fd = libc.syscall(open_tree, -100, os.fsencode(tmp_path), clone)
        assert clone_fd >= 0
        os.open("file", os.O_RDONLY, dir_fd=clone_fd)
        os.chdir(clone_fd)
        os.mkdir("below")
        os.mkdir("../beside")

    events = sensor.run(act)
    assert pick(events, Operation.OPEN, resource=f"{inside}/file").ret >= 0
    assert pick(events, Operation.MKDIR, resource=f"{inside}/below").result == 0
    assert pick(events, Operation.MKDIR, resource=f"{inside}/beside").result == 0


def test_mounts_are_crossed_in_a_namespace_of_its_own(sensor: Any, pick: Pick, tmp_path: Path) -> None:
    target = tmp_path / "mounted"
    target.mkdir()

    def act() -> None:
        clone_newns, ms_rec, ms_private = 0x20000, 16384, 1 << 18
        assert libc.unshare(clone_newns) == 0
        assert libc.mount(b"none", b"/", None, ms_rec | ms_private, None) == 0
        assert libc.mount(b"fresh", os.fsencode(target), b"tmpfs", 0, None) == 0
        (target / "sub").mkdir()
        os.open(target / "sub" / "inside", os.O_CREAT | os.O_RDWR)
        assert libc.umount2(os.fsencode(target), 0) != 0  # busy: the descriptor is open
        assert libc.umount2(os.fsencode(target), 2) == 0

    events = sensor.run(act)
    assert pick(events, Operation.CREATE).resource == f"{target}/sub/inside"
    mounted = pick(events, Operation.MOUNT, resource=str(target))
    assert (mounted.resource2, mounted.result) == ("fresh", 0)
    assert [e.result for e in events if e.operation is Operation.UMOUNT] == [-errno.EBUSY, 0]
    own = pick(events, Operation.CREATE).mnt_ns
    assert own != int(os.readlink("/proc/self/ns/mnt")[5:-1])


def test_repetition_defines_nothing_new(sensor: Any) -> None:
    def act() -> None:
        for _ in range(200):
            os.close(os.open("/etc/hosts", os.O_RDONLY))

    events = [event for event in sensor.run(act) if event.resource == "/etc/hosts"]
    assert len(events) == 200
    assert len({event.id for event in events}) == 1
