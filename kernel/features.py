# SPDX-License-Identifier: Apache-2.0
"""What this kernel and machine offer, found by trying: the rows of `hauberk probe` and the loader's own choices.

Never asks for a version: distributions carry features back and switch them off. Each test loads a program of a few
instructions or opens a file, takes milliseconds and leaves nothing behind. Neighbours: `bpf` (loads), `loader_child`.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from kernel import bpf, call_exits
from kernel.btf import VMLINUX, Btf
from kernel.headers import installed
from kernel.instructions import END, helper, instruction, wide
from schemas.errors import HauberkError, KernelError

_KPROBE, _CGROUP_SKB, _RAW_TRACEPOINT, _CGROUP_SOCK_ADDR, _TRACING, _LSM = 2, 8, 17, 18, 26, 29
_INGRESS, _TRACE_RAW_TP, _LSM_MAC, _INET4_CONNECT = 0, 23, 27, 10
_SEND_SIGNAL, _NS_PID_TGID, _TASK_BTF = 109, 120, 158
_NET_ADMIN, _SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 12, 21, 38, 39  # include/uapi/linux/capability.h
ROOT_CGROUP: Final = 1  # inode of the root of cgroup v2 (kernfs)
DISTRIBUTION_PACKAGES: Final = "/usr/lib/python3/dist-packages"


class Feature(msgspec.Struct, frozen=True):
    """One thing this machine offers or does not. `why`: the evidence, or the refusal with what it means for Hauberk."""

    name: str
    available: bool
    why: str


def survey() -> tuple[Feature, ...]:
    """Every feature, in the order they are shown. About 0.2 s; needs root for the loads, says so where it lacks it."""
    return tuple(test() for test in _TESTS)


def by_name(features: tuple[Feature, ...]) -> dict[str, Feature]:
    """The survey as a table."""
    return {feature.name: feature for feature in features}


def typed_loads() -> Feature:
    """Whether programs may read task_struct without a probe read per member."""
    code = helper(_TASK_BTF) + instruction(0x79, 0, 0) + END
    return _loads("typed loads", code, "task members are read directly", "every task member costs a probe read")


def _loads(name: str, code: bytes, good: str, bad: str, kind: int = _RAW_TRACEPOINT, attach_type: int = 0) -> Feature:
    try:
        os.close(bpf.program_load(kind, code, name="hauberk_test", attach_type=attach_type))
    except KernelError as error:
        if error.errno == errno.EPERM and kind == _CGROUP_SOCK_ADDR and _capable() and not has_capability(_NET_ADMIN):
            return Feature(name, False, "cannot be asked without CAP_NET_ADMIN: run as root or with it (EPERM)")
        return Feature(name, False, _refused(bad, error.errno, str(error)))
    return Feature(name, True, good)


MISSING_CAPABILITY: Final = (
    "cannot be asked without a capability that is missing here: run as root or with CAP_BPF and CAP_PERFMON"
)


def _refused(bad: str, number: int, text: str = "") -> str:
    """Why a test failed. EPERM is about who asks and says nothing of the kernel."""
    if number in (errno.EPERM, errno.EACCES) and not _capable():
        return f"{MISSING_CAPABILITY} ({errno.errorcode[number]})"
    return f"{bad} ({errno.errorcode.get(number, str(number)) if number else text})"


def _capable() -> bool:
    """Whether this process has CAP_BPF and CAP_PERFMON, or CAP_SYS_ADMIN that stands for both."""
    return has_capability(_SYS_ADMIN) or (has_capability(_CAP_BPF) and has_capability(_CAP_PERFMON))


def has_capability(capability: int) -> bool:
    """Whether this process has the capability of that number (CAP_*, include/uapi/linux/capability.h) in effect."""
    with open("/proc/self/status", encoding="ascii") as file:
        effective = next((int(line.split()[1], 16) for line in file if line.startswith("CapEff:")), 0)
    return bool(effective >> capability & 1)


def _btf() -> Feature:
    if not VMLINUX.exists():
        return Feature("BTF", False, f"`{VMLINUX}` is missing; kernel headers are needed instead")
    return Feature("BTF", True, f"{VMLINUX.stat().st_size >> 20} MB at `{VMLINUX}`")


def _headers() -> Feature:
    found = installed()
    return Feature(
        "kernel headers",
        found is not None,
        f"at `{found}`" if found else "none for this kernel; not needed where BTF is",
    )


def _raw_tracepoint() -> Feature:
    if why := locked_down():
        return Feature("raw tracepoints", False, f"nothing can be observed: {why}")
    return _loads("raw tracepoints", END, "every event is seen through these", "nothing can be observed")


def _attachable(kind: int, code: bytes, attach_type: int, target: int) -> int:
    """A program on the BTF id `target`; its descriptor, or minus the errno."""
    try:
        return bpf.program_load(kind, code, name="hauberk_test", attach_type=attach_type, target=target)
    except KernelError as error:
        return -error.errno


def _tp_btf() -> Feature:
    name, bad = "BTF tracepoints", "not used"
    try:
        target = Btf.of_kernel().type_id("btf_trace_sched_process_exec")
    except HauberkError:
        return Feature(name, False, f"{bad} (no BTF)")
    if target is None:
        return Feature(name, False, f"{bad} (`btf_trace_sched_process_exec` is not in BTF)")
    program = _attachable(_TRACING, END, _TRACE_RAW_TP, target)
    if program < 0:
        return Feature(name, False, _refused(bad, -program))
    os.close(program)
    return Feature(name, True, "load; not used, typed loads give the same")


def call_functions() -> Feature:
    """Whether system calls can be seen at the kernel's own functions, each as the tracepoint would see it."""
    found, why = call_exits.functions()
    if not found:
        return Feature("fexit", False, f"{why if _capable() else MISSING_CAPABILITY}; a tracepoint sees system calls")
    return Feature(
        "fexit",
        True,
        f"with `sensor.load.calls_by` calls are seen at {len(found)} functions of the kernel; the others run no program",
    )


