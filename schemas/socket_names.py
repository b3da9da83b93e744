# SPDX-License-Identifier: Apache-2.0
"""Names of the numbers that system calls take: families, socket types, protocols, flags, capabilities. Pure tables.

Numbers are Linux's (include/uapi). Open flags and a few others differ by architecture; those that differ are looked up per
architecture, so that an arm64 node is not read with x86 tables. Read by `schemas.wording`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

FAMILIES: Final = {
    0: "AF_UNSPEC", 1: "AF_UNIX", 2: "AF_INET", 3: "AF_AX25", 4: "AF_IPX", 5: "AF_APPLETALK", 9: "AF_X25", 10: "AF_INET6",
    15: "AF_KEY", 16: "AF_NETLINK", 17: "AF_PACKET", 24: "AF_PPPOX", 29: "AF_CAN", 30: "AF_TIPC", 31: "AF_BLUETOOTH",
    38: "AF_ALG", 40: "AF_VSOCK", 41: "AF_KCM", 42: "AF_QIPCRTR", 43: "AF_SMC", 44: "AF_XDP",
}  # fmt: skip
INET, INET6, UNIX, NETLINK = 2, 10, 1, 16

TYPES: Final = {
    1: "SOCK_STREAM", 2: "SOCK_DGRAM", 3: "SOCK_RAW", 4: "SOCK_RDM", 5: "SOCK_SEQPACKET", 6: "SOCK_DCCP", 10: "SOCK_PACKET",
}  # fmt: skip
STREAM, DGRAM = 1, 2
_SOCK_FLAGS: Final = ((0o4000, "SOCK_NONBLOCK"), (0o2000000, "SOCK_CLOEXEC"))

PROTOCOLS: Final = {
    0: "IP", 1: "ICMP", 2: "IGMP", 4: "IPIP", 6: "TCP", 8: "EGP", 12: "PUP", 17: "UDP", 22: "IDP", 29: "TP", 33: "DCCP",
    41: "IPv6", 46: "RSVP", 47: "GRE", 50: "ESP", 51: "AH", 58: "IPv6-ICMP", 92: "MTP", 98: "ENCAP", 103: "PIM",
    108: "COMP", 132: "SCTP", 136: "UDPLITE", 137: "MPLS", 143: "ETHERNET", 255: "RAW",
}  # fmt: skip
SMC, MPTCP = 256, 262
EXTENSION_HEADERS: Final = frozenset((0, 43, 44, 51, 60))
"""Protocols that are headers of IPv6 with another protocol behind them (RFC 8200, 4), of those that the guard of packets looks behind."""
TCP_STREAMS: Final = frozenset((0, 6, SMC, MPTCP))
"""Protocols of an internet stream socket that speak TCP to any TCP peer: TCP itself; SMC (net/smc/smc_inet.c) and MPTCP (RFC 8684),
which fall back to it."""

CAPABILITIES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
"""Index is the capability's number."""

PTRACE: Final = {
    0: "PTRACE_TRACEME", 1: "PTRACE_PEEKTEXT", 2: "PTRACE_PEEKDATA", 3: "PTRACE_PEEKUSER", 4: "PTRACE_POKETEXT",
    5: "PTRACE_POKEDATA", 6: "PTRACE_POKEUSER", 7: "PTRACE_CONT", 8: "PTRACE_KILL", 9: "PTRACE_SINGLESTEP",
    12: "PTRACE_GETREGS", 13: "PTRACE_SETREGS", 14: "PTRACE_GETFPREGS", 15: "PTRACE_SETFPREGS", 16: "PTRACE_ATTACH",
    17: "PTRACE_DETACH", 24: "PTRACE_SYSCALL", 0x4200: "PTRACE_SETOPTIONS", 0x4201: "PTRACE_GETEVENTMSG",
    0x4202: "PTRACE_GETSIGINFO", 0x4203: "PTRACE_SETSIGINFO", 0x4204: "PTRACE_GETREGSET", 0x4205: "PTRACE_SETREGSET",
    0x4206: "PTRACE_SEIZE", 0x4207: "PTRACE_INTERRUPT", 0x4208: "PTRACE_LISTEN",
}  # fmt: skip

