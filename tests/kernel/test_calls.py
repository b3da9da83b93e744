# SPDX-License-Identifier: Apache-2.0
"""Calls that are no file, socket or identity operation: told with their name, what they name and their result."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.loading import LoadedPrograms
from schemas.kernel import ScopeFlag
from schemas.operations import Backend, Operation
from schemas.syscalls import name, number
from schemas.watched import CALLS

pytestmark = pytest.mark.kernel
libc = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
KILLED = 9


def call(what: str, *arguments: Any) -> int:
    """The system call by name: its result, or -errno."""
    ctypes.set_errno(0)
    result = libc.syscall(number(what), *arguments)
    return -ctypes.get_errno() if result < 0 else result


def told(sensor: Any, act: Callable[[], object]) -> dict[str, Any]:
    """The CALL events of `act` by the name of the call."""
    return {name(MACHINE, event.syscall): event for event in sensor.run(act) if event.operation is Operation.CALL}


def test_namespaces_and_roots(sensor: Any, tmp_path: Path) -> None:
    def act() -> None:
        assert call("unshare", 0x04000000) == 0
        assert call("setns", os.open("/proc/self/ns/uts", os.O_RDONLY), 0x04000000) == 0
        assert call("pivot_root", os.fsencode(tmp_path), os.fsencode(tmp_path)) < 0
        assert call("chroot", os.fsencode(tmp_path)) == 0

    seen = told(sensor, act)
    assert seen["unshare"].flags == 0x04000000
    assert seen["setns"].flags == 0x04000000
    assert seen["pivot_root"].resource == os.path.realpath(tmp_path)
    assert seen["pivot_root"].result in (-errno.EINVAL, -errno.EBUSY)
    assert seen["chroot"].resource == os.path.realpath(tmp_path)


def test_names_that_are_texts(sensor: Any) -> None:
    def act() -> None:
        assert call("memfd_create", b"payload", 1) >= 0
        assert call("fsopen", b"tmpfs", 0) >= 0
        call("delete_module", b"no_such_module_of_hauberk", 0)

    events = sensor.run(act)
    seen = {
        name(MACHINE, event.syscall): event for event in events if event.operation in (Operation.CALL, Operation.MODULE)
    }
    assert (seen["memfd_create"].resource, seen["memfd_create"].flags) == ("payload", 1)
    assert seen["fsopen"].resource == "tmpfs"
    assert seen["delete_module"].resource == "no_such_module_of_hauberk"


def test_attributes(sensor: Any, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")

    def act() -> None:
        call("setxattr", os.fsencode(path), b"user.hauberk", b"1", 1, 0)

    seen = told(sensor, act)["setxattr"]
    assert (seen.resource, seen.resource2) == (str(path.resolve()), "user.hauberk")


# The arguments of every other row: a call that fails, or asks without changing anything.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "process_vm_readv": (4242, None, 0, None, 0, 0), "process_vm_writev": (4242, None, 0, None, 0, 0),
    "io_uring_setup": (8, ctypes.create_string_buffer(120)), "keyctl": (99999,), "userfaultfd": (1 << 20,),
    "perf_event_open": (None, 4242, 0, -1, 7), "personality": (0xFFFFFFFF,), "swapon": (b"/no/such", 3), "swapoff": (b"/no/such",),
    "reboot": (0, 0, 4711, None), "quotactl": (4711, b"/no/such", 0, None), "acct": (b"/no/such",), "fsmount": (-1, 1, 2),
    "fspick": (-1, b"/no/such", 1), "open_tree": (-100, b"/no/such", 1), "mount_setattr": (-100, b"/no/such", 1, None, 0),
    "seccomp": (4711, 0, None), "landlock_create_ruleset": (None, 0, 1), "landlock_restrict_self": (-1, 0),
    "syslog": (4711, None, 0), "kcmp": (4242, 4243, 0, 0, 0), "move_pages": (-1, 0, None, None, None, 0), "pidfd_open": (-1, 0),
    "kill": (2**30, 0), "memfd_secret": (4711,), "kexec_load": (0, 0, None, 4711), "sethostname": (None, 4096),
    "settimeofday": (ctypes.create_string_buffer(b"\xff" * 16), None), "clock_settime": (4711, None), "fanotify_init": (4711, 0),
    "add_key": (b"none", b"hauberk", None, 0, 0), "request_key": (b"none", b"hauberk", None, 0), "modify_ldt": (4711, None, 0),
    "name_to_handle_at": (-100, b"/no/such", None, None, 0), "removexattr": (b"/no/such", b"user.x"), "fsetxattr": (-1, b"user.x", None, 0, 0),
}  # fmt: skip
HAVE = sorted(one for one in HARMLESS if number(one) is not None)


def test_every_row_tells_its_call(sensor: Any) -> None:
    def act() -> None:
        for one in HAVE:
            call(one, *HARMLESS[one])

    seen = told(sensor, act)
    assert not set(HAVE) - set(seen)
    assert seen["process_vm_writev"].args[0] == 4242
    assert (seen["kcmp"].args, seen["perf_event_open"].args[0], seen["perf_event_open"].flags) == (
        (4242, 4243),
        4242,
        7,
    )
    assert (seen["reboot"].args[0], seen["seccomp"].args[0], seen["keyctl"].args[0]) == (4711, 4711, 99999)
    assert (seen["swapon"].resource, seen["swapon"].flags, seen["quotactl"].resource) == ("/no/such", 3, "/no/such")
    assert (seen["add_key"].resource, seen["add_key"].resource2) == ("none", "hauberk")
    assert all(CALLS[one].operation is Operation.CALL for one in HAVE)


def test_a_ring_is_refused_where_asked(sensor: Any) -> None:
    def act() -> None:
        call("io_uring_setup", 8, ctypes.create_string_buffer(120))

    flags = ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL
    sensor.scope(flags=flags)
    allowed = told(sensor, act)["io_uring_setup"]
    if allowed.result < 0:
        pytest.skip(f"io_uring is not there: {os.strerror(-allowed.result)}")
    assert allowed.enforcer is Backend.OBSERVER
    sensor.scope(flags=flags | ScopeFlag.STOP_IO_URING, visibility=0)
    (stopped,) = (event for event in sensor.run(act, status=KILLED) if event.operation is Operation.CALL)
    assert stopped.enforcer is Backend.SIGNAL


def test_calls_that_do_not_reach_their_function(sensor: Any, loaded: LoadedPrograms) -> None:
    """What a filter refuses before it begins, and what this kernel does not have: the tracepoint tells both, functions neither."""
    refused, unknown = number("acct"), number("uselib")
    # struct sock_filter: load the number, is it acct?, SECCOMP_RET_ERRNO | EPERM, SECCOMP_RET_ALLOW
    rows = ((0x20, 0, 0, 0), (0x15, 0, 1, refused), (6, 0, 0, 0x00050000 | errno.EPERM), (6, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in rows))
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", len(rows), ctypes.addressof(code)))

    def act() -> None:
        assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
        assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
        assert call("acct", b"/no/such") == -errno.EPERM
        assert call("swapoff", b"/no/such") == -errno.ENOENT
        call("uselib", b"/no/such")

    events = [event for event in sensor.run(act) if event.operation is Operation.CALL]
    told = {event.syscall: event.result for event in events}
    assert told[number("swapoff")] == -errno.ENOENT
    assert told.get(refused) == (None if loaded.functions else -errno.EPERM)
    if told.get(unknown) not in (None, -errno.ENOSYS):
        pytest.skip("this kernel has uselib(2)")
    assert told.get(unknown) == (None if loaded.functions else -errno.ENOSYS)