_NO_LSM: Final = "no `bpf-lsm` enforcement"


def lsm_programs() -> Feature:
    """Whether the kernel asks LSM programs, by effect: one that denies sched_getscheduler(2) to this process is attached for a
    moment. A kernel without `bpf` in its list of modules attaches such programs too, and never asks them."""
    name = "LSM programs"
    try:
        btf = Btf.of_kernel()
    except HauberkError:
        return Feature(name, False, f"{_NO_LSM} (no BTF); boot a kernel with CONFIG_DEBUG_INFO_BTF")
    if why := locked_down():
        return Feature(name, False, f"{_NO_LSM}: {why}")
    target = btf.function_id("bpf_lsm_task_getscheduler")
    if target is None:
        return Feature(name, False, f"{_NO_LSM}: this kernel is built without CONFIG_BPF_LSM")
    if btf.enumerator("bpf_func_id", "BPF_FUNC_loop") is None:
        return Feature(name, False, f"{_NO_LSM}: this kernel has no bpf_loop (5.17 has)")
    # bpf_get_ns_current_pid_tgid(dev, ino, stack - 8, 8) fills struct bpf_pidns_info (pid, tgid) when the task is counted in this
    # process's pid namespace; deny when it is this process by the number it has there.
    here = os.stat("/proc/self/ns/pid")
    device = os.major(here.st_dev) << 20 | os.minor(here.st_dev)
    code = instruction(0xB7, 1, value=device) + wide(2, here.st_ino)
    code += (
        instruction(0xBF, 3, 10) + instruction(0x07, 3, value=-8) + instruction(0xB7, 4, value=8) + helper(_NS_PID_TGID)
    )
    code += (
        instruction(0x55, 0, offset=4)
        + instruction(0x61, 0, 10, -4)
        + instruction(0x55, 0, offset=2, value=os.getpid())
    )
    code += instruction(0xB7, 0, value=-1) + instruction(0x95) + END
    program = _attachable(_LSM, code, _LSM_MAC, target)
    if program < 0:
        return Feature(name, False, _refused(_NO_LSM, -program))
    try:
        link = bpf.call(bpf.RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, program, 0))
        if link < 0:
            return Feature(name, False, _refused(f"{_NO_LSM}: they load and do not attach", -link))
        try:
            os.sched_getscheduler(0)
        except PermissionError:
            return Feature(name, True, "`bpf-lsm` enforcement can be had: `enforcement.backends` must name it")
        finally:
            os.close(link)
    finally:
        os.close(program)
    return Feature(
        name, False, f"{_NO_LSM}: they attach and are not asked; boot with `bpf` in the list of modules (lsm=...,bpf)"
    )


