# SPDX-License-Identifier: Apache-2.0
"""bpf(2) by ctypes: what the resident agent needs once the loader's child is gone. BCC would cost it 72 MB.

Calls are thin: one function per command, bytes in, bytes out, errors as `KernelError` that name the operation, the object,
the errno and what to do. Must never import BCC, asyncio or msgspec, and never load programs for anyone but the feature
tests. Neighbours: `maps` (typed view of a map), `ring` (its memory), `loader` (who pins what is opened here).
Numbers are from include/uapi/linux/bpf.h; attributes a kernel does not know must stay zero, or it answers E2BIG.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from typing import Final, NamedTuple

from schemas.errors import KernelError, PermissionMissing

_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

MAP_CREATE: Final = 0
MAP_LOOKUP: Final = 1
MAP_UPDATE: Final = 2
MAP_DELETE: Final = 3
MAP_NEXT_KEY: Final = 4
PROG_LOAD: Final = 5
OBJ_PIN: Final = 6
OBJ_GET: Final = 7
PROG_ATTACH: Final = 8
PROG_DETACH: Final = 9
MAP_GET_FD_BY_ID: Final = 14
OBJ_GET_INFO: Final = 15
RAW_TRACEPOINT_OPEN: Final = 17
BTF_LOAD: Final = 18
MAP_LOOKUP_BATCH: Final = 24
MAP_UPDATE_BATCH: Final = 26
MAP_DELETE_BATCH: Final = 27
LINK_CREATE: Final = 28
ENABLE_STATS: Final = 32
LINK_DETACH: Final = 34

COMMANDS: Final = {
    value: name
    for name, value in dict(globals()).items()
    if name.startswith(("MAP_", "PROG_", "OBJ_", "LINK_", "RAW_", "ENABLE_", "BTF_")) and isinstance(value, int)
}

ANY: Final = 0
NOEXIST: Final = 1
EXIST: Final = 2

_HINTS: Final = {
    errno.EPERM: "run as root or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN, and check that no container profile hides bpf(2)",
    errno.EACCES: "run as root or with CAP_BPF and CAP_PERFMON",
    errno.ENOENT: "it is not there: load the sensor first, or check the pin directory",
    errno.ENOSYS: "this kernel has no bpf(2); CONFIG_BPF_SYSCALL is needed",
    errno.EINVAL: "this kernel does not offer the operation for this object; `hauberk probe` says what it offers",
    errno.E2BIG: "the map is full or this kernel is older than the call; raise the map's size",
    errno.ENOSPC: "the map is full; raise its size in the settings",
    errno.ENOMEM: "the memory cgroup is at its limit; raise it",
    errno.EEXIST: "it exists already: another agent may own this pin directory",
}


class MapInfo(NamedTuple):
    """`struct bpf_map_info`, the part that is older than any kernel supported. Sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


PERCPU_TYPES: Final = frozenset({5, 6, 10, 21})
"""BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH, PERCPU_CGROUP_STORAGE: a value per possible CPU."""


def refused(operation: str, target: str, code: int) -> KernelError:
    """The error for errno `code` of bpf(2) `operation` on `target`, with what to do about it."""
    name = errno.errorcode.get(code, str(code))
    hint = _HINTS.get(code, os.strerror(code))
    if operation == "PROG_LOAD" and code not in (errno.EPERM, errno.ENOSYS, errno.ENOMEM):
        hint = "the kernel's verifier refused the program"
    # The verifier answers EACCES to a program it does not like; nobody's privilege is missing then.
    missing = code == errno.EPERM or (code == errno.EACCES and operation != "PROG_LOAD")
    kind = PermissionMissing if missing else KernelError
    return kind(f"bpf `{operation}` on `{target}`: {name}; {hint}", operation=operation, target=target, errno=code)


