# SPDX-License-Identifier: Apache-2.0
"""What a person sees: karmor's text, one line, JSON; colour only where it is wanted; no control over the terminal."""

from __future__ import annotations

import json
import os
import pty

import pytest

from schemas.alert import Alert
from sinks.console import ConsoleSettings, ConsoleSink
from sinks.formats import line_text

TEXT = """\
== Alert / 2023-11-14 22:14:00.000001 ==
ClusterName: default
HostName: node-1
NamespaceName: shop
PodName: web-1
Labels: app=web,tier=front
ContainerName: web
ContainerID: c0ffee
Type: MatchedPolicy
PolicyName: no-shadow
Severity: 7
Message: reads secrets
Source: /bin/cat /etc/shadow
Resource: /etc/shadow
Operation: File
Action: Audit
Data: syscall=SYS_OPENAT fd=-100 flags=O_RDONLY
EventData: map[Syscall:SYS_OPENAT]
Enforcer: eBPF Monitor
Result: Passed
EventID: node-1:boot:1
HostPID: 101
PID: 1
ParentProcessName: /bin/sh
ProcessName: /bin/cat
UID: 0
"""

LINE = "22:14:00.000 Audit File    shop/web-1 /bin/cat -> /etc/shadow [no-shadow sev 7] reads secrets\n"


async def shown(make, form="line", **fields):
    read, write = os.pipe()
    sink = ConsoleSink(ConsoleSettings(form=form), fd=write)
    await sink.send([make.alert(1, **fields)])
    os.close(write)
    try:
        return os.read(read, 65536).decode()
    finally:
        os.close(read)


async def test_text_is_karmors(make):
    assert await shown(make, "text") == TEXT


async def test_one_line(make):
    assert await shown(make) == LINE
    more = await shown(make, Result="Permission denied", Mode="shadow", Suppressed=3, Count=2, Action="Block")
    assert more.endswith(
        "(Permission denied) [no-shadow sev 7] reads secrets (shadow: nothing was enforced) (+3 suppressed) x2\n"
    )


def notice(**fields):
    return Alert(Timestamp=1, UpdatedTime="2023-11-14T22:14:00.000001Z", HostName="n", Type="SystemEvent", **fields)


def test_a_notice_is_no_alert_of_a_policy():
    lost = notice(Operation="EventsLost", Data="ring=7", Result="Passed", Message="the node lost part: ring=7")
    assert line_text.line(lost) == "22:14:00.000 Note  EventsLost n the node lost part: ring=7\n"
    storm = notice(Operation="AlertThreshold", PolicyName="p", NamespaceName="shop", PodName="web-1", MaxAlertsPerSec=10,
                   DroppingAlertsInterval=30, Enforcer="eBPF Monitor")  # fmt: skip
    assert line_text.line(storm) == (
        "22:14:00.000 Note  AlertThreshold shop/web-1 [p] more than 10 alerts a second: silent for 30 s\n"
    )
    storm.Suppressed = 4
    assert line_text.line(storm) == "22:14:00.000 Note  AlertThreshold shop/web-1 [p] silence is over (+4 suppressed)\n"
    assert line_text.line(lost, colour=True).startswith("22:14:00.000 \x1b[36mNote \x1b[0m EventsLost")
    assert line_text.line(notice(Operation="\x1b[2J")) == "22:14:00.000 Note  \\x1b[2J    n\n"


async def test_an_alert_of_no_policy_has_no_brackets(make):
    text = await shown(make, PolicyName="", Severity="", Message="stopped by an older plan")
    assert text.endswith("-> /etc/shadow stopped by an older plan\n")


async def test_json(make):
    assert json.loads(await shown(make, "json"))["PolicyName"] == "no-shadow"


@pytest.mark.parametrize("form", ["line", "text"])
async def test_a_workload_cannot_write_to_the_terminal(make, form):
    text = await shown(make, form, Resource="/tmp/\x1b[2J\x9b1m\r\n\u202eexe", Message="a\x00b")
    assert not any(bad in text for bad in "\x1b\x9b\r\x00\u202e")
    assert "/tmp/\\x1b[2J\\x9b1m\\x0d\\x0a\\u202eexe" in text


@pytest.mark.parametrize("form", ["line", "text"])
async def test_a_workload_cannot_hide_part_of_a_name(make, form):
    """As `hauberk get` shows them: line ends of Unicode, letters of no width, tags."""
    text = await shown(make, form, Resource="/tmp/a\u2028b\u200bc\ufeffd\U000e0021")
    assert r"/tmp/a\u2028b\u200bc\ufeffd\U000e0021" in text


def test_ordinary_text_of_any_language_is_left_alone():
    assert line_text.printable("/home/żółw/数据") == "/home/żółw/数据"


async def test_logs_have_their_own_header(make):
    from schemas.alert import Log

    log = Log(Timestamp=1, UpdatedTime="2023-11-14T22:14:00.000001Z", HostName="n", Operation="File", Resource="/x")
    assert line_text.block(log).startswith("== Log / 2023-11-14 22:14:00.000001 ==\nHostName: n\n")
    assert line_text.line(log) == "22:14:00.000 Log   File    n - -> /x\n"


async def test_colour_on_a_terminal_unless_told_otherwise(make, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    control, terminal = pty.openpty()
    try:
        for settings, environment, coloured in (
            (ConsoleSettings(), {}, True),
            (ConsoleSettings(), {"NO_COLOR": "1"}, False),
            (ConsoleSettings(colour="never"), {}, False),
            (ConsoleSettings(colour="always"), {"NO_COLOR": "1"}, True),
        ):
            with monkeypatch.context() as patch:
                for key, value in environment.items():
                    patch.setenv(key, value)
                await ConsoleSink(settings, fd=terminal).send([make.alert(1)])
            # A terminal hands over what it has: perhaps a piece of the line, and the rest to the next read.
            line = b""
            while not line.endswith(b"\n"):
                line += os.read(control, 65536)
            assert (b"\x1b[33mAudit\x1b[0m" in line) is coloured
    finally:
        os.close(control)
        os.close(terminal)
