# SPDX-License-Identifier: Apache-2.0
"""Kernels that ask no LSM programs, booted: each says why in one sentence with what to do, and the policy is told as not held.

With `make test-vm` alone: each case is a boot and a load of the programs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from vmrig.kernels import SOURCES
from vmrig.machine import CHECKOUT, Guest
from vmrig.programs import HOOKED, precompile

PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
ASK = """
import json, os, sys
import msgspec
from enforcers.apply import Applier
from kernel.features import by_name, lsm_programs, survey
from kernel.loading import LoadSettings, load, mount_bpffs, unload
from schemas.enforcement import PathRule, Plan, ScopePlan
from schemas.operations import Class
from schemas.verdict import Action, RuleRef

pins, box = "/sys/fs/bpf/booted", "/sys/fs/cgroup/booted"
mount_bpffs("/sys/fs/bpf")
os.makedirs(box)
said = {"probe": lsm_programs().why, "load": "", "watched": by_name(survey())["raw tracepoints"].why}
try:
    said["load"] = load(msgspec.convert(json.loads(sys.argv[1]) | {"timeout": 1200.0}, LoadSettings), pins).refused.get("lsm", "")
except Exception as error:
    said["load"] = str(error)
rule = PathRule(cls=Class.FILE, match="path", value="/etc/hostname", action=Action.BLOCK, ref=RuleRef("held"))
scope = ScopePlan(uid="u", cgroups=(os.stat(box).st_ino,), cgroup_path="/booted", paths=(rule,))
applier = Applier(pins, "n", ("bpf-lsm",), grace=0.0)
receipt = applier.apply(Plan(node="n", generation=1, digest="d", scopes=(scope,)))
(said["problem"],) = (one.problem for one in receipt.in_force)
said |= {"failed": " ".join(receipt.failed), "rules": receipt.rules, "refused": [one.ref.policy for one in receipt.refused]}
applier.close()
unload(pins)
print(json.dumps(said))
"""


@pytest.mark.skipif(os.environ.get("HAUBERK_TEST_VM") != "all", reason="boots a kernel for each case: make test-vm")
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("series", SOURCES)
@pytest.mark.parametrize(
    ("parameters", "why"),
    [
        ("lsm=capability,apparmor", ",bpf"),
        ("lsm=lockdown,capability,bpf lockdown=confidentiality", "boot with `lockdown=integrity` or without it"),
    ],
)
def test_a_kernel_that_does_not_ask_says_why(
    series: str, parameters: str, why: str, kernels: Callable[[str], Any]
) -> None:
    found = kernels(series)
    precompile(found)
    guest = Guest(found, template=False, parameters=parameters)
    try:
        status, out = guest.run([PYTHON, "-c", ASK, json.dumps(HOOKED)], seconds=1800, PYTHONPATH=str(CHECKOUT))
    finally:
        guest.off()
    assert status == 0, out
    said = json.loads(out.splitlines()[-1])
    assert "boot with" in said["probe"]
    assert "boot with" in said["load"]
    assert ("boot with" in said["watched"]) is ("confidentiality" in parameters)
    assert why in said["problem"]
    assert "nothing is enforced" in said["failed"]
    assert (said["rules"], said["refused"]) == (0, ["held"])
