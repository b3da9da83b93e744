# SPDX-License-Identifier: Apache-2.0
"""The header tree BCC compiles against: synthetic where BTF exists, the distribution's where it does not.

Why: BCC refuses to compile without kernel headers, and most nodes have none. Its own prelude needs little: integer types, a
page size and a handful of file names. The programs themselves take every kernel offset as a `-D` constant
(`members.py`), so no kernel struct has to be declared at all. Must never contain BPF uapi types: BCC brings its own.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_TYPES: Final = """\
/* written by kernel.headers; the only header with content, every other one includes it */
#ifndef HAUBERK_TYPES
#define HAUBERK_TYPES
#define CONFIG_BPF_SYSCALL 1
#define PAGE_SIZE 4096
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 8, 0)
#define NULL ((void *)0)
#define __user
#define __kernel
#define __always_inline inline __attribute__((always_inline))
typedef unsigned char __u8; typedef unsigned short __u16; typedef unsigned int __u32; typedef unsigned long long __u64;
typedef signed char __s8; typedef short __s16; typedef int __s32; typedef long long __s64;
typedef __u8 u8; typedef __u16 u16; typedef __u32 u32; typedef __u64 u64;
typedef __s8 s8; typedef __s16 s16; typedef __s32 s32; typedef __s64 s64;
typedef __u16 __be16, __le16, __sum16; typedef __u32 __be32, __le32, __wsum; typedef __u64 __be64, __le64;
typedef __u64 __aligned_u64 __attribute__((aligned(8)));
typedef u8 uint8_t; typedef u16 uint16_t; typedef u32 uint32_t; typedef u64 uint64_t;
typedef s8 int8_t; typedef s16 int16_t; typedef s32 int32_t; typedef s64 int64_t;
typedef unsigned long uintptr_t; typedef unsigned long size_t; typedef long ssize_t; typedef int pid_t;
typedef _Bool bool;
enum { false = 0, true = 1 };
struct pt_regs;
#define ilog2(n) (63 - __builtin_clzll(n))
#define roundup_pow_of_two(n) (1ULL << (64 - __builtin_clzll((n) - 1)))
#endif
"""

_NAMES: Final = (
    "include/linux/types.h",
    "include/linux/version.h",
    "include/linux/kconfig.h",
    "include/linux/log2.h",
    "include/linux/bpf.h",
    "include/linux/bpf_common.h",
    "include/linux/ptrace.h",
    "include/linux/if_ether.h",
    "include/uapi/linux/types.h",
    "include/uapi/linux/bpf.h",
    "include/uapi/linux/bpf_common.h",
    "include/uapi/linux/ptrace.h",
    "include/uapi/linux/if_ether.h",
    "include/uapi/linux/if_packet.h",
    "include/asm/page.h",
    "include/asm/types.h",
    "include/generated/uapi/linux/version.h",
    "include/generated/autoconf.h",
)


def write_tree(root: Path) -> None:
    """Write the synthetic tree below `root`; give `root` to BCC as `BCC_KERNEL_SOURCE`."""
    (root / "include").mkdir(parents=True, exist_ok=True)
    (root / "include" / "hauberk_types.h").write_text(_TYPES)
    for name in _NAMES:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'#include "{os.path.relpath(root / "include" / "hauberk_types.h", path.parent)}"\n')


def installed() -> Path | None:
    """Where the distribution put headers of the running kernel; None if nowhere BCC looks."""
    for path in (
        Path("/lib/modules") / os.uname().release / "build",
        Path("/lib/modules") / os.uname().release / "source",
    ):
        if (path / "include").is_dir():
            return path
    return None
