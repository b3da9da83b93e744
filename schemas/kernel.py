# SPDX-License-Identifier: Apache-2.0
"""Records and maps shared with the kernel programs: the one place their bytes are described.

The C header `records.h` is printed from here (`schemas.c_header`), and a test compares offsets with the compiled C. All integers
are host-endian, records are 8-byte aligned, and a layout grows only at its end.

Two rings leave the kernel. The *occurrences* ring holds records of one size, so a chunk of it is a table with a stride of
`STRIDE` bytes (ring header included) and is never decoded on the node. The *definitions* ring holds what the ids in
occurrences mean; each is sent once, and again if the kernel forgot it:

    STRING     id = SipHash of the bytes         -> a path or an argument list
    BEHAVIOUR  id = keyed hash of the behaviour  -> `BEHAVIOUR`, refers to strings
    PROCESS    id = process id of one exec image -> `PROCESS`, refers to strings
    CGROUP     id = cgroup id                    -> path at creation; empty when it was removed (CGROUP_GONE)
    ANSWER     id = cgroup id                    -> `ANSWER` and what a name server said to a socket of that cgroup, once
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

from schemas.layout import Field, Layout

OCCURRENCE: Final = Layout(
    "occurrence",
    Field("id", "u64", "behaviour id"),
    Field("time", "u64", "bpf_ktime_get_boot_ns() when the operation ended"),
    Field("sequence", "u64", "cpu << 48 | count on that cpu; counts up even when the ring is full"),
    Field("process", "u64", "id of the exec image that acted, 0 if unknown"),
    Field("pid", "u32", "host tgid"),
    Field("ppid", "u32", "host tgid of the parent"),
    Field("ns_pid", "u32", "tgid in the innermost pid namespace"),
    Field("ns_ppid", "u32", "the parent's, in the pid namespace of ns_pid; 0 when it is outside"),
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
    Field("resource", "u64", "string id of the path acted on; exec: what was executed; unix socket: its path; or 0"),
    Field(
        "resource2",
        "u64",
        "string id of the second path (rename: new; link: existing; mount: what; exec: interpreter), 0 if none",
    ),
    Field("pid_ns", "u32", "inode of the pid namespace"),
    Field("mnt_ns", "u32", "inode of the mount namespace"),
    Field("operation", "u16", "schemas.operations.Operation"),
    Field("syscall", "u16", "row of schemas/syscalls.py: the native number, or which call of a 32-bit entry"),
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
    Field(
        "script",
        "u64",
        "string id of the `#!` file that the acting executable runs; exec: that the caller ran; 0 if none",
    ),
)

PROCESS: Final = Layout(
    "process",
    Field("process", "u64", "this image's id: of its exec, or pid-derived for tasks older than the agent"),
    Field("executable", "u64", "string id of its path"),
    Field("parent", "u64", "string id of the path of the image that called exec"),
    Field(
        "arguments",
        "u64",
        "string id of argv joined by NUL, up to 4096 bytes; CALLED: the path given to exec goes before",
    ),
    Field("cwd", "u64", "string id of the working directory at exec"),
    Field("parent_process", "u64", "`process` of the parent task at exec"),
    Field("start", "u64", "boot time ns of the exec"),
    Field("pid", "u32", "host tgid"),
    Field("ppid", "u32", "host tgid of the parent"),
    Field("ns_pid", "u32", "tgid in the innermost pid namespace"),
    Field("session", "u32", "audit session id, 0xffffffff if none"),
    Field("loginuid", "u32", "audit login uid, 0xffffffff if none"),
    Field("flags", "u32", "ProcessFlag"),
    Field("tty", "u8", "name of the controlling terminal, NUL padded; empty if none", 16),
)


class ProcessFlag(IntFlag):
    """CUT: argv was longer than what was kept, or could not be read. CALLED: the text of the arguments begins with the path that
    exec was given, which is a name of the image (a link, a multi-call program) or of the script that it runs."""

    CUT = 1
    CALLED = 2


class DefinitionKind(IntEnum):
    """What a record of the definitions ring defines."""

    STRING = 1
    BEHAVIOUR = 2
    PROCESS = 3
    CGROUP = 4
    CGROUP_GONE = 5
    ANSWER = 6


DEFINITION: Final = Layout(
    "definition",
    Field("id", "u64", "what the occurrence or behaviour calls it"),
    Field("kind", "u32", "DefinitionKind"),
    Field("size", "u32", "bytes that follow this header, without padding to 8"),
)

ANSWER: Final = Layout(
    "answer",
    Field("time", "u64", "bpf_ktime_get_boot_ns() when it reached the socket"),
    Field("length", "u32", "bytes of the message; when fewer follow, its end is missing"),
    Field("reserved", "u32", "0"),
)
"""Body of an ANSWER definition; the message (RFC 1035, section 4.1) follows, as far as it was kept."""

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
    CHAIN_BROKEN = 6
    """An event needed more steps than the kernel allows (33 tail calls) and was given up."""
    FOREIGN_CALL = 7
    """A call by a 32-bit entry of a machine for which there is no table of those (arm64); what it did is not told."""
    UNREAD = 8
    """An event after `config[OBSERVED_UNTIL]`: nobody had drained the rings for so long that reporting stopped."""
    HANDED_OVER = 9
    """Counted by an agent: events that the one before it had in hand when it was killed. They may have been judged and counted."""
    ANSWERS = 10
    """An answer of a name server that was not handed on: its container or the node heard too many, or the ring was half full. No event is
    lost; the addresses in it have no name."""


IMAGE: Final = Layout(
    "image",
    Field("process", "u64", "id of the exec image: (boot ns >> 10) << 22 | tgid, of its exec or of the task's start"),
    Field("executable", "u64", "string id of its path; 0 for a kernel thread"),
    Field("parent", "u64", "string id of the parent task's executable path when this task was forked or adopted"),
    Field("parent_process", "u64", "`process` of the parent task at that moment, 0 if unknown"),
    Field("start", "u64", "boot time ns of the exec"),
    Field("pid", "u32", "host tgid"),
    Field("ppid", "u32", "host tgid of the parent"),
    Field("ns_pid", "u32", "tgid in the innermost pid namespace"),
    Field("ns_ppid", "u32", "the parent's, in the pid namespace of ns_pid; 0 when it is outside"),
    Field("pid_ns", "u32", "inode of the pid namespace"),
    Field("flags", "u32", "low bits of config[GENERATION] for which this process is known not to be excluded"),
    Field("call", "u32", "number of the exec call that is under way, as the task made it; 0 if unknown"),
    Field("reserved", "u32", "0"),
    Field(
        "works",
        "u64",
        "of that exec: kernel address of the task's work as it began; 1: it may run before the exec ends; 0 if unknown",
    ),
    Field("script", "u64", "string id of the `#!` file that the image runs; 0 if it runs none"),
)
"""Value of the `processes` map, keyed by host tgid (u32). Written by the kernel; an entry deleted by userspace is adopted
again, with its definitions, at the task's next watched call."""


