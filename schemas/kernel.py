# SPDX-License-Identifier: Apache-2.0
"""Records and maps shared with the kernel programs: the one place their bytes are described.

The C header `records.h` is printed from here (`c_header()`), and a test compares offsets with the compiled C. All integers
are host-endian, records are 8-byte aligned, and a layout grows only at its end.

Two rings leave the kernel. The *occurrences* ring holds records of one size, so a chunk of it is a table with a stride of
`STRIDE` bytes (ring header included) and is never decoded on the node. The *definitions* ring holds what the ids in
occurrences mean; each is sent once, and again if the kernel forgot it:

    STRING     id = SipHash of the bytes         -> a path or an argument list
    BEHAVIOUR  id = keyed hash of the behaviour  -> `BEHAVIOUR`, refers to strings
    PROCESS    id = process id of one exec image -> `PROCESS`, refers to strings
    CGROUP     id = cgroup id                    -> path at creation; empty when it was removed (CGROUP_GONE)
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import Final

import msgspec


class Field(msgspec.Struct, frozen=True):
    """One member: name, C type (`u8 u16 u32 u64 s32`), how many, what it means."""

    name: str
    ctype: str
    meaning: str
    count: int = 1


_SIZES: Final = {"u8": (1, "B"), "u16": (2, "H"), "u32": (4, "I"), "s32": (4, "i"), "u64": (8, "Q"), "s64": (8, "q")}


class Layout:
    """A fixed record: fields in order, naturally aligned without holes (checked here, so `struct` and C agree)."""

    def __init__(self, name: str, *fields: Field) -> None:
        self.name = name
        self.fields = fields
        self.offsets: dict[str, int] = {}
        offset = 0
        form = "="
        for field in fields:
            size, code = _SIZES[field.ctype]
            if offset % size:
                raise ValueError(f"layout `{name}`: `{field.name}` at {offset} is not aligned to {size}")
            self.offsets[field.name] = offset
            form += f"{field.count}s" if field.ctype == "u8" and field.count > 1 else code * field.count
            offset += size * field.count
        if offset % 8:
            raise ValueError(f"layout `{name}`: size {offset} is not a multiple of 8")
        self.struct = struct.Struct(form)
        self.size = offset

    def c_struct(self) -> str:
        """The C declaration."""
        lines = [f"struct {self.name} {{"]
        for field in self.fields:
            array = f"[{field.count}]" if field.count > 1 else ""
            lines.append(f"    {field.ctype} {field.name}{array}; /* {field.meaning} */")
        return "\n".join([*lines, "};"])


OCCURRENCE: Final = Layout(
    "occurrence",
    Field("id", "u64", "behaviour id"),
    Field("time", "u64", "bpf_ktime_get_boot_ns() when the operation ended"),
    Field("sequence", "u64", "cpu << 48 | count on that cpu; counts up even when the ring is full"),
    Field("process", "u64", "id of the exec image that acted, 0 if unknown"),
    Field("pid", "u32", "host tgid"),
    Field("ppid", "u32", "host tgid of the parent"),
    Field("ns_pid", "u32", "tgid in the innermost pid namespace"),
    Field("ns_ppid", "u32", "the parent's, in its own innermost namespace"),
    Field("ret", "s32", "return value: fd, -errno, exit code"),
    Field("aux", "u32", "fd or dirfd of the call; remote port for accept; local port for connect"),
)

RING_HEADER: Final = 8
"""Bytes before each record in a BPF ring buffer: u32 length (bit 31 busy, bit 30 discarded), u32 page offset."""
STRIDE: Final = RING_HEADER + OCCURRENCE.size

BEHAVIOUR: Final = Layout(
    "behaviour",
    Field("cgroup", "u64", "cgroup v2 id; 1 is the root"),
    Field("executable", "u64", "string id of the acting executable's path; for exec: the image that called exec"),
    Field(
        "parent",
        "u64",
        "string id of the parent task's executable path; for exec: the same as `executable`'s caller parent",
    ),
    Field("resource", "u64", "string id of the path acted on; exec: the new image; unix socket: its path; 0 if none"),
    Field("resource2", "u64", "string id of the second path (rename and link target, mount target), 0 if none"),
    Field("pid_ns", "u32", "inode of the pid namespace"),
    Field("mnt_ns", "u32", "inode of the mount namespace"),
    Field("operation", "u16", "schemas.operations.Operation"),
    Field("syscall", "u16", "syscall number on this machine"),
    Field("access", "u16", "schemas.operations.Access"),
    Field("enforcer", "u8", "schemas.operations.Backend that stopped it; 0 if nobody did"),
    Field("tty", "u8", "1 when the task has a controlling terminal"),
    Field("flags", "u32", "flags argument of the call as given (open flags, unlinkat flags, socket flags)"),
    Field("result", "s32", "0, or -errno"),
    Field("uid", "u32", "real uid in the initial user namespace"),
    Field("owner", "u32", "uid that owns the inode; 0xffffffff if there is none"),
    Field("args", "u32", "chmod: mode; chown: uid, gid; listen: backlog; setuid/setgid: id; ptrace: request, pid", 2),
    Field("family", "u16", "AF_*; 0 when not a socket operation"),
    Field("port", "u16", "host order; connect/send: remote; bind/listen/accept: local"),
    Field("socket_type", "u16", "SOCK_* without flags"),
    Field("protocol", "u16", "IPPROTO_*"),
    Field("address", "u8", "remote address (bind/listen: local); IPv4 in the first four bytes", 16),
)

PROCESS: Final = Layout(
    "process",
    Field(
        "process",
        "u64",
        "this image's id: the sequence number of its exec, or pid-derived for tasks older than the agent",
    ),
    Field("executable", "u64", "string id of its path"),
    Field("parent", "u64", "string id of the path of the image that called exec"),
    Field("arguments", "u64", "string id of argv joined by NUL, up to 4096 bytes"),
    Field("cwd", "u64", "string id of the working directory at exec"),
    Field("parent_process", "u64", "`process` of the parent task at exec"),
    Field("start", "u64", "boot time ns of the exec"),
    Field("pid", "u32", "host tgid"),
    Field("ppid", "u32", "host tgid of the parent"),
    Field("ns_pid", "u32", "tgid in the innermost pid namespace"),
    Field("session", "u32", "audit session id, 0xffffffff if none"),
    Field("loginuid", "u32", "audit login uid, 0xffffffff if none"),
    Field("truncated", "u32", "1 when argv was longer than what was kept"),
    Field("tty", "u8", "name of the controlling terminal, NUL padded; empty if none", 16),
)


class DefinitionKind(IntEnum):
    """What a record of the definitions ring defines."""

    STRING = 1
    BEHAVIOUR = 2
    PROCESS = 3
    CGROUP = 4
    CGROUP_GONE = 5


DEFINITION: Final = Layout(
    "definition",
    Field("id", "u64", "what the occurrence or behaviour calls it"),
    Field("kind", "u32", "DefinitionKind"),
    Field("size", "u32", "bytes that follow this header, without padding to 8"),
)

STRING_LIMIT: Final = 4096
"""Longest string kept: PATH_MAX of Linux (include/uapi/linux/limits.h)."""


class Loss(IntEnum):
    """Index into the per-CPU loss counters map."""

    OCCURRENCES_FULL = 0
    DEFINITIONS_FULL = 1
    PATH_UNRESOLVED = 2
    PATH_TRUNCATED = 3
    PROCESS_UNKNOWN = 4
    MAP_FULL = 5


LAYOUTS: Final = (OCCURRENCE, BEHAVIOUR, PROCESS, DEFINITION)


def c_header() -> str:
    """`records.h`: every layout, enum and size as C. Printed at load time, never stored."""
    from schemas.operations import Access, Backend, Operation

    parts = ["/* printed by schemas.kernel.c_header(); not to be edited */", "#pragma once"]
    parts += [layout.c_struct() for layout in LAYOUTS]
    for prefix, members in (
        ("OP", Operation), ("ACCESS", Access), ("BACKEND", Backend), ("DEFINE", DefinitionKind), ("LOSS", Loss),
    ):  # fmt: skip
        parts += [f"#define {prefix}_{member.name} {member.value}" for member in members]
    parts.append(f"#define STRING_LIMIT {STRING_LIMIT}")
    return "\n".join(parts) + "\n"