def call(command: int, attributes: bytes | bytearray | ctypes.Array[ctypes.c_char]) -> int:
    """bpf(command, attributes). The result when >= 0, else -errno: callers decide which errno is an answer."""
    buffer = attributes if isinstance(attributes, ctypes.Array) else ctypes.create_string_buffer(bytes(attributes))
    size = len(attributes)
    result = int(_syscall(_NUMBER, command, ctypes.byref(buffer), ctypes.c_uint(size)))
    return result if result >= 0 else -ctypes.get_errno()


def check(command: int, attributes: bytes, target: str) -> int:
    """`call`, with every errno raised as KernelError."""
    result = call(command, attributes)
    if result < 0:
        raise refused(COMMANDS.get(command, str(command)), target, -result)
    return result


def _number() -> int:
    machine = platform.machine()
    if machine not in _SYSCALL:
        raise KernelError(
            f"expected one of {', '.join(_SYSCALL)} as machine, got `{machine}`; its bpf(2) number is not known here",
            operation="bpf",
            target=machine,
        )
    return _SYSCALL[machine]


_NUMBER: Final = _number()


def pinned(path: str) -> int:
    """A new fd (close-on-exec) of the object pinned at `path`. Raises KernelError, ENOENT when nothing is pinned there."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return check(OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), path)


def pin(fd: int, path: str) -> None:
    """Pin the object behind `fd` at `path` in a bpffs; it outlives this process until the file is removed."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    check(OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), path)


def map_create(kind: int, key_size: int, value_size: int, max_entries: int, *, name: str = "", flags: int = 0) -> int:
    """fd of a new map. `kind`: BPF_MAP_TYPE_*; ring buffers take sizes 0 and a power of two of pages as `max_entries`."""
    label = name.encode()[:15].ljust(16, b"\0")
    attributes = struct.pack("=IIIIIII16s", kind, key_size, value_size, max_entries, flags, 0, 0, label)
    return check(MAP_CREATE, attributes, name or f"map type {kind}")


def map_put(fd: int, key: bytes, value: bytes, target: str) -> None:
    """One element of the map behind `fd`."""
    k, v = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value, len(value))
    check(MAP_UPDATE, struct.pack("=IIQQQ", fd, 0, ctypes.addressof(k), ctypes.addressof(v), ANY), target)


def map_info(fd: int, target: str = "map") -> MapInfo:
    """What the kernel says about the map behind `fd`."""
    data = object_info(fd, 80, target)
    kind, ident, key_size, value_size, max_entries, flags, name = struct.unpack_from("=IIIIII16s", data)
    return MapInfo(kind, ident, key_size, value_size, max_entries, flags, name.split(b"\0")[0].decode())


def enable_stats() -> int:
    """fd; while it is open the kernel counts runs and run time of all programs, which costs each run two clock readings."""
    return check(ENABLE_STATS, struct.pack("=I", 0), "BPF_STATS_RUN_TIME")


def program_time(fd: int, target: str = "program") -> tuple[int, int]:
    """(ns, runs) of the program behind `fd`, tail calls included, while somebody held `enable_stats`."""
    # struct bpf_prog_info, since 5.1: run_time_ns and run_cnt at 192.
    nanoseconds, runs = struct.unpack_from("=QQ", object_info(fd, 208, target), 192)
    return nanoseconds, runs


def program_verified(fd: int, target: str = "program") -> int:
    """Instructions that the verifier went through for the program behind `fd`: what a load of it costs. 0 before Linux 5.16."""
    # struct bpf_prog_info: verified_insns at 216.
    return int(struct.unpack_from("=I", object_info(fd, 224, target), 216)[0])


def object_info(fd: int, size: int, target: str) -> bytes:
    """`size` bytes of what the kernel says of the object behind `fd` (struct bpf_prog_info, bpf_map_info, bpf_link_info)."""
    buffer = ctypes.create_string_buffer(size)
    check(OBJ_GET_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(buffer)), target)
    return buffer.raw


