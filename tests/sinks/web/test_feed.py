# SPDX-License-Identifier: Apache-2.0
"""Rows to what the page shows: nothing is lost without a number, everything is sorted by what wants looking at."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.identity import Kind
from schemas.operations import Class, Operation
from schemas.verdict import RuleRef
from sinks.formats import summary_tables
from sinks.store.store import Point, StoredRow
from sinks.web import feed

AT = 1_700_000_000
RULE = RuleRef("no-egress", "KubeArmorPolicy", "shop", "spec.network.matchProtocols[0]", 14)


@pytest.fixture(scope="module")
def row(make):
    def row(count=1, status="Allow", *, identity=None, policy="", rule=None, last=AT, **fields):
        return StoredRow(
            identity=identity or make.identity(), behaviour=make.behaviour(**fields), status=status, policy=policy,
            rule=rule, count=count, first=last * 10**9, last=last * 10**9,
        )  # fmt: skip

    return row


def connection(operation=Operation.CONNECT, address="10.0.0.1", port=443):
    return {
        "operation": operation, "family": 2, "socket_type": 1, "protocol": 6, "resource": "", "address": address, "port": port,
    }  # fmt: skip


def test_workloads_with_denials_come_first_and_hosts_last(row, make):
    host = make.identity("h", kind=Kind.HOST)
    cart = make.identity("c", owner=make.identity().owner.__class__("Deployment", "cart", "shop"))
    again = make.identity("other", pod="web-2")
    found = feed.survey(
        [row(500, identity=host), row(90, "Deny", identity=host), row(7), row(2, "Audit", identity=again), row(1, "Deny", identity=cart)]
    )  # fmt: skip
    assert [one.name for one in found.workloads] == ["shop/cart", "shop/web", "node-1"]
    web, host_ = found.workloads[1:]
    assert (web.containers, web.classes, web.labels) == (2, {"File": 9}, "app=web")
    assert (web.counts.allowed, web.counts.audited, web.counts.denied, web.counts.last) == (7, 2, 0, AT)
    assert (host_.host, host_.counts.denied) == (True, 90)


def test_edges_are_per_peer_port_and_protocol(row):
    found = feed.survey(
        [
            row(3, **connection()), row(2, "Deny", **connection()), row(9, **connection(port=80)),
            row(4, **connection(Operation.ACCEPT)), row(1, **connection(Operation.BIND, "0.0.0.0", 80)),
            row(8, operation=Operation.CONNECT, family=1, resource="/run/dbus.sock"), row(5),
            row(6, operation=Operation.SOCKET, family=2, socket_type=1), row(7, "Deny", operation=Operation.SOCKET, family=2, socket_type=1),
        ]
    )  # fmt: skip
    assert [(one.way, one.peer, one.port, one.protocol, one.counts.all, one.counts.denied) for one in found.edges] == [
        ("egress", "", 0, "TCP", 7, 7),
        ("egress", "10.0.0.1", 443, "TCP", 5, 2),
        ("egress", "10.0.0.1", 80, "TCP", 9, 0),
        ("ingress", "10.0.0.1", 443, "TCP", 4, 0),
        ("bind", "0.0.0.0", 80, "TCP", 1, 0),
    ]


def test_an_edge_says_which_policies_decided_it(row):
    found = feed.survey(
        [
            row(3, policy="web", **connection()), row(2, "Audit", policy="DefaultPosture", **connection()), row(5, **connection()),
            row(4, policy="web", **connection(port=80)), row(1, **connection(port=81)),
            *(row(1, policy=f"p{number}", **connection(port=82)) for number in range(9)),
        ]
    )  # fmt: skip
    assert {one.port: (one.policies, one.more_policies, one.undecided) for one in found.edges} == {
        443: (("DefaultPosture", "web"), 0, 5), 80: (("web",), 0, 0), 81: ((), 0, 1), 82: (("p0", "p1", "p2", "p3", "p4"), 4, 0),
    }  # fmt: skip


def test_policies_show_the_rules_that_matched(row):
    other = RuleRef("no-egress", "KubeArmorPolicy", "shop", "spec.file.matchPaths[0]", 20)
    found = feed.survey(
        [
            row(3, "Deny", policy="no-egress", rule=RULE, **connection()), row(2, "Audit", policy="no-egress", rule=other, last=AT + 9),
            row(1, "Deny", policy="no-egress", rule=RULE, last=AT + 5, **connection(port=1)), row(1, "Audit", policy="DefaultPosture"), row(4),
        ]
    )  # fmt: skip
    first, posture = found.policies
    assert (first.name, first.kind, first.namespace) == ("no-egress", "KubeArmorPolicy", "shop")
    assert (first.counts.denied, first.counts.audited, first.counts.last) == (4, 2, AT + 9)
    assert [(one.position, one.counts.all, one.counts.last) for one in first.rules] == [
        ("spec.file.matchPaths[0]", 2, AT + 9),
        ("spec.network.matchProtocols[0]", 4, AT + 5),
    ]
    assert (posture.name, posture.rules[0].position) == ("DefaultPosture", "")


def test_a_flood_of_peers_is_cut_and_counted(row, monkeypatch):
    monkeypatch.setattr(feed, "KEYS_MOST", 1000)
    rows = (row(2, **connection(address=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")) for n in range(3000))
    found = feed.survey(rows)
    assert len(found.edges) == feed.EDGES_MOST
    assert found.more_edges == 1000 - feed.EDGES_MOST
    assert found.uncounted == 2 * 2000, "beyond the keys that are held"
    assert found.workloads[0].counts.all == 6000, "the workload's own count is whole"


@given(
    st.lists(
        st.tuples(
            st.integers(1, 10**9),
            st.sampled_from(["Allow", "Audit", "Deny"]),
            st.integers(0, 20),
            st.sampled_from(["", "p"]),
        )
    )
)
def test_every_event_is_in_one_workload(make, row, rows):
    made = [row(count, status, identity=make.identity(f"u{who}"), policy=policy) for count, status, who, policy in rows]
    found = feed.survey(made)
    assert sum(one.counts.all for one in found.workloads) + found.uncounted == sum(one.count for one in made)
    assert sum(sum(one.classes.values()) for one in found.workloads) == sum(one.counts.all for one in found.workloads)
    assert sum(one.counts.all for one in found.policies) == sum(one.count for one in made if one.policy)


def test_a_sheet_is_what_the_summary_shows(row):
    rows = [
        row(2, operation=Operation.EXEC, executable="/bin/bash", resource="/usr/bin/curl"), row(7, "Deny"),
        row(3, **connection()), row(4, **connection(Operation.ACCEPT)), row(1, **connection(Operation.BIND, "0.0.0.0", 80)),
    ]  # fmt: skip
    found = feed.sheet("shop/web", summary_tables.build(rows))
    assert [one.title for one in found.tables] == [
        "Process Data", "File Data", "Ingress connections", "Egress connections", "Bind Points",
    ]  # fmt: skip
    assert found.tables[0].columns == summary_tables.PROCESS_COLUMNS
    assert found.tables[0].lines == (("/bin/bash", "/usr/bin/curl", 2, AT, "Allow"),)
    assert found.tables[1].lines == (("/bin/cat", "/etc/shadow", 7, AT, "Deny"),)
    assert found.tables[3].lines == (("TCP", "/bin/cat", "10.0.0.1", 443, "", "", 3, AT, "Allow"),)
    assert all(len(line) == len(one.columns) for one in found.tables for line in one.lines)
    long = feed.sheet("w", summary_tables.build([row(1, resource=f"/f{n}") for n in range(feed.LINES_MOST + 5)]))
    assert (len(long.tables[0].lines), long.tables[0].more) == (feed.LINES_MOST, 5)


def test_points_are_told_with_the_words_of_alerts():
    assert feed.steps([Point(60, Class.FILE, "Deny", 3)]) == ((60, "File", "Deny", 3),)


@given(st.text())
def test_no_text_ends_a_message_early(text):
    message = feed.message("alerts", {"Resource": text}, 7)
    head, event, data = message.removesuffix(b"\n\n").split(b"\n")
    assert (head, event) == (b"id: 7", b"event: alerts")
    assert b"\r" not in data
    assert json.loads(data.removeprefix(b"data: ")) == {"Resource": text}
