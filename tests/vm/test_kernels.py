# SPDX-License-Identifier: Apache-2.0
"""The kernel suites in Debian's kernels: a file that passes here on the machine's own kernel passes there too."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
from vmrig.kernels import SOURCES
from vmrig.machine import CHECKOUT

CHOSEN = tuple(
    f"tests/enforcers/test_{name}.py"
    for name in ("apparmor", "bpf_lsm", "from_birth", "host_policies", "lsm_attacks", "lsm_hooks")
)
"""What skips on most machines that run this: backends of security modules."""
EVERYTHING = tuple(
    str(path.relative_to(CHECKOUT))
    for room in ("kernel", "enforcers", "attacks")
    for path in sorted((CHECKOUT / "tests" / room).glob("test_*.py"))
)
ALL = os.environ.get("HAUBERK_TEST_VM") == "all"
FILES = EVERYTHING if ALL else CHOSEN
SERIES = tuple(SOURCES) if ALL else ("6.1",)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("series", SERIES)
def test_passes_in(series: str, file: str, results: Callable[[str], dict[str, list[Any]]]) -> None:
    found = results(series).get(file, [])
    bad = [outcome for outcome in found if outcome.kind in ("failure", "error")]
    assert not bad, "\n\n".join(f"{outcome.name}: {outcome.text}" for outcome in bad)
    skipped = [outcome for outcome in found if outcome.kind == "skipped"]
    if found and len(skipped) == len(found):
        pytest.skip(f"all {len(found)} tests skip in {series}: {skipped[0].text.splitlines()[0]}")
    assert found, f"no test of {file} ran in {series}"
