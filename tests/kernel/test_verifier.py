# SPDX-License-Identifier: Apache-2.0
"""What the verifier has to go through for each program: that is most of a start."""

from __future__ import annotations

import os
import struct

import pytest

from kernel import bpf
from kernel.catalogue import GUARDS, HOPS, LISTENERS, PROBES
from kernel.loading import LoadedPrograms

pytestmark = pytest.mark.kernel

GET_FD_BY_ID = 13
"""BPF_PROG_GET_FD_BY_ID."""
MOST = 400_000
"""Of one program: 275,000 and 349,000 are the largest, on Linux 6.18. One state too many in a loop doubles them."""
MOST_OF_A_GUARD = 80_000
"""There are eight of them, and their paths are the same: 37,000 to 67,000 each. They took 184,000 to 414,000 once."""
MOST_OF_ALL = 2_500_000


def verified(loaded: LoadedPrograms) -> dict[str, int]:
    """Instructions by program: what is pinned, and the hops of its program arrays."""
    pinned = [
        each.name for each in (*PROBES, *GUARDS, *LISTENERS) if not loaded.functions or each.name != "on_sys_exit"
    ]
    programs = {name: loaded.program(name) for name in pinned}
    for array, names in arrays(loaded).items():
        with loaded.map(array) as hops:
            for index, name in enumerate(names, 1):
                value = hops.get(struct.pack("=I", index))
                assert value is not None, name
                programs[f"{array} {name}"] = bpf.check(GET_FD_BY_ID, value.ljust(12, b"\0"), name)
    try:
        return {name: bpf.program_verified(fd, name) for name, fd in programs.items()}
    finally:
        for fd in programs.values():
            os.close(fd)


def arrays(loaded: LoadedPrograms) -> dict[str, tuple[str, ...]]:
    """Program array -> what it holds, from 1 on."""
    if not loaded.functions:
        return {"hops": HOPS[1:]}
    return {"hops": HOPS[1:], "call_hops_0": (*HOPS[1:], "on_sys_exit")}


def test_no_program_costs_the_verifier_too_much(loaded: LoadedPrograms) -> None:
    counts = verified(loaded)
    if not any(counts.values()):
        pytest.skip("this kernel does not say how much it verified (before Linux 5.16)")
    assert min(counts.values()) > 0
    guards = {guard.name: counts[guard.name] for guard in GUARDS}
    assert max(guards.values()) < MOST_OF_A_GUARD, guards
    assert max(counts.values()) < MOST, counts
    assert sum(counts.values()) < MOST_OF_ALL * len(arrays(loaded)), counts
