# SPDX-License-Identifier: Apache-2.0
"""Rows of the store to the tables people know."""

from __future__ import annotations

import csv
import io
import json

import pytest

from schemas.identity import Kind, Owner
from schemas.operations import Operation
from sinks.formats import summary_diff, summary_tables, table_text
from sinks.formats.summary_tables import PeerName
from sinks.store.store import StoredRow

AT = 1_668_397_784 * 10**9


@pytest.fixture
def row(make):
    def row(count=1, status="Allow", identity=None, last=AT, **fields):
        return StoredRow(
            identity=identity or make.identity(), behaviour=make.behaviour(**fields), status=status, policy="", rule=None,
            count=count, first=AT - 5, last=last,
        )  # fmt: skip

    return row


def connection(operation, **fields):
    return {"operation": operation, "family": 2, "socket_type": 1, "resource": "", **fields}


def test_the_text_of_all_tables(row):
    tables = summary_tables.build(
        [
            row(2, operation=Operation.EXEC, executable="/bin/bash", resource="/usr/bin/curl"),
            row(7, "Deny"),
            row(3, **connection(Operation.CONNECT, address="10.1.2.3", port=443, executable="/usr/bin/curl")),
            row(1, **connection(Operation.CONNECT, address="10.1.2.3", port=443, executable="/usr/bin/curl")),
            row(5, **connection(Operation.ACCEPT, address="10.9.9.9", port=80)),
            row(1, **connection(Operation.BIND, address="0.0.0.0", port=80)),
            row(9, operation=Operation.EXIT),
            row(4, operation=Operation.CONNECT, family=1, socket_type=1, resource="/run/dbus.sock"),
        ]
    )
    shown = table_text.text(tables)
    assert shown == (
        "  Pod Name        web-c0ffee\n"
        "  Namespace Name  shop\n"
        "  Cluster Name    default\n"
        "  Container Name  web\n"
        "  Labels          app=web\n"
        "\n"
        "Process Data\n"
        "+-------------+--------------------------+-------+------------------------------+--------+\n"
        "| SRC PROCESS | DESTINATION PROCESS PATH | COUNT | LAST UPDATED TIME            | STATUS |\n"
        "+-------------+--------------------------+-------+------------------------------+--------+\n"
        "| /bin/bash   | /usr/bin/curl            | 2     | Mon Nov 14 03:49:44 UTC 2022 | Allow  |\n"
        "+-------------+--------------------------+-------+------------------------------+--------+\n"
        "\n"
        "File Data\n"
        "+-------------+-----------------------+-------+------------------------------+--------+\n"
        "| SRC PROCESS | DESTINATION FILE PATH | COUNT | LAST UPDATED TIME            | STATUS |\n"
        "+-------------+-----------------------+-------+------------------------------+--------+\n"
        "| /bin/cat    | /etc/shadow           | 7     | Mon Nov 14 03:49:44 UTC 2022 | Deny   |\n"
        "+-------------+-----------------------+-------+------------------------------+--------+\n"
        "\n"
        "Ingress connections\n"
        "+----------+----------+------------+------+-----------+--------+-------+------------------------------+\n"
        "| PROTOCOL | COMMAND  | POD/SVC/IP | PORT | NAMESPACE | LABELS | COUNT | LAST UPDATED TIME            |\n"
        "+----------+----------+------------+------+-----------+--------+-------+------------------------------+\n"
        "| TCP      | /bin/cat | 10.9.9.9   | 80   | -         | -      | 5     | Mon Nov 14 03:49:44 UTC 2022 |\n"
        "+----------+----------+------------+------+-----------+--------+-------+------------------------------+\n"
        "\n"
        "Egress connections\n"
        "+----------+---------------+----------------+------+-----------+--------+-------+------------------------------+\n"
        "| PROTOCOL | COMMAND       | POD/SVC/IP     | PORT | NAMESPACE | LABELS | COUNT | LAST UPDATED TIME            |\n"
        "+----------+---------------+----------------+------+-----------+--------+-------+------------------------------+\n"
        "| AF_UNIX  | /bin/cat      | /run/dbus.sock | 0    | -         | -      | 4     | Mon Nov 14 03:49:44 UTC 2022 |\n"
        "| TCP      | /usr/bin/curl | 10.1.2.3       | 443  | -         | -      | 4     | Mon Nov 14 03:49:44 UTC 2022 |\n"
        "+----------+---------------+----------------+------+-----------+--------+-------+------------------------------+\n"
        "\n"
        "Bind Points\n"
        "+----------+----------+-----------+--------------+-------+------------------------------+\n"
        "| PROTOCOL | COMMAND  | BIND PORT | BIND ADDRESS | COUNT | LAST UPDATED TIME            |\n"
        "+----------+----------+-----------+--------------+-------+------------------------------+\n"
        "| TCP      | /bin/cat | 80        | 0.0.0.0      | 1     | Mon Nov 14 03:49:44 UTC 2022 |\n"
        "+----------+----------+-----------+--------------+-------+------------------------------+\n"
    )
    wide = table_text.text(tables, wide=True).splitlines()
    assert [line for line in wide if "443" in line and line.endswith("| Allow  |")]


