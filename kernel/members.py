# SPDX-License-Identifier: Apache-2.0
"""Which members of kernel structs the programs read, and `offsets.h` made from BTF (or `offsetof` where headers exist).

Never tests a kernel version: a member has a list of names it has had, and the first that exists is taken. A member
that exists under no name stops the load with its name, except those marked optional, which the C code guards by `#ifdef`.
"""

from __future__ import annotations

import platform
from typing import Final

from kernel.btf import Btf
from schemas.errors import Incompatible

# owner, member as the programs call it, names it has had (newest first)
_MEMBERS: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    ("task_struct", "tgid", ()),
    ("task_struct", "pid", ()),
    ("task_struct", "real_parent", ()),
    ("task_struct", "group_leader", ()),
    ("task_struct", "thread_pid", ()),
    ("task_struct", "mm", ()),
    ("task_struct", "fs", ()),
    ("task_struct", "files", ()),
    ("task_struct", "nsproxy", ()),
    ("task_struct", "signal", ()),
    ("task_struct", "exit_code", ()),
    ("task_struct", "cred", ()),
    ("task_struct", "compat", ("thread_info.status",)),
    ("task_struct", "thread_flags", ("thread_info.flags",)),
    ("task_struct", "cgroups", ()),
    ("task_struct", "stack", ()),
    ("task_struct", "flags", ()),
    ("cred", "uid", ()),
    ("css_set", "dfl_cgrp", ()),
    ("task_struct", "start_boottime", ("start_boottime", "real_start_time")),
    ("task_struct", "sessionid", ()),
    ("task_struct", "loginuid", ()),
    ("signal_struct", "tty", ()),
    ("signal_struct", "live", ("live.counter", "live")),
    ("tty_struct", "name", ()),
    ("nsproxy", "mnt_ns", ()),
    ("mnt_namespace", "ns.inum", ()),
    ("pid_namespace", "ns.inum", ()),
    ("pid", "level", ()),
    ("pid", "numbers", ()),
    ("mm_struct", "exe_file", ()),
    ("mm_struct", "arg_start", ()),
    ("mm_struct", "arg_end", ()),
    ("linux_binprm", "filename", ()),
    ("linux_binprm", "interp", ()),
    ("linux_binprm", "fdpath", ()),
    ("linux_binprm", "executable", ()),
    ("task_struct", "task_works", ()),
    ("task_struct", "io_uring", ()),
    ("fs_struct", "root.mnt", ()),
    ("fs_struct", "root.dentry", ()),
    ("fs_struct", "pwd.mnt", ()),
    ("fs_struct", "pwd.dentry", ()),
    ("files_struct", "fdt", ()),
    ("fdtable", "fd", ()),
    ("fdtable", "max_fds", ()),
    ("file", "f_path", ()),
    ("file", "f_path.mnt", ()),
    ("file", "f_path.dentry", ()),
    ("file", "f_inode", ()),
    ("file", "f_mode", ()),
    ("file", "f_flags", ()),
    ("file", "task_work", ("f_task_work", "f_rcuhead", "f_u.fu_rcuhead")),
    ("file", "private_data", ()),
    ("inode", "i_uid", ()),
    ("inode", "i_mode", ()),
    ("inode", "i_sb", ()),
    ("inode", "i_ino", ()),
    ("super_block", "s_magic", ()),
    ("super_block", "s_fs_info", ()),
    ("proc_fs_info", "pid_ns", ()),
    ("dentry", "d_parent", ()),
    ("dentry", "d_name", ()),
    ("dentry", "d_inode", ()),
    ("dentry", "d_iname", ("d_shortname", "d_iname")),
    ("mount", "mnt", ()),
    ("mount", "mnt_parent", ()),
    ("mount", "mnt_mountpoint", ()),
    ("cgroup", "kn", ()),
    ("cgroup", "root", ()),
    ("cgroup_root", "hierarchy_id", ()),
    ("kernfs_node", "id", ()),
    ("kernfs_node", "parent", ("__parent", "parent")),
    ("socket", "sk", ()),
    ("socket", "type", ()),
    ("sock", "family", ("__sk_common.skc_family",)),
    ("sock", "daddr", ("__sk_common.skc_daddr",)),
    ("sock", "rcv_saddr", ("__sk_common.skc_rcv_saddr",)),
    ("sock", "dport", ("__sk_common.skc_dport",)),
    ("sock", "num", ("__sk_common.skc_num",)),
    ("sock", "v6_daddr", ("__sk_common.skc_v6_daddr",)),
    ("sock", "v6_rcv_saddr", ("__sk_common.skc_v6_rcv_saddr",)),
    ("sock", "protocol", ("sk_protocol",)),
    ("sock", "state", ("__sk_common.skc_state",)),
    ("unix_sock", "addr", ()),
    ("unix_sock", "peer", ()),
    ("unix_address", "len", ()),
    ("unix_address", "name", ()),
)
_OPTIONAL: Final = frozenset(
    {
        ("task_struct", "sessionid"),
        ("task_struct", "loginuid"),
        ("dentry", "d_iname"),
        ("linux_binprm", "executable"),
        ("task_struct", "io_uring"),
        ("task_struct", "compat"),
        ("task_struct", "thread_flags"),
        ("sock", "v6_daddr"),
        ("sock", "v6_rcv_saddr"),
        ("proc_fs_info", "pid_ns"),
    }
)
# Not in every set of headers, and there #ifdef would come too late.
_BTF_ONLY: Final = frozenset({("proc_fs_info", "pid_ns"), ("linux_binprm", "executable"), ("task_struct", "io_uring")})

