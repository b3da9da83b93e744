# SPDX-License-Identifier: Apache-2.0
"""The kernel suites in Debian's kernels: a file that passes here on the machine's own kernel passes there too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from vmrig.kernels import SOURCES
from vmrig.machine import CHECKOUT

CHOSEN = {
    "6.1": ("kernel/test_bpf", "enforcers/test_bpf_lsm", "enforcers/test_lsm_hooks", "enforcers/test_lsm_shadow"),
    "6.12": ("kernel/test_bpf", "enforcers/test_apparmor", "enforcers/test_lsm_capabilities"),
}
"""What skips on most machines that run this, the backends of security modules, in one kernel each: a load of the hooks alone takes a
minute of processor time there. Of `kernel/` the file about bpf(2) alone: a load of the sensor's programs would take a minute more. The rest
of it, the attacks, births, host policies, mixed fleets and programs of functions are with `make test-vm`: to
attach and detach some 280 functions has stopped an emulated 6.12 once (rcu_tasks_rude and the workers of a processor hung)."""
EVERYTHING = tuple(
    str(path.relative_to(CHECKOUT))
    for room in ("kernel", "enforcers", "attacks")
    for path in sorted((CHECKOUT / "tests" / room).glob("test_*.py"))
)
ALL = os.environ.get("HAUBERK_TEST_VM") == "all"
ASKED = (
    [(series, file) for series in SOURCES for file in EVERYTHING]
    if ALL
    else [(series, f"tests/{name}.py") for series, names in CHOSEN.items() for name in names]
)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("series", "file"), ASKED)
def test_passes_in(series: str, file: str, results: Callable[[str], dict[str, list[Any]]]) -> None:
    found = results(series).get(file, [])
    bad = [outcome for outcome in found if outcome.kind in ("failure", "error")]
    assert not bad, "\n\n".join(f"{outcome.name}: {outcome.text}" for outcome in bad)
    skipped = [outcome for outcome in found if outcome.kind == "skipped"]
    if found and len(skipped) == len(found):
        pytest.skip(f"all {len(found)} tests skip in {series}: {skipped[0].text.splitlines()[0]}")
    assert found, f"no test of {file} ran in {series}"
