# SPDX-License-Identifier: Apache-2.0
"""Records of the audit stream: AppArmor's denials, whatever a workload puts into its names. Live: `tests/enforcers/test_apparmor.py`."""

from __future__ import annotations

import pytest

from kernel.audit import AuditDenial, parse

OPEN = (
    'audit(1795904967.127:5): apparmor="DENIED" operation="open" profile="hauberk-x" name="/etc/shadow" pid=153 comm="cat" '
    'requested_mask="r" denied_mask="r" fsuid=0 ouid=0'
)


def test_a_denial() -> None:
    assert parse(OPEN) == AuditDenial("hauberk-x", "open", "/etc/shadow", 153, "cat", "r", 5, 1795904967.127)


def test_names_that_are_not_plain_come_in_hexadecimal() -> None:
    text = '/a "b"\n\udcff'
    there = OPEN.replace('"/etc/shadow"', text.encode("utf-8", "surrogateescape").hex().upper())
    made = parse(there)
    assert made is not None
    assert made.name == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        'audit(1.0:1): apparmor="STATUS" operation="profile_load" name="hauberk-x" pid=1',
        'audit(1.0:1): avc:  denied  { read } for pid=1 comm="x"',
        'apparmor="DENIED" operation="open"',
    ],
)
def test_what_denies_nothing_is_none(text: str) -> None:
    assert parse(text) is None


def test_a_record_that_was_cut_keeps_what_it_has() -> None:
    made = parse(OPEN[: OPEN.index(" pid=")])
    assert made is not None
    assert (made.name, made.pid, made.mask) == ("/etc/shadow", 0, "")