def test_a_peer_outside_the_cluster_is_told_by_the_name_it_was_asked_for(row):
    def resolve(address, at):
        return PeerName(name="pod/db-1", namespace="data") if address == "10.0.0.9" else None

    tables = summary_tables.build(
        [
            row(2, **connection(Operation.CONNECT, address="93.184.216.34", port=443, detail="api.example.com")),
            row(3, **connection(Operation.CONNECT, address="93.184.216.35", port=443, detail="api.example.com")),
            row(1, **connection(Operation.CONNECT, address="93.184.216.34", port=443, detail="other.example.com")),
            row(4, **connection(Operation.SEND, address="93.184.216.34", port=123)),
            row(1, **connection(Operation.CONNECT, address="10.0.0.9", port=5432, detail="db.data.svc")),
            row(1, **connection(Operation.ACCEPT, address="93.184.216.34", port=80, detail="not.heard.of.accepts")),
        ],
        resolve=resolve,
    )
    assert [(line.peer, line.port, line.count) for line in tables.egress] == [
        ("dns/api.example.com", 443, 5), ("93.184.216.34", 123, 4), ("dns/other.example.com", 443, 1), ("pod/db-1", 5432, 1),
    ]  # fmt: skip
    assert [line.peer for line in tables.ingress] == ["93.184.216.34"]


def test_what_was_not_allowed_is_told_apart_in_connections(row):
    curl = connection(Operation.CONNECT, address="10.1.2.3", port=443, executable="/usr/bin/curl")
    shown = table_text.text(summary_tables.build([row(3, **curl), row(1, "Deny", **curl)]))
    assert shown.endswith(
        "Egress connections\n"
        "+----------+---------------+------------+------+-----------+--------+-------+------------------------------+--------+\n"
        "| PROTOCOL | COMMAND       | POD/SVC/IP | PORT | NAMESPACE | LABELS | COUNT | LAST UPDATED TIME            | STATUS |\n"
        "+----------+---------------+------------+------+-----------+--------+-------+------------------------------+--------+\n"
        "| TCP      | /usr/bin/curl | 10.1.2.3   | 443  | -         | -      | 3     | Mon Nov 14 03:49:44 UTC 2022 | Allow  |\n"
        "| TCP      | /usr/bin/curl | 10.1.2.3   | 443  | -         | -      | 1     | Mon Nov 14 03:49:44 UTC 2022 | Deny   |\n"
        "+----------+---------------+------------+------+-----------+--------+-------+------------------------------+--------+\n"
    )


def test_a_socket_that_was_denied_is_a_connection_that_never_was(row):
    # As a decoder writes it: a socket has a family, and the address that stands for none of it.
    socket = {**connection(Operation.SOCKET, address="0.0.0.0"), "executable": "/bin/bash"}
    tables = summary_tables.build([row(2, "Deny", **socket), row(9, **socket), row(1, "Audit", **socket)])
    assert [(line.protocol, line.peer, line.port, line.count, line.status) for line in tables.egress] == [
        ("TCP", "", 0, 2, "Deny"),
    ]  # fmt: skip
    (line,) = [line for line in table_text.text(tables).splitlines() if "/bin/bash" in line]
    assert [cell.strip() for cell in line.split("|")][1:8] == ["TCP", "/bin/bash", "-", "-", "-", "-", "2"]
    assert tables.ingress == tables.bind == ()


