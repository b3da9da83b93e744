# SPDX-License-Identifier: Apache-2.0
"""`records.h` of the kernel programs: every layout, enum and size of `schemas.kernel` as C. Pure; printed when they are loaded."""

from __future__ import annotations

from schemas.kernel import (
    LAYOUTS,
    NET_FIXED_BITS,
    STRING_LIMIT,
    Config,
    DefinitionKind,
    Direction,
    Loss,
    ProcessFlag,
    RuleAction,
    RuleFlag,
    RuleKind,
    ScopeFlag,
)  # fmt: skip
from schemas.lsm import ACTOR_UNKNOWN, HookCount, TableFlag
from schemas.operations import Access, Backend, Class, Operation
from schemas.syscalls import ENTRIES
from schemas.wakeup import CALLS, Sleep
from schemas.watched import ROOT, Mark


def c_header() -> str:
    """`records.h`: every layout, enum and size as C. Printed at load time, never stored."""
    parts = ["/* printed by schemas.c_header; not to be edited */", "#pragma once"]
    parts += [layout.c_struct() for layout in LAYOUTS]
    for prefix, members in (
        ("OP", Operation), ("ACCESS", Access), ("BACKEND", Backend), ("DEFINE", DefinitionKind), ("LOSS", Loss),
        ("CLASS", Class), ("PROCESS", ProcessFlag), ("SCOPE", ScopeFlag), ("RULE", RuleKind), ("ACTION", RuleAction),
        ("FLAG", RuleFlag), ("DIRECTION", Direction), ("CONFIG", Config), ("MARK", Mark),
        ("SLEEP", Sleep),
        ("TABLE", TableFlag), ("COUNT", HookCount),
    ):  # fmt: skip
        parts += [f"#define {prefix}_{member.name} {member.value}" for member in members]
    numbers = {
        "STRING_LIMIT": STRING_LIMIT,
        "NET_FIXED_BITS": NET_FIXED_BITS,
        "FD_ROOT": ROOT,
        "TOLD_CALLS": CALLS,
        "ACTOR_UNKNOWN": ACTOR_UNKNOWN,
    } | ENTRIES
    parts += [f"#define {name} {value}" for name, value in numbers.items()]
    return "\n".join(parts) + "\n"
