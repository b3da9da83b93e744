# SPDX-License-Identifier: Apache-2.0
"""Descriptors kept aside are there when all others are taken."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kernel.descriptors import DescriptorReserve

EXHAUSTED = """
import errno, os, resource
from kernel.descriptors import DescriptorReserve
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
reserve = DescriptorReserve(8)
assert reserve.held == 8, reserve.held
taken = []
try:
    while True:
        taken.append(os.open("/dev/null", os.O_RDONLY))
except OSError as error:
    assert error.errno == errno.EMFILE
with reserve.lent():
    mine = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    for one in mine:
        os.close(one)
assert reserve.held == 8, reserve.held
with reserve.lent():
    kept = os.open("/dev/null", os.O_RDONLY)
assert reserve.held == 7, reserve.held
os.close(kept)
with reserve.lent():
    pass
assert reserve.held == 8, reserve.held
print("held")
"""
RAISED = """
import resource
from kernel.descriptors import raise_limit
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(64, soft), hard))
assert raise_limit() == hard
assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
print("raised")
"""


@pytest.mark.parametrize(("program", "said"), [(EXHAUSTED, "held\n"), (RAISED, "raised\n")])
def test_in_a_process_of_its_own(program: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (said, "")


def test_closing_twice_is_once() -> None:
    reserve = DescriptorReserve(3)
    first = reserve.held
    reserve.close()
    reserve.close()
    assert (first, reserve.held) == (3, 0)
