# SPDX-License-Identifier: Apache-2.0
"""Every kernel program and map by name: what is loaded, where it is attached, what is pinned. The one list.

`loader_child` loads what is written here, `docs/kernel.md` is compared with it by a test, enforcers take the guards'
attach types from here. Adding a program: its C function, a row here, nothing else. Must never import BCC.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

SOURCES: Final = (
    "hash", "work", "scope", "budget", "announce", "quiet", "event", "caller", "question", "jobs", "path", "process", "adopt", "script", "file", "call",
    "network", "send", "dns", "identity", "enforce", "foreign", "guard", "answers",
)  # fmt: skip
"""Files of kernel/programs in the order they are compiled: each may use what came before."""

PROGRAM_DIRECTORY: Final = Path(__file__).parent / "programs"

RAW_TRACEPOINT: Final = 17
CGROUP_SKB: Final = 8
CGROUP_SOCK: Final = 9
CGROUP_SOCK_ADDR: Final = 18


class Probe(msgspec.Struct, frozen=True):
    """A program attached to a raw tracepoint when the sensor is loaded; its link is pinned as links/`name`. `instead`: where it
    is attached, to do nothing, on kernels that do not have `tracepoint`."""

    name: str
    tracepoint: str
    why: str
    instead: str = ""


class Guard(msgspec.Struct, frozen=True):
    """A cgroup program: loaded and pinned as programs/`name`; an enforcer attaches it with `attach_type` per cgroup."""

    name: str
    kind: int
    attach_type: int
    why: str


class KernelMap(msgspec.Struct, frozen=True):
    """A map, pinned as maps/`name`."""

    name: str
    kind: str
    key: str
    value: str
    writer: str
    why: str


PROBES: Final = (
    Probe("on_sys_exit", "sys_exit", "every watched system call when it ends"),
    Probe("on_exec", "sched_process_exec", "a new image, before its first instruction"),
    Probe(
        "on_prepare_exec",
        "sched_prepare_exec",
        "which call makes the exec that is about to happen",
        "sched_process_exec",
    ),
    Probe("on_fork", "sched_process_fork", "who a new process descends from"),
    Probe("on_exit", "sched_process_exit", "the end of a process, by its last thread"),
    Probe("on_cgroup_mkdir", "cgroup_mkdir", "a container's cgroup at its birth"),
    Probe("on_cgroup_rmdir", "cgroup_rmdir", "and at its end"),
)

GUARDS: Final = (
    Guard("guard_sock_create", CGROUP_SOCK, 2, "socket(2) of a protocol that is not allowed"),
    Guard("guard_bind4", CGROUP_SOCK_ADDR, 8, "bind(2) of an IPv4 socket"),
    Guard("guard_bind6", CGROUP_SOCK_ADDR, 9, "bind(2) of an IPv6 socket"),
    Guard("guard_connect4", CGROUP_SOCK_ADDR, 10, "connect(2) of an IPv4 socket"),
    Guard("guard_connect6", CGROUP_SOCK_ADDR, 11, "connect(2) of an IPv6 socket"),
    Guard("guard_sendmsg4", CGROUP_SOCK_ADDR, 14, "a datagram to an IPv4 address"),
    Guard("guard_sendmsg6", CGROUP_SOCK_ADDR, 15, "a datagram to an IPv6 address"),
    Guard(
        "guard_egress",
        CGROUP_SKB,
        1,
        "a packet of a socket whose sends ask nobody: raw, ping, SCTP; of any, one with a source route",
    ),
)

LISTENERS: Final = (
    Guard("hear_question", CGROUP_SKB, 1, "a question to a name server, so that its answer is known"),
    Guard("hear_answer", CGROUP_SKB, 0, "what a name server answers"),
)
"""Attached by the loader to the root of cgroup v2, links pinned as links/`name`; `kernel.listening`. The sensor does without them where
they cannot be attached."""

HOPS: Final = (
    "none", "call", "open", "paths", "path_text", "mount", "socket", "address", "listen", "accept", "send", "identity",
    "join", "walk", "again", "store", "adopt", "adopted", "fork", "exec", "script", "enforce", "ascend", "decide", "sent", "query", "finish",
    "foreign", "text", "uring",
)  # fmt: skip
"""Steps reached by tail call; the position is the index in the `hops` map, the C function is `hop_NAME`."""

CALL_HOPS: Final = (
    "call", "open", "paths", "path_text", "mount", "socket", "address", "listen", "accept", "send", "identity", "sent", "query",
    "foreign", "text", "uring",
)  # fmt: skip
"""Hops that only system calls take: not needed at the tracepoints when calls are seen at the kernel's functions (`call_exits`)."""

