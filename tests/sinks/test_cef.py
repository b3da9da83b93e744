# SPDX-License-Identifier: Apache-2.0
"""CEF lines as receivers read them."""

from __future__ import annotations

import re
from importlib.metadata import version

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.alert import Alert, Log
from sinks.formats.cef import cef


def parse(line: str) -> tuple[list[str], dict[str, str]]:
    """As ArcSight's guide says: split on unescaped pipes, then on `key=` with unescaped equals."""
    parts = re.split(r"(?<!\\)(?:\\\\)*\|", line, maxsplit=7)
    keys = list(re.finditer(r"(?:^| )([A-Za-z0-9]+)=", re.sub(r"\\.", "..", parts[7])))
    ends = [key.start() for key in keys[1:]] + [len(parts[7])]
    unescape = {"\\n": "\n", "\\r": "\r", "\\=": "=", "\\\\": "\\"}
    values = {
        key[1]: re.sub(r"\\.", lambda match: unescape[match[0]], parts[7][key.end() : end])
        for key, end in zip(keys, ends, strict=True)
    }
    return parts[:7], values


def test_a_file_alert(make):
    head, fields = parse(cef(make.alert(1, Tags="NIST,SI-4"), "0.1"))
    assert head == ["CEF:0", "Hauberk", "hauberk", "0.1", "no-shadow", "reads secrets", "7"]
    assert fields["rt"].endswith("000")
    expected = {
        "externalId": "node-1:boot:1", "act": "audited", "outcome": "success", "cat": "File", "filePath": "/etc/shadow",
        "fname": "shadow", "sproc": "/bin/cat", "spid": "101", "suid": "0", "cs1Label": "policy", "cs1": "no-shadow",
        "cs2": "shop", "cs3": "web-1", "cs4Label": "containerId", "cs6": "NIST,SI-4", "dvchost": "node-1", "cnt": "1",
    }  # fmt: skip
    assert {key: fields[key] for key in expected} == expected
    assert "reason" not in fields


@pytest.mark.parametrize("mode", ["shadow", "baseline"])
def test_that_nothing_was_enforced_is_said(make, mode):
    fields = parse(cef(make.alert(1, Mode=mode)))[1]
    assert (fields["flexString1Label"], fields["flexString1"]) == ("mode", mode)
    assert "flexString1" not in parse(cef(make.alert(1)))[1]


def test_a_blocked_process(make):
    alert = make.alert(
        1, Operation="Process", Action="Block", Result="Permission denied", Resource="/bin/x a=b", ProcessName="/bin/x",
        HostPPID=7, Severity="", Message="",
    )  # fmt: skip
    head, fields = parse(cef(alert))
    assert head[4:] == ["no-shadow", "Process block", "6"]
    expected = {
        "act": "blocked", "outcome": "failure", "reason": "Permission denied", "sproc": "/bin/sh", "spid": "7",
        "dproc": "/bin/x", "dpid": "101", "request": "/bin/x a=b",
    }  # fmt: skip
    assert {key: fields[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("data", "address", "expected"),
    [
        ("kprobe=tcp_connect", "10.0.0.1", {"dst": "10.0.0.1", "dpt": "443", "deviceDirection": "1", "proto": "TCP"}),
        ("kprobe=tcp_accept", "10.0.0.1", {"src": "10.0.0.1", "spt": "443", "deviceDirection": "0"}),
        ("kprobe=tcp_connect", "fe80::1", {"c6a3": "fe80::1", "c6a3Label": "Destination IPv6 Address", "dpt": "443"}),
    ],
)
def test_the_network(make, data, address, expected):
    alert = make.alert(
        1, Operation="Network", Data=data, RemoteAddress=address, RemotePort=443, EventData={"Protocol": "TCP"}
    )
    _, fields = parse(cef(alert))
    assert {key: fields[key] for key in expected} == expected


def test_a_log(make):
    head, fields = parse(cef(Log(Timestamp=1, UpdatedTime="", Operation="Syscall", Resource="x", Type="HostLog")))
    assert head[4:] == ["Syscall", "Syscall seen", "0"]
    assert fields["request"] == "x"
    assert "act" not in fields


@given(st.text(alphabet="a\\|=\n\r ", max_size=20).map(lambda text: f"/{text}x"))
def test_every_text_comes_back(make, text):
    line = cef(make.alert(1, Resource=text, Message=text))
    assert "\n" not in line
    assert "\r" not in line
    if not re.search(r" a+=", text):
        _, fields = parse(line)
        assert fields["filePath"] == text


@pytest.mark.parametrize("code", [0, 7, 0x1B, 0x7F, 0x9B, 0x202E])
def test_no_control_character_reaches_the_receiver(make, code):
    text = f"/tmp/{chr(code)}[31mx"
    line = cef(make.alert(1, Resource=text, Message=text, PolicyName=text))
    assert chr(code) not in line
    head, fields = parse(line)
    shown = f"\\u{code:04x}" if code > 255 else f"\\x{code:02x}"
    assert fields["filePath"] == f"/tmp/{shown}[31mx"
    assert shown in head[5].replace("\\\\", "\\")


def test_the_header_names_the_version_that_tells_it():
    line = cef(Alert(Timestamp=1, UpdatedTime="1970-01-01T00:00:01.000000Z", Operation="File"))
    assert line.split("|")[3] == version("hauberk")