def test_agg_folds_a_directory_of_many_and_only_that(row):
    rows = [row(1, resource=f"/usr/lib/x/{name}") for name in "abcd"] + [row(2, resource="/etc/hosts")]
    rows += [row(1, "Deny", resource="/usr/lib/x/a"), row(1, resource="/top")]
    lines = summary_tables.build(rows, agg=True).file
    assert [(line.destination, line.count, line.status) for line in lines] == [
        ("/usr/lib/x/", 4, "Allow"), ("/etc/hosts", 2, "Allow"), ("/top", 1, "Allow"), ("/usr/lib/x/a", 1, "Deny"),
    ]  # fmt: skip
    assert len(summary_tables.build(rows).file) == 7
    many = [row(1, resource=f"/srv/{a}/{b}") for a in "abcd" for b in "wxyz"]
    assert [(line.destination, line.count) for line in summary_tables.build(many, agg=True).file] == [("/srv/", 16)]
    programs = [row(1, operation=Operation.EXEC, resource=f"/usr/bin/{name}") for name in "abcdef"]
    assert len(summary_tables.build(programs, agg=True).process) == 6
    roots = [row(1, resource=f"/{name}") for name in "abcdef"]
    assert len(summary_tables.build(roots, agg=True).file) == 6


def test_one_set_of_tables_per_container(row, make):
    rows = [row(), row(identity=make.identity("abc", pod="a-pod")), row()]
    assert [tables.header.pod for tables in summary_tables.build_each(rows)] == ["a-pod", "web-c0ffee"]
    assert summary_tables.build(rows).header.pod == ""
    assert summary_tables.build(rows).header.namespace == "shop"


def test_generations_of_a_container_and_the_cgroups_of_a_host_are_one_set_each(row, make):
    again = [row(2), row(3, identity=make.identity("d00d", pod="web-c0ffee"))]
    (tables,) = summary_tables.build_each(again)
    assert tables == summary_tables.build(again)
    assert sum(line.count for line in tables.process + tables.file) == 5
    assert (
        len(
            summary_tables.build_each(
                [row(), row(identity=make.identity("d00d", pod="web-c0ffee", labels={"app": "other"}))]
            )
        )
        == 2
    )
    unnamed = {"namespace": "", "pod": "", "container_name": "", "labels": {}}
    assert len(summary_tables.build_each([row(identity=make.identity(uid, **unnamed)) for uid in ("a", "b")])) == 2
    host = [
        row(identity=make.identity(uid, kind=kind, node=node, **unnamed))
        for node in ("n1", "n2")
        for uid, kind in (("node", Kind.NODE), ("ssh.service", Kind.HOST), ("cron.service", Kind.HOST))
    ]
    assert [tables.header.container for tables in summary_tables.build_each(host)] == ["n1", "n2"]


def test_all_pods_of_an_owner_are_one_set_when_asked(row, make):
    owner = Owner("Deployment", "web", "shop")
    rows = [row(3, identity=make.identity(f"uid-{pod}", pod=pod, owner=owner, namespace="shop", container_name="app")) for pod in ("web-1", "web-2")]  # fmt: skip
    assert [tables.header.pod for tables in summary_tables.build_each(rows)] == ["web-1", "web-2"]
    (tables,) = summary_tables.build_each(rows, by_workload=True)
    assert (tables.header.pod, tables.header.namespace, tables.header.container) == ("", "shop", "app")
    assert [line.count for line in tables.file] == [6]


def test_names_asked_for_are_a_table_of_their_own(row):
    def asked(name, count, **more):
        return row(count, operation=Operation.DNS, family=2, socket_type=2, protocol=17, resource="", address="10.96.0.10", port=53, detail=name, **more)  # fmt: skip

    tables = summary_tables.build(
        [asked("Db.Shop.svc.", 3), asked("db.shop.svc", 2), asked("evil\x1b[2J.example", 1, status="Deny")]
    )
    assert [(line.destination, line.count, line.status) for line in tables.dns] == [
        ("db.shop.svc", 5, "Allow"), ("evil\x1b[2j.example", 1, "Deny")
    ]  # fmt: skip
    assert tables.egress == ()
    shown = table_text.text(tables, ["dns"])
    assert "DNS names asked for" in shown
    assert "\x1b" not in shown
    assert ",db.shop.svc,,,,,5," in table_text.as_csv([tables], ["dns"])
    (change,) = summary_diff.difference({}, {"shop/web": summary_tables.build([asked("db.shop.svc", 1)])}, ["dns"])
    assert (change.change, change.what) == ("new", "db.shop.svc")


def test_peers_get_their_names(row):
    rows = [row(**connection(Operation.CONNECT, address="10.1.2.3", port=443))]
    tables = summary_tables.build(
        rows,
        resolve=lambda address, at: {"10.1.2.3": PeerName(name="pod/db-0", namespace="data", labels="app=db")}.get(
            address
        ),
    )
    (line,) = tables.egress
    assert (line.peer, line.namespace, line.labels) == ("pod/db-0", "data", "app=db")


