# SPDX-License-Identifier: Apache-2.0
"""The survey tells a missing capability from a missing feature, and promises no backend that this version does not have."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernel.features import by_name, survey

ROOT = Path(__file__).parents[2]
ASK = "from kernel.features import survey\nfor one in survey(): print(one.name, '|', one.available, '|', one.why)"
LOADED = (
    "raw tracepoints",
    "ring buffer",
    "LRU hash",
    "LPM trie",
    "bpf_send_signal",
    "cgroup socket programs",
    "fexit",
)


def test_without_capabilities_every_refusal_says_so() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to drop capabilities")
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"]
    done = subprocess.run(
        [*drop, sys.executable, "-c", ASK], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    rows = {name.strip(): why for name, _, why in (line.split("|", 2) for line in done.stdout.splitlines())}
    for name in LOADED:
        assert "run as root or with CAP_BPF and CAP_PERFMON" in rows[name], (name, rows[name])
    assert "5.8" not in done.stdout


def test_socket_programs_name_the_capability_of_their_own() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to drop capabilities")
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin,-sys_admin", sys.executable, "-c", ASK],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("cgroup socket programs"))
    if " True " not in row:
        assert "CAP_NET_ADMIN" in row or "CAP_BPF and CAP_PERFMON" in row


@pytest.mark.kernel
def test_lsm_programs_are_offered_by_effect_alone() -> None:
    """Available: a call of this process was denied by one. Else: what it means, and what to do where something can be done."""
    offered = by_name(survey())["LSM programs"]
    assert "`bpf-lsm` enforcement" in offered.why
    assert offered.available == offered.why.startswith("`bpf-lsm`")
    assert offered.available or offered.why.startswith("no ")