def locked_down(path: str = "/sys/kernel/security/lockdown") -> str:
    """Why lockdown keeps programs from reading kernel memory, which all of Hauberk's do; "" when it does not (`[none]`, `[integrity]`, or no
    lockdown in this kernel). Linux refuses the helper itself (LOCKDOWN_BPF_READ_KERNEL, security/security.c)."""
    try:
        mode = Path(path).read_text()
    except OSError:
        return ""
    if "[confidentiality]" not in mode:
        return ""
    return "the kernel is locked down to `confidentiality`, where no program may read its memory; boot with `lockdown=integrity` or without it"


def _lsm_list() -> Feature:
    path = Path("/sys/kernel/security/lsm")
    try:
        names = path.read_text().strip()
    except OSError:
        return Feature("bpf in LSM list", False, "securityfs is not mounted at /sys/kernel/security")
    return Feature("bpf in LSM list", "bpf" in names.split(","), names)


def _kprobe() -> Feature:
    # PMU type and not only a load: kernels without kprobes verify such programs and cannot attach them.
    path = Path("/sys/bus/event_source/devices/kprobe/type")
    if not path.exists():
        return Feature("kprobes", False, "not compiled into this kernel; not needed")
    return _loads("kprobes", END, "load", "refused; not needed", _KPROBE)


def _ring_buffer() -> Feature:
    return _map(
        "ring buffer", 27, 0, 0, 4096, "events leave through two of them", "needed; kernels from 5.8 on have it"
    )


def _lru() -> Feature:
    return _map("LRU hash", 9, 8, 8, 16, "remembers what was announced", "needed")


def _lpm() -> Feature:
    return _map("LPM trie", 11, 8, 8, 16, "holds network rules", "no network rules by address", flags=1)


def _map(name: str, kind: int, key: int, value: int, entries: int, good: str, bad: str, flags: int = 0) -> Feature:
    try:
        os.close(bpf.map_create(kind, key, value, entries, name="hauberk_test", flags=flags))
    except KernelError as error:
        return Feature(name, False, _refused(bad, error.errno, str(error)))
    return Feature(name, True, good)


def _sock_addr() -> Feature:
    allow = instruction(0xB7, 0, value=1) + instruction(0x95)
    return _loads(
        "cgroup socket programs",
        allow,
        "`cgroup` enforcement stops connect, bind, send and socket",
        "no `cgroup` enforcement",
        _CGROUP_SOCK_ADDR,
        _INET4_CONNECT,
    )