class ScopeFlag(IntFlag):
    """What a scope asks of the kernel programs. WHITELIST_*: what no rule of that class matches is stopped. CLOSED: so is what
    no rule can be asked about, because its path could not be resolved."""

    CONTAINER = 1
    ENFORCE_SIGNAL = 2
    ENFORCE_CGROUP = 4
    WHITELIST_PROCESS = 8
    WHITELIST_FILE = 16
    WHITELIST_NETWORK = 32
    FRESH = 64
    STOP_IO_URING = 128
    CLOSED = 256
    ENFORCE_LSM = 512


SCOPE: Final = Layout(
    "scope",
    Field("table", "u64", "id of the rule table in force; 0 if none"),
    Field("reserved", "u64", "0"),
    Field("flags", "u32", "ScopeFlag; FRESH: made by the kernel when the cgroup was, nobody has claimed it yet"),
    Field("visibility", "u32", "bit 1 << Class for each class that is reported"),
)
"""Value of the `scopes` map, keyed by cgroup id (u64). A cgroup without an entry has that of its nearest
ancestor with one; without any, `config[HOST_VISIBILITY]`. Whoever adds or deletes an entry calls `kernel.generation.renew` afterwards."""


class RuleKind(IntEnum):
    """How `rule_key.path` is meant. A directory's id is the hash of its path *with* the trailing slash; an EXECNAME's that of
    the last component alone. Looked up in the judge's order: limited to the source before not; then EXACT, EXECNAME, and
    directories from the deepest upwards, DIRECTORY (its own entries) before RECURSIVE. The first that is there decides.
    LSM: HEADER, see `schemas.lsm.TableFlag`; GUARD, a directory that may not be renamed; PATTERN, `path` numbers a set that the machine
    accepts; RUNTIME, the name of what starts containers. Of a capability `path` is its number + 1. `rule_key.source` is an executable's id,
    or numbers a set that the machine for executables accepts."""

    EXACT = 0
    DIRECTORY = 1
    RECURSIVE = 2
    EXECNAME = 3
    HEADER = 4
    GUARD = 5
    PATTERN = 6
    RUNTIME = 7


