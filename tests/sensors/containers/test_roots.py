# SPDX-License-Identifier: Apache-2.0
"""Paths inside another root: the kernel's way and the walk agree, on any tree of links, and neither ever leaves the root."""

from __future__ import annotations

import gc
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sensors.containers.roots import Root


@pytest.fixture
def jail(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A Debian-like tree and a process that lives in it, as in a container: a mount namespace whose root was exchanged."""
    if os.geteuid() != 0:
        pytest.skip("needs root: changes the root directory of a process")
    for name in ("usr/bin", "usr/sbin", "etc/alternatives", "proc", "tmp", "old"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "sbin").symlink_to("/usr/sbin")
    for name in ("dash", "vim.basic"):
        (tmp_path / "usr/bin" / name).touch()
    (tmp_path / "usr/bin/sh").symlink_to("dash")
    (tmp_path / "usr/bin/vi").symlink_to("/etc/alternatives/vi")
    (tmp_path / "etc/alternatives/vi").symlink_to("../../usr/bin/vim.basic")
    (tmp_path / "etc/out").symlink_to("../../../../../../etc/passwd")
    (tmp_path / "etc/mtab").symlink_to("../proc/self/mounts")
    (tmp_path / "etc/round").symlink_to("round")
    (tmp_path / "etc/dangling").symlink_to("/run/nothing")
    os.mkfifo(tmp_path / "tmp/fifo")
    (tmp_path / "tmp/to-fifo").symlink_to("fifo")
    child = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", 'mount --bind "$0" "$0" && cd "$0" && pivot_root . old && echo && read line', tmp_path],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdout
    assert child.stdin
    child.stdout.readline()
    yield tmp_path, child.pid
    child.communicate(timeout=90)


def test_links_are_resolved_inside_the_root(jail: tuple[Path, int]) -> None:
    _, pid = jail
    expected = {
        "/bin/sh": "/usr/bin/dash",
        "/bin/vi": "/usr/bin/vim.basic",
        "/usr/bin/dash": "/usr/bin/dash",
        "/bin/": "/usr/bin/",
        "/sbin/": "/usr/sbin/",
        "/sbin/new/deep/": "/usr/sbin/new/deep/",
        "/bin/sh/": "/usr/bin/sh/",
        "/bin/absent": "/bin/absent",
        "/etc/out": "/etc/out",
        "/etc/mtab": "/etc/mtab",
        "/etc/round": "/etc/round",
        "/etc/dangling": "/etc/dangling",
        "/tmp/to-fifo": "/tmp/fifo",
    }
    with Root(pid) as root:
        assert root.other()
        assert {path: root.real(path) for path in expected} == expected


def test_a_root_set_by_chroot_is_left_upwards(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: changes the root directory of a process")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "real").touch()
    code = "import os, sys; os.chroot(sys.argv[1]); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(["python3", "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert child.stdout
        child.stdout.readline()
        with Root(child.pid) as root:
            assert not root.other()
            assert root.real(f"{tmp_path}/link") == f"{tmp_path}/real"
    finally:
        child.communicate()


def test_a_root_that_was_moved_out_of_its_mount_is_the_best_there_is(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: mounts, and changes the root directory of a process")
    (tmp_path / "whole/part/deep").mkdir(parents=True)
    (tmp_path / "whole/part/deep/link").symlink_to("real")
    (tmp_path / "whole/part/deep/real").touch()
    (tmp_path / "shown").mkdir()
    code = "import os, sys; os.chroot('shown/deep'); print(flush=True); sys.stdin.read()"
    child = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", 'mount --bind whole/part shown && exec python3 -c "$0"', code],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert child.stdout
        child.stdout.readline()
        (tmp_path / "whole/part/deep").rename(tmp_path / "whole/deep")
        before = os.listdir("/proc/self/fd")
        with Root(child.pid) as root:
            assert root.walk("/link") == "/real"
        assert set(os.listdir("/proc/self/fd")) <= set(before)
    finally:
        child.communicate()


def test_our_own_root_is_no_other() -> None:
    with Root(os.getpid()) as root:
        assert not root.other()
        assert root.real("/") == "/"


def test_a_process_that_is_gone_is_an_error() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    with pytest.raises(FileNotFoundError):
        Root(child.pid)


def test_no_descriptor_is_left(jail: tuple[Path, int]) -> None:
    gc.collect()  # what earlier tests left to it must not be closed in between
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with Root(jail[1]) as root:
            for path in ("/bin/sh", "/etc/round", "/nothing", "/etc/out", "/usr/bin/dash/x"):
                root.find(path)
                root.walk(path)
    assert set(os.listdir("/proc/self/fd")) <= set(before)


PART = st.sampled_from(["a", "b", "c", "d"])
TARGET = st.lists(st.one_of(PART, st.just(".."), st.just(".")), min_size=1, max_size=4).map("/".join)
TREE = st.lists(
    st.tuples(st.lists(PART, min_size=1, max_size=3).map("/".join), st.one_of(TARGET, TARGET.map(lambda t: "/" + t), st.none())),
    max_size=8,
)  # fmt: skip


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TREE, st.lists(TARGET, min_size=1, max_size=5))
def test_the_kernel_and_the_walk_agree_and_stay_inside(tree: list[tuple[str, str | None]], asked: list[str]) -> None:
    with tempfile.TemporaryDirectory() as home:
        for place, target in tree:
            path = Path(home, place)
            try:
                if target is None:
                    path.mkdir(parents=True, exist_ok=True)
                else:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.symlink_to(target)
            except OSError:
                continue  # the place is taken, or below a link that leads nowhere
        with _rooted(home) as root:
            for path_asked in asked:
                for directory in (False, True):
                    walked = root.walk("/" + path_asked, directory=directory)
                    assert root.find("/" + path_asked, directory=directory) == walked
                    if walked is not None:
                        # Real: no component of it is a link any more, and it is there.
                        whole = home + walked
                        assert os.path.lexists(whole)
                        assert os.path.realpath(whole) == os.path.realpath(home) + walked.rstrip("/")


def _rooted(home: str) -> Root:
    """A root at a directory, without a process."""
    root = Root(os.getpid())
    os.close(root._fd)
    root._fd = os.open(home, os.O_PATH | os.O_CLOEXEC)
    root._prefix = os.path.realpath(home)
    return root
