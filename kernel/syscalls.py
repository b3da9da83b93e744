# SPDX-License-Identifier: Apache-2.0
"""The `calls` map of the kernel programs, from the tables in `schemas/syscalls.py` and `schemas/watched.py`.

One row per entry of the kernel: the native number, and on x86-64 the numbers of the 32-bit entries. Must never decide policy.
"""

from __future__ import annotations

import platform

from schemas.kernel import CALL
from schemas.operations import class_of
from schemas.syscalls import I386_FIRST, SOCKETCALL, SOCKETCALL_FIRST, number, rows
from schemas.watched import CALLS, MARKED, NARROW, Mark


def call_records(hops: dict[str, int], machine: str = platform.machine()) -> list[tuple[int, bytes]]:
    """(row, CALL record) of every watched call. `hops`: index of each handler in the `hops` program array."""
    found: dict[int, tuple[str, Mark]] = {}
    for name in CALLS:
        for row in rows(name, machine):
            foreign = row >= I386_FIRST
            found[row] = (name, MARKED.get(name, Mark(0)) | (Mark.NARROW if foreign and name in NARROW else Mark(0)))
    records = []
    # A native row that is not watched still says that the same number of the 32-bit table is.
    twins = {row - I386_FIRST for row in found if I386_FIRST <= row < SOCKETCALL_FIRST}
    if twins:
        twins.add(SOCKETCALL)
    for row in sorted(found.keys() | twins):
        name, marks = found.get(row, ("", Mark(0)))
        if row in twins:
            marks |= Mark.FOREIGN
        records.append((row, _record(hops, name, marks, machine)))
    return records


def _record(hops: dict[str, int], name: str, marks: Mark, machine: str) -> bytes:
    if not name:
        return CALL.struct.pack(0, 0, 0, 0, *([255] * 8), 0, marks, 0, 0, 0)
    call = CALLS[name]
    return CALL.struct.pack(
        hops[call.hop], class_of(call.operation), call.operation, call.access, call.path, call.dirfd, call.path2,
        call.dirfd2, call.fd, call.flags, call.arg0, call.arg1, number(name, machine) or 0, marks, 0, 0, 0,
    )  # fmt: skip