class RuleAction(IntEnum):
    """What a rule asks for."""

    ALLOW = 1
    AUDIT = 2
    BLOCK = 3


class RuleFlag(IntFlag):
    """OWNER_ONLY: only the inode's owner may. READ_ONLY: changing is not free. NO_TERMINAL: nobody with a controlling terminal may."""

    OWNER_ONLY = 1
    READ_ONLY = 2
    NO_TERMINAL = 4


RULE_KEY: Final = Layout(
    "rule_key",
    Field("table", "u64", "scope.table"),
    Field("path", "u64", "string id of the path or directory"),
    Field("source", "u64", "string id of the acting executable (exec: behaviour.parent, or executable); 0 for any"),
    Field("class_", "u32", "schemas.operations.Class"),
    Field("kind", "u32", "RuleKind"),
)
RULE: Final = Layout(
    "rule",
    Field("action", "u32", "RuleAction"),
    Field("flags", "u32", "RuleFlag"),
    Field("index", "u32", "the planner's number of the rule"),
    Field(
        "rank",
        "u32",
        "of all that match the greatest decides, then BLOCK over AUDIT over ALLOW; rules on paths: of the source alone",
    ),
)


class Direction(IntEnum):
    """Which question a network rule answers. CREATE: may this kind of socket be used at all (asked at socket, bind, connect
    and send; rules without address and port). SEND: may this peer be talked to (connect, and sends with an address).
    BIND: may this local address and port be taken. A call is stopped when either of its questions says so."""

    SEND = 1
    BIND = 2
    CREATE = 3


SOCKET_TYPE: Final = 0xF0
"""`net_key.protocol` of a rule on a socket type: SOCKET_TYPE | SOCK_* (stream 0xF1, dgram 0xF2, raw 0xF3, seqpacket 0xF5)."""


NET_KEY: Final = Layout(
    "net_key",
    Field("prefix", "u32", "significant bits: NET_FIXED_BITS + length of the address prefix"),
    Field("port", "u16", "host order; 0 for any"),
    Field("protocol", "u8", "IPPROTO_*, or SOCKET_TYPE | SOCK_*; 0 for any"),
    Field("family", "u8", "AF_INET or AF_INET6; 0 for every other"),
    Field("table", "u64", "scope.table"),
    Field("source", "u64", "string id of the acting executable; 0 for any"),
    Field("direction", "u32", "Direction"),
    Field("reserved", "u32", "0"),
    Field("address", "u8", "network order; IPv4 in the first four bytes", 16),
)
"""Key of the `net_rules` map, a longest-prefix trie: its cost depends on the address, not on how many rules there are."""

NET_FIXED_BITS: Final = (NET_KEY.size - 4 - 16) * 8

