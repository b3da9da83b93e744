# SPDX-License-Identifier: Apache-2.0
"""One line at once, then one each interval with a count."""

from __future__ import annotations

import logging

import pytest
from waiting import until

from bus.paced_log import PacedLog


async def test_a_flood_is_two_lines(caplog: pytest.LogCaptureFixture) -> None:
    paced = PacedLog(logging.getLogger("test.paced"), 0.05)
    with caplog.at_level(logging.WARNING, "test.paced"):
        for number in range(1000):
            paced.say(logging.WARNING, f"bad {number}")
        assert [record.getMessage() for record in caplog.records] == ["bad 0"]
        await until(lambda: len(caplog.records) > 1)
        assert caplog.records[1].getMessage() == "bad 999 (the newest of 999 such lines in 0.05 s)"
        await until(lambda: not paced._silent)
        paced.say(logging.WARNING, "again")
    assert caplog.records[-1].getMessage() == "again"
