# SPDX-License-Identifier: Apache-2.0
"""Clocks of the API server and of this process that differ are told once, by the date of its answers."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest

from cluster.credentials import Credentials
from cluster.server import CLOCK_OFF, Server
from cluster.settings import ServerSettings


@pytest.mark.parametrize("ahead", [-3600, 3600])
def test_a_clock_that_is_off_is_told_once_and_again_when_it_is_otherwise_off(
    caplog: pytest.LogCaptureFixture, ahead: int
) -> None:
    credentials = Credentials(ServerSettings())
    credentials.where = "https://x"
    server = Server(credentials, ServerSettings())
    for date in ("", "no date", formatdate(time.time(), usegmt=True)):
        server._compare(date)
    assert caplog.messages == []
    for _ in range(3):
        server._compare(formatdate(time.time() + ahead, usegmt=True))
    (told,) = caplog.messages
    assert "expected the clock of the API server https://x within 10 s" in told
    assert "set the clocks right (NTP)" in told
    assert abs(server.clock_off - ahead) < CLOCK_OFF
    server._compare(formatdate(time.time(), usegmt=True))
    server._compare(formatdate(time.time() + ahead, usegmt=True))
    assert len(caplog.messages) == 2