def link_detach(link: int, target: str = "link") -> None:
    """Detach now, whoever else holds the link. ENOLINK (detached already, the cgroup is gone) is no error.

    Nor is EINVAL: Linux 5.8 has links but not this call, and detaches when the last fd and pin of the link goes.
    """
    result = call(LINK_DETACH, struct.pack("=I", link))
    if result < 0 and -result not in (errno.ENOLINK, errno.EINVAL):
        raise refused("LINK_DETACH", target, -result)


def cgroup_attach(program: int, cgroup: int, attach_type: int, target: str = "cgroup") -> int:
    """Attach to a cgroup directory fd: a link's fd, or -1 where the kernel (before 5.7) knows only PROG_ATTACH.

    After -1 the attachment lasts as long as the cgroup; undo it with `cgroup_detach`.
    """
    result = call(LINK_CREATE, struct.pack("=IIII", program, cgroup, attach_type, 0))
    if result >= 0:
        return result
    if -result != errno.EINVAL:
        raise refused("LINK_CREATE", target, -result)
    allow_multi = 2
    check(PROG_ATTACH, struct.pack("=IIIII", cgroup, program, attach_type, allow_multi, 0), target)
    return -1


def cgroup_link(program: int, cgroup: int, attach_type: int, target: str = "cgroup") -> int:
    """fd of a link of `program` to a cgroup directory fd, beside whatever else is attached there. KernelError on a kernel without (before 5.7)."""
    return check(LINK_CREATE, struct.pack("=IIII", program, cgroup, attach_type, 0), target)


def cgroup_detach(program: int, cgroup: int, attach_type: int, target: str = "cgroup") -> None:
    """Undo a PROG_ATTACH."""
    check(PROG_DETACH, struct.pack("=IIIII", cgroup, program, attach_type, 0, 0), target)


def raw_tracepoint_open(program: int, name: str) -> int:
    """fd of a link of `program` to the raw tracepoint `name`; closing it detaches unless it is pinned."""
    label = ctypes.create_string_buffer(name.encode())
    return check(RAW_TRACEPOINT_OPEN, struct.pack("=QII", ctypes.addressof(label), program, 0), name)


def target_attach(program: int, name: str) -> int:
    """fd of a link of `program` to the function that it was loaded for; `name` is that of the error. Closing it detaches unless pinned."""
    return check(RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, program, 0), name)


def btf_load(blob: bytes) -> int:
    """fd of a program's own BTF."""
    data = ctypes.create_string_buffer(blob, len(blob))
    return check(BTF_LOAD, struct.pack("=QQIIII", ctypes.addressof(data), 0, len(blob), 0, 0, 0), "BTF")


def program_load(
    kind: int, instructions: bytes, *, name: str = "", attach_type: int = 0, flags: int = 0, target: int = 0
) -> int:
    """fd of the program `instructions` of `kind` (BPF_PROG_TYPE_*). `target`: BTF id of the kernel function that it will be attached
    to, for kinds that want one. KernelError carries the verifier's last words."""
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(b"GPL")
    label = name.encode()[:15].ljust(16, b"\0")

    def attributes(log: int, log_size: int) -> bytes:
        return struct.pack(
            "=IIQQIIQII16sII",
            kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_text),
            1 if log else 0, log_size, log, 0, flags, label, 0, attach_type,
        ) + (struct.pack("=IIQIIQII", 0, 0, 0, 0, 0, 0, 0, target) if target else b"")  # fmt: skip

    result = call(PROG_LOAD, attributes(0, 0))
    if result >= 0:
        return result
    log = ctypes.create_string_buffer(1 << 16)
    call(PROG_LOAD, attributes(ctypes.addressof(log), len(log)))
    error = refused("PROG_LOAD", name or f"program type {kind}", -result)
    last = log.value.decode(errors="replace").strip().splitlines()[-2:]
    raise type(error)(f"{error}; verifier: {' / '.join(last)}", operation="PROG_LOAD", target=name, errno=-result)