PROCESS_HOPS: Final = ("fork", "exec", "script")
"""Hops that no system call takes."""

ENFORCING: Final = ("enforce", "ascend", "decide", "uring")
"""Hops only the signal backend needs: where the verifier refuses one, `finish` takes its place and nobody is stopped."""

TABLES: Final = (
    KernelMap("occurrences", "ring buffer", "-", "occurrence", "kernel", "what happened, one fixed record each"),
    KernelMap("definitions", "ring buffer", "-", "definition + bytes", "kernel", "what ids mean, sent once"),
    KernelMap("behaviours", "lru hash", "u64 id", "u64 1", "kernel; the agent deletes", "behaviours announced already"),
    KernelMap("recent", "array", "u32 slot", "u64 id + generation", "kernel", "behaviours found announced in this generation"),
    KernelMap("strings", "lru hash", "u64 id", "u64 1", "kernel; the agent deletes", "texts announced already"),
    KernelMap("processes", "lru hash", "u32 tgid", "image", "kernel; the agent deletes", "who acts"),
    KernelMap("losses", "per-cpu array", "u32 Loss", "u64", "kernel", "what could not be said"),
    KernelMap("budgets", "lru hash", "u64 cgroup id, ~0: the node", "budget", "kernel", "new names asked for, by whom; events lost"),
    KernelMap("quiet", "lru hash", "quiet_key", "u64 1", "agent", "directories whose new names nobody asks for"),
    KernelMap("sequences", "per-cpu array", "u32 0", "u64", "kernel", "last sequence number of each cpu"),
    KernelMap("config", "array", "u32 Config", "u64", "loader, agent", "layout hash, hash key, default visibility"),
    KernelMap("calls", "array", "u32 row", "call", "loader", "which calls are watched, and their arguments"),
    KernelMap("excluded", "hash", "u32 tgid", "u32 1", "agent", "processes neither reported nor stopped"),
    KernelMap("scopes", "hash", "u64 cgroup id", "scope", "agent, enforcer; kernel for new cgroups", "visibility and rule table"),
    KernelMap("kinship", "array", "u32 slot", "u64 check + u64 cgroup id", "kernel", "nearest ancestor with a scope, for one generation"),
    KernelMap("rules", "hash", "rule_key", "rule", "enforcer", "path rules of the signal backend"),
    KernelMap("net_rules", "lpm trie", "net_key", "rule", "enforcer", "network rules of the cgroup backend"),
    KernelMap("notes", "lru hash", "u64 pid_tgid", "note", "kernel", "what a call has reported, or a guard knows of it, before it ends"),
    KernelMap("questions", "lru hash", "u64 socket cookie << 16 + id", "u64 boot time ns", "kernel", "questions for names that have no answer yet"),
    KernelMap("hops", "program array", "u32", "program", "loader", "steps of an event"),
)  # fmt: skip

UNPINNED: Final = ("scratch",)
"""Maps that only the programs use: nobody opens them, so they have no pin."""


def source() -> str:
    """The C text handed to BCC, whole. BCC rewrites map accesses in its main file only, so the files are joined, not
    included; `#line` keeps messages pointing at the real ones."""
    parts = []
    for name in SOURCES:
        path = PROGRAM_DIRECTORY / f"{name}.c"
        if path.exists():
            parts.append(f'#line 1 "{path.name}"\n{path.read_text()}')
    return "\n".join(parts)