# The programs read these in one go: (owner, first, member, distance from first).
_ADJACENT: Final = (
    ("dentry", "d_parent", "d_name", 8),
    ("dentry", "d_parent", "d_inode", 24),
    ("mount", "mnt_parent", "mnt_mountpoint", 8),
    ("mount", "mnt_parent", "mnt", 16),
)

# Where the 32-bit entries of x86-64 (int 0x80, compat tasks) find their arguments; flag of a 32-bit task on arm64.
_NARROW: Final = {"x86_64": ("bx", "cx", "dx", "si", "di", "bp")}
_TIF_32BIT: Final = {"aarch64": 22}

_REGISTERS: Final = {
    "x86_64": ("orig_ax", ("di", "si", "dx", "r10", "r8", "r9"), 0o200000),
    # x0 of pt_regs is the result by the time a call ends; the first argument is kept in orig_x0.
    "aarch64": ("syscallno", ("orig_x0", "regs+8", "regs+16", "regs+24", "regs+32", "regs+40"), 0o40000),
}


def offsets_from(btf: Btf, machine: str = platform.machine()) -> str:
    """`offsets.h` as numbers: one `K_owner__member` each."""
    lines = ["/* printed by kernel.members from this kernel's BTF */", "#pragma once"]
    found: dict[tuple[str, str], int] = {}
    for owner, name, names in _MEMBERS:
        tried = names or (name,)
        member = next((m for m in (btf.member(owner, path) for path in tried) if m is not None), None)
        if member is None:
            if (owner, name) in _OPTIONAL:
                continue
            raise Incompatible(
                f"expected member {' or '.join(f'`{n}`' for n in tried)} in struct `{owner}`, this kernel's BTF has none; report it with `hauberk probe`"
            )
        found[owner, name] = member.offset
        lines.append(f"#define {macro(owner, name)} {member.offset}")
    for owner, first, name, distance in _ADJACENT:
        if found[owner, name] - found[owner, first] != distance:
            raise Incompatible(
                f"expected `{owner}.{name}` {distance} bytes after `{first}`, got {found[owner, name] - found[owner, first]}; this kernel lays the struct out differently"
            )
    inline_name = btf.member("dentry", "d_shortname") or btf.member("dentry", "d_iname")
    if inline_name is not None and inline_name.offset == found["dentry", "d_inode"] + 8:
        lines.append(f"#define K_NAME_WORDS {min(inline_name.size // 8, 5)}")
    number, arguments, directory = _registers(machine)
    lines.append(f"#define K_REG_NUMBER {_register(btf, number)}")
    lines.append(f"#define K_REG_SPAN {max(_register(btf, name) for name in arguments) + 8}")
    lines += [f"#define K_REG_ARG{index} {_register(btf, name)}" for index, name in enumerate(arguments)]
    lines += [
        f"#define K_REG_NARROW{index} {_register(btf, name)}" for index, name in enumerate(_NARROW.get(machine, ()))
    ]
    lines += _compat(machine)
    lines.append(f"#define K_O_DIRECTORY {directory}")
    return "\n".join(lines) + "\n"


