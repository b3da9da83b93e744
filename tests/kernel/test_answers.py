# SPDX-License-Identifier: Apache-2.0
"""Answers of name servers as the live kernel hands them on: whatever call reads them, only where they were asked for, bounded."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from name_server import ADDRESS, UNCONNECTED, WAYS, A, NameServer, answer, ask, ask_stream, question

from kernel import listening
from kernel.loading import LoadedPrograms
from schemas.dns_answer import parse
from schemas.kernel import ANSWER, BUDGET, OWN_LOSSES, DefinitionKind, Loss
from schemas.operations import Class

pytestmark = pytest.mark.kernel
BURST = 64
"""Questions before the first answer is read."""
KEPT, SHARE = 1232, 256
"""ANSWER_ROOM and HEARD_SHARE of kernel/programs/answers.c."""


@pytest.fixture
def server() -> Iterator[NameServer]:
    with NameServer({"a.example": ["192.0.2.7"], "b.example": ["2001:db8::7"]}) as made:
        yield made


def heard(sensor: Any, *, of: int | None = None) -> list[tuple[int, int, bytes]]:
    """(time, length, message) of the answers that this test's cgroup was told of since the last time."""
    sensor.seen()
    found = [(ident, body) for kind, ident, body in sensor.cgroups if kind is DefinitionKind.ANSWER]
    sensor.cgroups.clear()
    return [
        (*ANSWER.struct.unpack_from(body)[:2], body[ANSWER.size :])
        for ident, body in found
        if ident == (of or sensor.cgroup_id)
    ]


def names(sensor: Any) -> list[str]:
    return [found.name for _, length, message in heard(sensor) if (found := parse(message, length)) is not None]


@pytest.mark.parametrize("way", WAYS)
def test_an_answer_is_heard_by_whatever_call_it_is_read(sensor: Any, server: NameServer, way: str) -> None:
    before = sensor.lost(Loss.ANSWERS)
    sensor.run(lambda: ask(question("a.example", A), way))
    ((_, length, message),) = heard(sensor)
    found = parse(message, length)
    assert found is not None
    assert (found.name, found.addresses, found.cut) == ("a.example", ((bytes([192, 0, 2, 7]), 300),), False)
    assert length == len(message)
    assert sensor.lost(Loss.ANSWERS) == before


def test_the_answer_comes_before_the_connection(sensor: Any, server: NameServer) -> None:
    def act() -> None:
        ask(question("a.example"), UNCONNECTED)
        with socket.socket() as client:
            client.connect_ex(("127.0.0.1", 1))

    events = sensor.run(act)
    connect = next(event for event in events if event.operation.name == "CONNECT")
    found = [
        ANSWER.struct.unpack_from(body)[0]
        for kind, ident, body in sensor.cgroups
        if kind is DefinitionKind.ANSWER and ident == sensor.cgroup_id
    ]
    assert len(found) == 1
    assert found[0] < connect.time


def test_over_tcp(sensor: Any, server: NameServer) -> None:
    sensor.run(lambda: ask_stream(question("a.example")))
    assert names(sensor) == ["a.example"]


def test_over_ipv6(sensor: Any) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as speaker:
        try:
            speaker.bind(("::1", 53))
        except OSError as error:
            pytest.skip(f"::1 port 53: {error}")

        def act() -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
                client.sendto(question("a.example"), ("::1", 53))
                # Answered by this process's own hand: both ends wait for nobody.
                asked, who = speaker.recvfrom(512)
                speaker.sendto(answer(asked, ["2001:db8::9"]), who)
                client.recv(512)

        sensor.run(act)
    assert names(sensor) == ["a.example"]


def test_who_did_not_ask_is_told_nothing(sensor: Any, server: NameServer) -> None:
    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(20.0)
            client.bind(("127.0.0.1", 0))
            # An answer to nothing, then a question, and before its answer one with another id.
            server.udp.sendto(answer(question("bank.example", A, 1), ["192.0.2.66"]), client.getsockname())
            client.recv(512)
            client.sendto(question("a.example", A, 77), (ADDRESS, 53))
            server.udp.sendto(answer(question("bank.example", A, 78), ["192.0.2.66"]), client.getsockname())
            while client.recv(512)[:2] != struct.pack(">H", 77):
                pass
            # The same question once more has been answered.
            server.udp.sendto(answer(question("bank.example", A, 77), ["192.0.2.66"]), client.getsockname())
            client.recv(512)

    sensor.run(act)
    assert names(sensor) == ["a.example"]


def test_another_socket_of_the_workload_did_not_ask(sensor: Any, server: NameServer) -> None:
    """A server of the workload, to which anybody may send from port 53, with the id of a question that another socket has asked."""

    def act() -> None:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as serving,
        ):
            serving.settimeout(20.0)
            serving.bind(("127.0.0.1", 0))
            asking.sendto(question("a.example", A, 5), (f"{ADDRESS[:-1]}9", 53))  # where nobody answers
            server.udp.sendto(answer(question("bank.example", A, 5), ["192.0.2.66"]), serving.getsockname())
            serving.recv(512)

    sensor.run(act)
    assert names(sensor) == []