CALL: Final = Layout(
    "call",
    Field("hop", "u8", "index into the `hops` program array; 0: not watched"),
    Field("class_", "u8", "schemas.operations.Class"),
    Field("operation", "u16", "schemas.operations.Operation"),
    Field("access", "u16", "schemas.operations.Access that the call implies"),
    Field("path", "u8", "number of the argument holding a path; 255: none"),
    Field("dirfd", "u8", "... its directory descriptor; 255: the working directory"),
    Field("path2", "u8", "... the second path"),
    Field("dirfd2", "u8", "... its directory descriptor"),
    Field("fd", "u8", "... the descriptor acted on"),
    Field("flags", "u8", "... flags"),
    Field("arg0", "u8", "... what goes into behaviour.args[0]"),
    Field("arg1", "u8", "... and args[1]"),
    Field("number", "u16", "native number of this call, whatever entry the row is of"),
    Field("marks", "u16", "schemas.watched.Mark"),
    Field("reserved", "u16", "0", 3),
)
"""Value of the `calls` map, keyed by row (schemas/syscalls.py); written from kernel/syscalls.py when the programs are loaded."""


BUDGET: Final = Layout(
    "budget",
    Field("window", "u64", "boot time ns >> 30 that `asked` is of"),
    Field("asked", "u32", "new behaviours asked for in it: calls that failed, that passed, denials and execs, shed ones", 4),
    Field("lost", "u64", "lost since the entry was made: events to a full ring, and because nobody read; answers (OWN_LOSSES)", 3),
    Field("heard_window", "u64", "as `window`, of `heard`"),
    Field("heard", "u32", "questions for names and answers to them that were heard in it", 2),
)  # fmt: skip
"""Value of the `budgets` map, keyed by cgroup id (u64; ~0 is the node). A cgroup made inside a container is charged to it."""

OWN_LOSSES: Final = (Loss.OCCURRENCES_FULL, Loss.UNREAD, Loss.ANSWERS)
"""Losses that are counted for each container too, in the order of `budget.lost`."""


QUIET_KEY: Final = Layout(
    "quiet_key", Field("cgroup", "u64", "cgroup id"), Field("directory", "u64", "string id of its path with a trailing slash")
)  # fmt: skip
"""Key of the `quiet` map: no rule of that cgroup can match what lies in that directory. Deleted before that changes."""


class Config(IntEnum):
    """Index into the `config` map (array of u64)."""

    LAYOUT = 0
    """Hash of programs and layouts: pins with another value are replaced, not reused."""
    HASH_K0 = 1
    HASH_K1 = 2
    HOST_VISIBILITY = 3
    """Visibility of cgroups without a scope."""
    NEW_VISIBILITY = 4
    """Visibility of a cgroup made while the programs run, until userspace claims it; 0: new cgroups get no scope."""
    GENERATION = 5
    """Counts up when `behaviours` lost an id or `excluded` got a process: what programs remember is valid for one value."""
    OBSERVED_UNTIL = 6
    """Boot time ns until which events are reported. The reader moves it on while it drains, so that nothing fills the rings
    before there is a reader (0), and the machine stops paying for one that is gone (1, put there by the first event that comes
    too late: from then on a call costs a look at this word). Enforcement does not ask."""
    REGISTERS = 7
    """Distance from a task's stack to the registers of its system call; 0 until the programs have seen one."""
    SPARED = 8
    """How many times the budget of new names is halved, because those who judge them are behind."""
    ASLEEP = 9
    """`schemas.wakeup.Sleep`: what calls the reader. The event that calls it writes AWAKE, so that the next ones cost a look at this word."""
    HASTE = 10
    """Events since the reader put 0 here that cannot wait: what it finds when it is about to doze."""
    IN_HAND = 11
    """Events that were handed over in memory and are not committed; what the next agent tells as HANDED_OVER."""
    CALL_FUNCTIONS = 12
    """How many of the kernel's functions are watched for system calls; 0: the tracepoint sees them."""


LAYOUTS: Final = (OCCURRENCE, BEHAVIOUR, PROCESS, DEFINITION, ANSWER, IMAGE, SCOPE, RULE_KEY, RULE, NET_KEY, CALL, BUDGET, QUIET_KEY)  # fmt: skip
