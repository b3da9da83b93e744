# SPDX-License-Identifier: Apache-2.0
"""Words that the LSM hooks and their enforcer share, beside the layouts of `schemas.kernel`. Printed for C by `schemas.c_header`."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final


class TableFlag(IntFlag):
    """`flags` of a table's header, the rule under path 0 and class 0; its `action` has a bit for each depth at which some directory
    has a rule (bit 31: that deep or deeper). HAS_*: operations of the class are asked about at all. WHITELIST_*: what no rule of
    the class matches is denied. CLOSED: so is what no rule can be asked about. SOURCES, NAMES, GUARDS: some rule is limited to a
    source, some is an EXECNAME, some directory may not be renamed. FILELESS, ANONYMOUS, ENVIRON, PROC, SESSION: the presets filelessExec,
    anonymousMapExec, protectEnv, protectProc and exec deny. MOUNTS: nothing is mounted, no root changed, no user namespace made.
    PATTERNS: there is a machine, whose first cell is the header's `index`. SHADOW: nothing is denied, what would be is counted and told.
    ACTORS: some source is a directory or a pattern, and there is a machine for executables, the header's `rank` cells behind `index`."""

    HAS_PROCESS = 1
    HAS_FILE = 2
    HAS_NETWORK = 4
    WHITELIST_PROCESS = 8
    WHITELIST_FILE = 16
    WHITELIST_NETWORK = 32
    CLOSED = 64
    SOURCES = 128
    NAMES = 256
    GUARDS = 512
    HAS_CAPABILITIES = 1024
    WHITELIST_CAPABILITIES = 2048
    FILELESS = 4096
    ANONYMOUS = 8192
    ENVIRON = 16384
    PROC = 32768
    SESSION = 65536
    MOUNTS = 131072
    PATTERNS = 262144
    SHADOW = 524288
    ACTORS = 1048576


ACTOR_UNKNOWN: Final = 0xFFFFFFFF
"""`rule_key.source` of what denies whoever acts by an executable whose path is not known any more; below it are the sets that the machine
for executables accepts."""


class HookCount(IntEnum):
    """Index into the `lsm_counts` map: what the hooks did since they were loaded."""

    DENIED = 0
    UNRESOLVED = 1
    """Paths that could not be resolved."""
    ELSEWHERE = 2
    """Files whose mount hangs in no mount namespace, or in another than the task's."""
    NO_SCRATCH = 3
    """Nothing to work in: as many tasks of one processor were inside hooks already."""
    CLAIM_LOST = 4
    """Two tasks worked in one scratch, so the answer is not known."""
    NO_HEADER = 5
    """A scope named a table that was not there; denied."""
    SHADOWED = 6
    """Denied by a table that is a shadow: the call went on."""
    NO_ACTOR = 7
    """Executables whose path was asked for by a rule and was not known any more."""
