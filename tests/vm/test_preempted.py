# SPDX-License-Identifier: Apache-2.0
"""Whether a kernel preempts programs of functions, booted both ways: where it does, calls stay with the tracepoint and the reason is said.

With `make test-vm` alone: each case is a boot. That a kernel which does not is used so, `tests/kernel/test_call_exits.py` asks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from vmrig.kernels import SOURCES
from vmrig.machine import CHECKOUT, Guest

PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
ASK = """
import json
from kernel import call_exits
from kernel.features import call_functions
print(json.dumps({"why": call_exits.functions()[1], "feature": call_functions().why}))
"""


@pytest.mark.skipif(os.environ.get("HAUBERK_TEST_VM") != "all", reason="boots a kernel for each case: make test-vm")
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("series", SOURCES)
@pytest.mark.parametrize("privileged", [True, False], ids=["real-time", "without"])
@pytest.mark.parametrize("mode", ["full", "none"])
def test_a_kernel_that_preempts_is_found_out(
    series: str, mode: str, privileged: bool, kernels: Callable[[str], Any]
) -> None:
    guest = Guest(kernels(series), template=False, parameters=f"preempt={mode}")
    command = [PYTHON, "-c", ASK]
    if not privileged:
        command = ["setpriv", "--bounding-set=-sys_nice", *command]
    try:
        status, out = guest.run(command, seconds=600, PYTHONPATH=str(CHECKOUT))
    finally:
        guest.off()
    assert status == 0, out
    said = json.loads(out.splitlines()[-1])
    if mode == "none":
        assert said["why"] == ""
        assert "the others run no program" in said["feature"]
    else:
        assert "this kernel preempts such programs" in said["why"]
        assert "a tracepoint sees system calls" in said["feature"]