def test_an_address_that_changed_hands_is_told_as_both(row):
    rows = [
        row(**connection(Operation.CONNECT, address="10.1.2.3", port=443), last=AT + 10),
        row(2, **connection(Operation.ACCEPT, address="10.1.2.3", port=80)),
    ]

    def resolve(address, at):
        return PeerName(name="pod/old" if at < AT + 5 else "pod/new")

    tables = summary_tables.build(rows, resolve=resolve)
    assert [line.peer for line in tables.egress] == ["pod/old, then pod/new"]
    assert [line.peer for line in tables.ingress] == ["pod/old"]


def test_two_sides_are_compared_by_what_lasts(row, make):
    def side(*rows):
        return summary_tables.build_by_workload(rows)

    owner = Owner("Deployment", "web", "shop")

    def pod(name):
        return make.identity(f"uid-{name}", pod=name, owner=owner, namespace="shop", container_name="app")

    before = side(
        row(3, identity=pod("web-1"), resource="/etc/a"),
        row(9, identity=pod("web-1"), resource="/etc/b"),
        row(1, identity=pod("web-1"), resource="/proc/12/stat"),
    )
    after = side(row(4, identity=pod("web-2"), resource="/etc/a"), row(1, identity=pod("web-3"), resource="/proc/77/stat"), row(50, identity=pod("web-3"), resource="/etc/`|<b>"),
                 row(2, identity=pod("web-3"), **connection(Operation.CONNECT, address="fd00::1", port=443)))  # fmt: skip
    changes = summary_diff.difference(
        before, after, tuple(table_text.TITLES), lambda path: path.replace("12", "N").replace("77", "N")
    )
    assert [(one.change, one.workload, one.table, one.what, one.before, one.after) for one in changes] == [
        ("new", "shop/web/app", "egress", "TCP [fd00::1]:443", 0, 2), ("new", "shop/web/app", "file", "/etc/`|<b>", 0, 50),
        ("gone", "shop/web/app", "file", "/etc/b", 9, 0),
    ]  # fmt: skip
    assert summary_diff.difference(before, before, tuple(table_text.TITLES)) == []
    (changed,) = summary_diff.difference(side(row(10)), side(row(20)), ("file",))
    assert (changed.change, changed.before, changed.after) == ("changed", 10, 20)
    text = summary_diff.as_markdown(changes)
    assert text.startswith("**2 new, 1 gone**\n")
    assert "| `/etc/'¦<b>` |" in text
    assert all(line.count("|") == 9 for line in text.splitlines()[2:])
    assert summary_diff.as_table([]) == "Nothing changed.\n"


def test_json_and_csv(row):
    tables = [summary_tables.build([row(3, "Audit", resource='=cmd("x")\x1b[2J'), row(2)])]
    (found,) = json.loads(table_text.as_json(tables))
    assert found["file"][0]["count"] == 3
    lines = list(csv.DictReader(io.StringIO(table_text.as_csv(tables))))
    assert [(line["table"], line["count"], line["status"]) for line in lines] == [
        ("file", "3", "Audit"),
        ("file", "2", "Allow"),
    ]
    assert lines[0]["destination"] == '\'=cmd("x")\\x1b[2J'


def test_nothing_seen_is_said():
    assert "Nothing was seen" in table_text.text(summary_tables.build([]))


def test_what_failed_by_itself_was_not_allowed(row):
    rows = [
        row(3, operation=Operation.EXEC, resource="/usr/local/bin/ls", result=-2),
        row(1, operation=Operation.EXEC, resource="/bin/ls"),
        row(1, "Audit", operation=Operation.EXEC, resource="/bin/id", result=-13),
        row(2, resource="/etc/missing", result=-2),
        row(1, **connection(Operation.CONNECT, address="10.0.0.1", port=9, result=-111)),
        row(1, **connection(Operation.CONNECT, address="10.0.0.1", port=80, result=-115)),
        row(5, **{**connection(Operation.BIND), "family": 16}),
    ]
    tables = summary_tables.build(rows)
    assert [(line.destination, line.status) for line in tables.process] == [
        ("/usr/local/bin/ls", "Failed"), ("/bin/id", "Audit"), ("/bin/ls", "Allow"),
    ]  # fmt: skip
    assert [line.status for line in tables.file] == ["Failed"]
    assert [(line.port, line.status) for line in tables.egress] == [(9, "Failed"), (80, "Allow")]
    assert tables.bind == ()


def test_json_has_what_was_asked_for(row):
    (found,) = json.loads(table_text.as_json([summary_tables.build([row()])], ["process", "bind"]))
    assert list(found) == ["header", "process", "bind"]
