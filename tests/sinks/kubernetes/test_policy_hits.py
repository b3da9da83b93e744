# SPDX-License-Identifier: Apache-2.0
"""Alerts are counted for the policy they are of, and many blocked operations become one sentence."""

from __future__ import annotations

import itertools

import msgspec
import pytest

from bus.contract import Delivery, Record
from schemas.alert import Alert, encode_alert
from schemas.errors import DecodeError
from schemas.topics import ALERTS
from sinks.kubernetes.policy_hits import AlertCounts, counted_up_to

KSP, CSP, HSP = "KubeArmorPolicy/shop/no-udp", "KubeArmorClusterPolicy//no-udp", "KubeArmorHostPolicy//host"


def alert(
    policy: str = "no-udp", namespace: str = "shop", kind: str = "MatchedPolicy", action: str = "Block", **more: object
) -> bytes:
    return encode_alert(Alert(
        Timestamp=1, UpdatedTime="2026-11-28T10:00:00Z", PolicyName=policy, NamespaceName=namespace, Type=kind, Action=action,
        PodName="web-1", ProcessName="/usr/bin/curl", Operation="Network", Resource="udp", **more,
    ))  # fmt: skip


_offset = itertools.count()


def delivered(value: bytes, offset: int | None = None, at: int = 1000, partition: int = 0) -> Delivery:
    return Delivery(
        ALERTS, partition, next(_offset) if offset is None else offset, Record(b"w", value, timestamp_ms=at)
    )


def counted() -> AlertCounts:
    hits = AlertCounts()
    hits.know([KSP, CSP, HSP])
    return hits


@pytest.mark.parametrize(
    ("value", "key"),
    [
        (alert(), KSP), (alert(namespace="bank"), CSP), (alert("host", "", "MatchedHostPolicy"), HSP),
        (alert("other"), ""), (alert("DefaultPosture"), ""), (alert(Mode="shadow"), KSP),
    ],
)  # fmt: skip
def test_an_alert_counts_for_its_policy(value: bytes, key: str) -> None:
    assert counted().take(delivered(value)) == key


def test_counts_by_action_and_what_the_throttle_kept_back() -> None:
    hits = counted()
    for value in (alert(Count=3, Suppressed=4), alert(action="Audit"), alert(action="Audit (Block)"),
                  alert(kind="SystemEvent", action="", Suppressed=9)):  # fmt: skip
        hits.take(delivered(value))
    mine = hits.hits[KSP]
    assert (mine.blocked, mine.audited, mine.suppressed, mine.last) == (7, 2, 9, "2026-11-28T10:00:00Z")


def test_a_storm_is_one_sentence_for_each_window() -> None:
    hits = counted()
    for _ in range(5):
        hits.take(delivered(alert(Count=2)))
    assert hits.storms(11) == {}
    for _ in range(12):
        hits.take(delivered(alert()))
    found = hits.storms(10)
    assert found[KSP].sentence == "blocked 12 operations, of web-1 (12); one of them: /usr/bin/curl Network udp"
    assert hits.storms(1) == {}


def test_an_event_repeats_no_arguments() -> None:
    """Passwords are among them."""
    hits = counted()
    hits.take(delivered(encode_alert(Alert(
        Timestamp=1, UpdatedTime="2026-11-28T10:00:00Z", PolicyName="no-udp", NamespaceName="shop", Type="MatchedPolicy", Action="Block",
        PodName="web-1", ProcessName="/bin/sh",
        Operation="Process", Resource="/usr/bin/mysql -psecret",
    ))))  # fmt: skip
    assert hits.storms(1)[KSP].sentence.endswith("one of them: /bin/sh Process /usr/bin/mysql")


def test_what_is_no_alert_counts_for_nobody() -> None:
    with pytest.raises(DecodeError):
        counted().take(delivered(b"[]"))


def test_counts_of_policies_that_are_gone_are_forgotten() -> None:
    hits = counted()
    hits.take(delivered(alert()))
    hits.know([CSP])
    assert hits.hits == {}


def test_what_a_shadow_or_a_baseline_would_have_said_is_counted_apart() -> None:
    hits = counted()
    for mode in ("shadow", "baseline"):
        hits.take(delivered(alert(Mode=mode, Count=3)))
    assert (hits.hits[KSP].shadow, hits.hits[KSP].blocked, hits.hits[KSP].audited) == (6, 0, 0)
    assert hits.storms(1) == {}


def test_alerts_that_come_again_after_a_takeover_are_counted_once() -> None:
    """A replica that wrote its counts and was killed before it committed leaves them to be read again."""
    first = counted()
    for offset in range(5):
        first.take(delivered(alert(), offset, 1000 + offset))
    written = msgspec.structs.replace(first.hits[KSP])
    first.take(delivered(alert(), 0, 900, partition=3))
    second = counted()
    second.restart({KSP: written})
    taken = [second.take(delivered(alert(), offset, 1000 + offset)) for offset in range(2, 7)]
    assert taken == ["", "", "", KSP, KSP]
    assert second.take(delivered(alert(), 0, 900, partition=3)) == KSP, "its count was not written"
    assert second.hits[KSP].blocked == 8
    assert second.take(delivered(alert(), 0, 5000)) == KSP, "of a topic that was made anew"
    second.forget(KSP)
    assert second.take(delivered(alert(), 1, 1001)) == KSP


@pytest.mark.parametrize("text", ["", "x", "0=1", "0=1@2 y", "-1=2@3", "0=99999999999999999999999@1"])
def test_what_a_status_says_is_not_trusted_to_be_ours(text: str) -> None:
    assert counted_up_to(text) == {}