def offsets_by_headers(machine: str = platform.machine()) -> str:
    """`offsets.h` as `offsetof` over the distribution's headers, for kernels without BTF. struct mount is private there."""
    lines = ["/* printed by kernel.members for real headers */", "#pragma once"]
    lines += [
        f"#include <linux/{name}.h>"
        for name in (
            "sched",
            "sched/signal",
            "cred",
            "cgroup-defs",
            "kernfs",
            "nsproxy",
            "pid_namespace",
            "fs",
            "fs_struct",
            "fdtable",
            "dcache",
            "mount",
            "mm_types",
            "binfmts",
            "tty",
            "cgroup",
            "net",
        )
    ]
    lines += ["#include <net/sock.h>", "#include <net/af_unix.h>"]
    # fs/mount.h and fs/mnt_namespace.h are not installed; these prefixes have been the same since 3.5.
    lines += [
        "struct mount { u64 hash_[2]; struct mount *mnt_parent; struct dentry *mnt_mountpoint; struct vfsmount mnt; };",
        "struct mnt_namespace { struct ns_common ns; };",
    ]
    for owner, name, names in _MEMBERS:
        if (owner, name) in _BTF_ONLY:
            continue
        lines.append(f"#define {macro(owner, name)} offsetof(struct {owner}, {(names or (name,))[-1]})")
    number, arguments, directory = _registers(machine)
    lines.append("#define K_REG_SPAN sizeof(struct pt_regs)")
    lines.append(f"#define K_REG_NUMBER offsetof(struct pt_regs, {number})")
    for index, name in enumerate(arguments):
        base, _, plus = name.partition("+")
        lines.append(f"#define K_REG_ARG{index} (offsetof(struct pt_regs, {base}) + {plus or 0})")
    for index, name in enumerate(_NARROW.get(machine, ())):
        lines.append(f"#define K_REG_NARROW{index} offsetof(struct pt_regs, {name})")
    lines += _compat(machine)
    lines.append(f"#define K_O_DIRECTORY {directory}")
    return "\n".join(lines) + "\n"


def _compat(machine: str) -> list[str]:
    return [f"#define K_TIF_32BIT {_TIF_32BIT[machine]}"] if machine in _TIF_32BIT else []


def macro(owner: str, name: str) -> str:
    """How C calls the offset of `owner.name`."""
    return f"K_{owner}__{name.replace('.', '__')}"


def _registers(machine: str) -> tuple[str, tuple[str, ...], int]:
    if machine not in _REGISTERS:
        raise Incompatible(
            f"expected machine {' or '.join(_REGISTERS)}, got `{machine}`; add its registers to kernel/members.py"
        )
    return _REGISTERS[machine]


def _register(btf: Btf, name: str) -> int:
    base, _, plus = name.partition("+")
    member = btf.member("pt_regs", base)
    if member is None:
        raise Incompatible(f"expected register `{base}` in struct `pt_regs`, this kernel's BTF has none")
    return member.offset + int(plus or 0)