_ACCESS: Final = ("O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE")
_OPEN_COMMON: Final = (
    (0o100, "O_CREAT"), (0o200, "O_EXCL"), (0o400, "O_NOCTTY"), (0o1000, "O_TRUNC"), (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"), (0o4010000, "O_SYNC"), (0o10000, "O_DSYNC"), (0o20000, "FASYNC"),
)  # fmt: skip
_OPEN_X86: Final = (
    (0o40000, "O_DIRECT"),
    (0o100000, "O_LARGEFILE"),
    (0o200000, "O_DIRECTORY"),
    (0o400000, "O_NOFOLLOW"),
)
_OPEN_ARM: Final = (
    (0o200000, "O_DIRECT"),
    (0o400000, "O_LARGEFILE"),
    (0o40000, "O_DIRECTORY"),
    (0o100000, "O_NOFOLLOW"),
)
_OPEN_TAIL: Final = ((0o1000000, "O_NOATIME"), (0o2000000, "O_CLOEXEC"), (0o10000000, "O_PATH"))
_TMPFILE: Final = 0o20000000

_AT: Final = (
    (0x100, "AT_SYMLINK_NOFOLLOW"), (0x200, "AT_REMOVEDIR"), (0x400, "AT_SYMLINK_FOLLOW"), (0x800, "AT_NO_AUTOMOUNT"),
    (0x1000, "AT_EMPTY_PATH"),
)  # fmt: skip


def _names(value: int, table: tuple[tuple[int, str], ...]) -> list[str]:
    """Names of the bits set, unknown ones as hexadecimal."""
    found = []
    for bits, word in table:
        if value & bits == bits:
            found.append(word)
            value &= ~bits
    if value:
        found.append(hex(value))
    return found


@lru_cache(4096)
def open_flags(flags: int, architecture: str = "x86_64") -> str:
    """`O_RDONLY|O_CLOEXEC`."""
    words = [_ACCESS[flags & 3]]
    rest = flags & ~3
    middle = _OPEN_ARM if architecture in ("aarch64", "arm64") else _OPEN_X86
    directory = next(bits for bits, word in middle if word == "O_DIRECTORY")
    if rest & (_TMPFILE | directory) == _TMPFILE | directory:
        rest &= ~(_TMPFILE | directory)
        words.append("O_TMPFILE")
    return "|".join(words + _names(rest, _OPEN_COMMON + middle + _OPEN_TAIL))


@lru_cache(1024)
def socket_type(kind: int, flags: int = 0) -> str:
    """`SOCK_STREAM|SOCK_CLOEXEC`; `flags`: the type argument as given (its low four bits are ignored)."""
    return "|".join([TYPES.get(kind, str(kind)), *_names(flags & ~0xF, _SOCK_FLAGS)])


def family(number: int) -> str:
    """`AF_INET` for 2, the number in text when unknown."""
    return FAMILIES.get(number) or str(number)


def protocol(number: int, kind: int = 0, domain: int = INET) -> str:
    """`TCP` for 6. Protocol 0 of an inet stream or datagram socket is what the kernel makes of it: TCP, UDP. MPTCP and SMC are TCP."""
    if number == 0 and domain in (INET, INET6):
        number = {STREAM: 6, DGRAM: 17}.get(kind, 0)
    if number in (SMC, MPTCP):
        number = 6
    if domain not in (INET, INET6):
        return str(number)
    return PROTOCOLS.get(number) or str(number)


def capability(number: int) -> str:
    """`net_raw` for 13, the number in text when this build does not know it."""
    return CAPABILITIES[number] if number < len(CAPABILITIES) else str(number)


def at_flags(flags: int) -> str:
    """`AT_REMOVEDIR`; "" when none is set."""
    return "|".join(_names(flags, _AT))