def test_a_long_answer_is_cut_and_says_so(sensor: Any, server: NameServer) -> None:
    server.zone["many.example"] = [f"192.0.2.{number}" for number in range(100)]
    sensor.run(lambda: ask(question("many.example"), UNCONNECTED))
    ((_, length, message),) = heard(sensor)
    assert (length, len(message)) == (12 + 18 + 100 * 16, KEPT)
    found = parse(message, length)
    assert found is not None
    assert found.cut
    assert 50 < len(found.addresses) < 100


def test_sizes_at_the_edges(sensor: Any, server: NameServer) -> None:
    bare = len(answer(question("a.example"), ["192.0.2.7"], padding=1))
    for size in (239, 240, 241, KEPT - 1, KEPT, KEPT + 1):
        server.padding = size - bare + 1
        sensor.run(lambda: ask(question("a.example"), UNCONNECTED))
        ((_, length, message),) = heard(sensor)
        assert (length, len(message)) == (size, min(size, KEPT))
        assert message == server.said(question("a.example"))[:KEPT]


def test_a_flood_is_bounded_and_counted(sensor: Any, server: NameServer) -> None:
    before = sensor.lost(Loss.ANSWERS)
    many = 4 * SHARE

    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(20.0)
            client.connect((ADDRESS, 53))
            for first in range(0, many, BURST):
                for number in range(first, first + BURST):
                    client.send(question("a.example", A, number))
                for _ in range(BURST):
                    client.recv(512)

    asked, told, deadline = 0, [], time.monotonic() + 120
    # A crowded machine may need several rounds until more come in a window than are told of it.
    while sensor.lost(Loss.ANSWERS) == before and time.monotonic() < deadline:
        sensor.run(act)
        asked += many
        told += heard(sensor)
    first, last = told[0][0] >> 30, told[-1][0] >> 30
    # The window of budget.c turns over about once a second, so a slow machine has several.
    assert SHARE <= len(told) <= SHARE * (last - first + 1)
    assert sensor.lost(Loss.ANSWERS) - before == asked - len(told) > 0
    with sensor.map("budgets") as budgets:
        value = budgets.get(struct.pack("=Q", sensor.cgroup_id))
    assert value is not None
    lost = struct.unpack_from(f"={len(OWN_LOSSES)}Q", value, BUDGET.offsets["lost"])
    assert lost[OWN_LOSSES.index(Loss.ANSWERS)] == asked - len(told), "the loss of who made it"


def test_hostile_bytes_change_nothing(sensor: Any, server: NameServer) -> None:
    """What is sent as an answer is handed on as it is; nothing in it decides what the programs do."""
    texts = [bytes([0x80 | number & 127]) * (number * 9 % 500) for number in range(60)]

    def act() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(20.0)
            client.bind(("127.0.0.1", 0))
            for number, text in enumerate(texts):
                silent = question("nobody.example", A, number)
                client.sendto(silent, (f"{ADDRESS[:-1]}9", 53))
                server.udp.sendto(silent[:2] + b"\x81\x80" + text, client.getsockname())
                client.recv(1024)

    sensor.run(act)
    told = [message for _, _, message in heard(sensor)]
    # What is shorter than the head of a message is none.
    assert [message[4:] for message in told] == [text for text in texts if len(text) >= 8 and (text[2] or text[3])]
    for message in told:
        parse(message, len(message))


def test_who_is_not_watched_is_not_heard(sensor: Any, server: NameServer) -> None:
    sensor.scope(visibility=1 << Class.FILE)
    sensor.run(lambda: ask(question("a.example"), UNCONNECTED))
    assert heard(sensor) == []


def test_nobody_is_told_where_nobody_listens(sensor: Any, server: NameServer) -> None:
    with sensor.map("config") as config:
        from schemas.kernel import Config

        config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", 1))
    sensor.run(lambda: ask(question("a.example"), UNCONNECTED))
    assert heard(sensor) == []


def test_a_cgroup_inside_is_told_by_its_own_id(sensor: Any, server: NameServer, cgroup: Path) -> None:
    inner = cgroup / "inner"
    inner.mkdir()

    def act() -> None:
        (inner / "cgroup.procs").write_text(str(os.getpid()))
        ask(question("a.example"), UNCONNECTED)

    sensor.run(act)
    assert [parse(message, length) is not None for _, length, message in heard(sensor, of=inner.stat().st_ino)] == [
        True
    ]


def test_they_are_on_the_root_while_the_pins_are(loaded: LoadedPrograms) -> None:
    assert listening.heard(loaded.pin_dir)
    assert listening.REFUSED not in loaded.refused


def test_why_they_are_not_there_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (
        listening.listen({}, {"hear_question": "too long"}, str(tmp_path))
        == "this kernel refuses `hear_question`: too long"
    )
    programs = {"hear_question": -1, "hear_answer": -1}
    monkeypatch.setattr(listening, "cgroup2_mount", lambda: None)
    assert listening.listen(programs, {}, str(tmp_path)) == "cgroup v2 is not mounted"
    monkeypatch.setattr(listening, "cgroup2_mount", lambda: str(tmp_path))
    assert "is not the root of cgroup v2" in listening.listen(programs, {}, str(tmp_path))