def _dns_answers() -> Feature:
    # By effect: a program that lets everything pass is on the root for a moment.
    name, bad, where = "DNS answers", "addresses outside the cluster have no names", cgroup2_mount()
    if where is None or os.stat(where).st_ino != ROOT_CGROUP:
        return Feature(name, False, f"{bad} (the root of cgroup v2 is not mounted here)")
    with ExitStack() as stack:
        try:
            stack.callback(os.close, root := os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            allow = instruction(0xB7, 0, value=1) + instruction(0x95)
            program = bpf.program_load(_CGROUP_SKB, allow, name="hauberk_test", attach_type=_INGRESS)
            stack.callback(os.close, program)
            os.close(bpf.cgroup_link(program, root, _INGRESS))
        except KernelError as error:
            need = " without CAP_NET_ADMIN" if not has_capability(_NET_ADMIN) else ""
            return Feature(name, False, _refused(bad + need, error.errno, str(error)))
    return Feature(name, True, "heard at the root of cgroup v2: addresses have the names that workloads asked for")


def _signal() -> Feature:
    code = instruction(0xB7, 1, value=0) + helper(_SEND_SIGNAL) + END
    return _loads(
        "bpf_send_signal", code, "`signal` enforcement kills at exec or right after open", "no `signal` enforcement"
    )


def _loop() -> Feature:
    try:
        found = Btf.of_kernel().enumerator("bpf_func_id", "BPF_FUNC_loop") is not None
    except HauberkError:
        found = False
    return Feature(
        "bpf_loop",
        found,
        "offered; `bpf-lsm` enforcement walks paths in it" if found else f"absent; {_NO_LSM}",
    )


def _cap_capable() -> Feature:
    try:
        found = Btf.of_kernel().has_tracepoint("cap_capable")
    except HauberkError:
        found = False
    return Feature(
        "cap_capable tracepoint",
        found,
        "capability checks can be seen" if found else "absent; capability use is not seen without LSM programs",
    )


def _cgroup2() -> Feature:
    where = cgroup2_mount()
    return Feature(
        "cgroup v2",
        where is not None,
        f"mounted at `{where}`; containers are distinguished by cgroup id"
        if where
        else "not mounted; containers cannot be distinguished by cgroup id",
    )


def cgroup2_mount() -> str | None:
    """Where the cgroup v2 hierarchy is mounted; None if it is not."""
    return _mount_of("cgroup2")


def bpffs_mount() -> str | None:
    """Where a bpffs is mounted; None if none is."""
    return _mount_of("bpf")


def _mount_of(kind: str) -> str | None:
    with open("/proc/self/mounts", encoding="utf-8") as mounts:
        for line in mounts:
            _, where, found, *_ = line.split(" ")
            if found == kind:
                return where
    return None


def _bpffs() -> Feature:
    where = bpffs_mount()
    return Feature(
        "bpffs",
        where is not None,
        f"mounted at `{where}`" if where else "not mounted; the loader can mount one (`mount -t bpf bpf /sys/fs/bpf`)",
    )


def _bcc() -> Feature:
    # Looked at, not imported: importing costs 72 MB and PyPI's package of this name would run its own code.
    for directory in (*sys.path, DISTRIBUTION_PACKAGES):
        package = Path(directory or ".") / "bcc"
        if not (package / "__init__.py").exists():
            continue
        if not (package / "libbcc.py").exists():
            return Feature(
                "BCC",
                False,
                f"`{package}` is PyPI's unrelated lattice library; remove it and install the distribution's `python3-bpfcc`",
            )
        version = (
            re.search(r"['\"]([0-9][^'\"]*)['\"]", (package / "version.py").read_text())
            if (package / "version.py").exists()
            else None
        )
        return Feature("BCC", True, f"version {version.group(1) if version else 'unknown'} at `{package}`")
    return Feature("BCC", False, "not installed; the distribution's package is `python3-bpfcc` (Fedora: `python3-bcc`)")


_TESTS: Final[tuple[Callable[[], Feature], ...]] = (
    _btf, _headers, _bcc, _bpffs, _cgroup2, _raw_tracepoint, _tp_btf, typed_loads, _ring_buffer, _lru, _lpm, _loop,
    _signal, _sock_addr, _dns_answers, _lsm_list, lsm_programs, call_functions, _kprobe, _cap_capable,
)  # fmt: skip
