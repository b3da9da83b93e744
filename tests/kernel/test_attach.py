# SPDX-License-Identifier: Apache-2.0
"""Guards attached to a cgroup of the test's own, with links and as a kernel without cgroup links does it; all come off again."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import attach, bpf
from kernel.features import cgroup2_mount
from kernel.loading import unload
from schemas.errors import KernelError

pytestmark = pytest.mark.kernel
CONNECT4 = 10
DENY = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


@pytest.fixture(params=["link", "program"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """`program`: LINK_CREATE and LINK_DETACH answer as on a kernel that has neither."""
    if request.param == "program":
        real = bpf.call

        def old(command: int, attributes: bytes) -> int:
            return -errno.EINVAL if command in (bpf.LINK_CREATE, bpf.LINK_DETACH) else real(command, attributes)

        monkeypatch.setattr(bpf, "call", old)
    return str(request.param)


@pytest.fixture
def cgroup(bpffs: str, remove: Callable[[Path], None]) -> Iterator[Path]:
    made = Path(cgroup2_mount() or "", f"hauberk-test-attach-{os.getpid()}-{time.monotonic_ns()}")
    made.mkdir()
    yield made
    remove(made)


@pytest.fixture
def pins(bpffs: str) -> Iterator[str]:
    """A pin directory with one program that denies every connect."""
    directory = Path(tempfile.mkdtemp(dir=bpffs))
    for room in ("links", "programs"):
        (directory / room).mkdir()
    program = bpf.program_load(18, DENY, name="deny", attach_type=CONNECT4)
    bpf.pin(program, str(directory / "programs" / "guard_connect4"))
    os.close(program)
    try:
        yield str(directory)
    finally:
        unload(str(directory))


def held(pins: str, cgroup: Path) -> None:
    attach.hold(pins, "guard_connect4", CONNECT4, str(cgroup), cgroup.stat().st_ino)


def attached(cgroup: Path) -> int:
    """How many programs the kernel says are on the cgroup's connect4 (BPF_PROG_QUERY)."""
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        answer = bytearray(struct.pack("=IIIIQII", directory, CONNECT4, 0, 0, 0, 0, 0))
        buffer = (ctypes.c_char * len(answer)).from_buffer(answer)
        assert bpf.call(16, buffer) == 0
        return int(struct.unpack_from("=I", answer, 24)[0])
    finally:
        os.close(directory)


def connects(cgroup: Path) -> str:
    """What a connect from inside the cgroup answers."""
    code = (
        "import errno,os,socket,sys\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "print(errno.errorcode[socket.socket().connect_ex(('127.0.0.1', 1))])"
    )
    done = subprocess.run([sys.executable, "-S", "-c", code, str(cgroup)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_release_takes_the_guard_off(how: str, pins: str, cgroup: Path) -> None:
    number = cgroup.stat().st_ino
    assert connects(cgroup) == "ECONNREFUSED"
    held(pins, cgroup)
    held(pins, cgroup)
    assert (attached(cgroup), connects(cgroup), attach.held(pins)) == (1, "EPERM", {number})
    attach.release(pins, number)
    assert (attached(cgroup), connects(cgroup), attach.held(pins)) == (0, "ECONNREFUSED", set())
    attach.release(pins, number)
    assert os.listdir(f"{pins}/links") == []


def test_unload_takes_every_guard_off(how: str, pins: str, cgroup: Path) -> None:
    held(pins, cgroup)
    assert attached(cgroup) == 1
    unload(pins)
    assert attached(cgroup) == 0


def test_a_cgroup_that_is_gone_took_its_guards_along(how: str, pins: str, cgroup: Path) -> None:
    held(pins, cgroup)
    number = cgroup.stat().st_ino
    cgroup.rmdir()
    attach.release(pins, number)
    assert attach.held(pins) == set()


def test_a_guard_that_is_not_pinned_is_told(how: str, pins: str, cgroup: Path) -> None:
    with pytest.raises(KernelError, match="guard_bind4"):
        attach.hold(pins, "guard_bind4", 8, str(cgroup), cgroup.stat().st_ino)
    assert os.listdir(f"{pins}/links") == []


def test_a_cgroup_below_another_is_found_by_its_id(how: str, pins: str, cgroup: Path) -> None:
    inner = cgroup / "inner"
    inner.mkdir()
    held(pins, inner)
    assert attached(inner) == 1
    attach.release(pins, inner.stat().st_ino)
    assert attached(inner) == 0
