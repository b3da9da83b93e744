# SPDX-License-Identifier: Apache-2.0
"""What workloads call addresses: for whom, from when, until when, and how much of it is remembered."""

from __future__ import annotations

import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from name_server import answer, question

from processors.called import Called, CalledSettings, _Held, _insert
from schemas.behaviour import Behaviour
from schemas.cluster import ServiceFact
from schemas.cluster import encode as encode_fact
from schemas.errors import DecodeError
from schemas.expand import logs
from schemas.frame import FrameHeader, definition, encode
from schemas.identity import Identity, Kind
from schemas.kernel import ANSWER, DefinitionKind
from schemas.operations import Operation

SECOND = 1_000_000_000
GRACE = 300
INET = {"family": 2, "socket_type": 1, "protocol": 6}
ADDRESS = "93.184.216.34"


def said(name: str, *addresses: str, at: int, cgroup: int = 77, ttl: int = 300, cut: int = 0) -> bytes:
    """An ANSWER record. `at`: boot ns."""
    message = answer(question(name), list(addresses), ttl)
    whole = len(message)
    message = message[: whole - cut]
    return definition(DefinitionKind.ANSWER, cgroup, ANSWER.struct.pack(at, whole, 0) + message)


HEADER = FrameHeader(node="n", boot="b", run="r", number=0, clock_offset_ns=0, events=0)
WEB = Identity(kind=Kind.CONTAINER, node="n", uid="web", cgroups=(77,))
OTHER = Identity(kind=Kind.CONTAINER, node="n", uid="other", cgroups=(88,))


def connect(address: str = ADDRESS, cgroup: int = 77, operation: Operation = Operation.CONNECT) -> Behaviour:
    return Behaviour(operation=operation, address=address, port=443, cgroup=cgroup, **INET)


@pytest.fixture
def called() -> Called:
    return Called(lambda node, cgroup: {77: WEB, 78: WEB, 88: OTHER}.get(cgroup))


def test_a_name_holds_from_its_answer_until_its_time_is_over(called: Called) -> None:
    assert called.learn(HEADER, said("a.example", ADDRESS, at=10 * SECOND, ttl=60)) == 10 * SECOND
    end = (10 + 60 + GRACE) * SECOND
    wanted = {10 * SECOND - 1: "", 10 * SECOND: "a.example", end - 1: "a.example", end: ""}
    assert {at: called.name(WEB, connect(), at) for at in wanted} == wanted


@pytest.mark.parametrize(("ttl", "holds"), [(0, 30), (29, 30), (86_400, 86_400), (1 << 30, 86_400), (0xFFFFFFFF, 30)])
def test_times_are_bounded_both_ways(called: Called, ttl: int, holds: int) -> None:
    called.learn(HEADER, said("a.example", ADDRESS, at=0, ttl=ttl))
    end = (holds + GRACE) * SECOND
    assert [called.name(WEB, connect(), at) for at in (end - 1, end)] == ["a.example", ""]


def test_an_address_that_is_used_again_is_what_it_was_called_last(called: Called) -> None:
    called.learn(HEADER, said("a.example", ADDRESS, at=10 * SECOND) + said("b.example", ADDRESS, at=20 * SECOND))
    assert [called.name(WEB, connect(), at * SECOND) for at in (10, 19, 20, 1000)] == [
        "a.example",
        "a.example",
        "b.example",
        "",
    ]
    # It lapses, is nobody's for a while, and is another's again.
    called.learn(HEADER, said("c.example", ADDRESS, at=2000 * SECOND))
    assert [called.name(WEB, connect(), at * SECOND) for at in (21, 1999, 2000)] == ["b.example", "", "c.example"]


def test_asked_again_a_name_goes_on(called: Called) -> None:
    for at in (0, 200, 400):
        called.learn(HEADER, said("a.example", ADDRESS, at=at * SECOND, ttl=60))
    assert called.name(WEB, connect(), (400 + 60 + GRACE) * SECOND - 1) == "a.example"
    assert called.held == 1


def test_answers_out_of_order(called: Called) -> None:
    called.learn(HEADER, said("b.example", ADDRESS, at=20 * SECOND) + said("a.example", ADDRESS, at=10 * SECOND))
    assert [called.name(WEB, connect(), at * SECOND) for at in (9, 10, 19, 20)] == [
        "",
        "a.example",
        "a.example",
        "b.example",
    ]


def test_a_workload_names_its_own_peers_alone(called: Called) -> None:
    called.learn(HEADER, said("bank.example", ADDRESS, at=0, cgroup=88))
    assert called.name(OTHER, connect(cgroup=88), SECOND) == "bank.example"
    assert called.name(WEB, connect(), SECOND) == ""
    elsewhere = msgspec.structs.replace(OTHER, node="m")
    assert called.name(elsewhere, connect(cgroup=88), SECOND) == "", "the same numbers on another node are others"


def test_of_a_workload_each_cgroup_hears_for_all(called: Called) -> None:
    called.learn(HEADER, said("a.example", ADDRESS, at=0, cgroup=78))
    assert called.name(WEB, connect(cgroup=77), SECOND) == "a.example"


def test_what_was_heard_before_anybody_knew_whose_it_is() -> None:
    known: dict[int, Identity] = {}
    called = Called(lambda node, cgroup: known.get(cgroup))
    called.learn(HEADER, said("a.example", ADDRESS, at=0))
    known[77] = WEB
    assert called.name(WEB, connect(), SECOND) == "a.example"
    assert called.name(OTHER, connect(cgroup=88), SECOND) == ""


def test_only_what_goes_to_an_address_has_its_name(called: Called) -> None:
    called.learn(HEADER, said("a.example", ADDRESS, at=0))
    names = {operation: called.name(WEB, connect(operation=operation), SECOND) for operation in Operation}
    assert {operation for operation, name in names.items() if name} == {Operation.CONNECT, Operation.SEND}
    assert called.name(WEB, connect(address=""), SECOND) == ""


def test_addresses_are_spelled_as_behaviours_have_them(called: Called) -> None:
    called.learn(HEADER, said("a.example", "2001:db8::7", "::ffff:192.0.2.9", at=0))
    assert called.name(WEB, connect("2001:db8::7"), SECOND) == "a.example"
    assert called.name(WEB, connect("192.0.2.9"), SECOND) == "a.example"


def test_what_is_no_answer_is_counted(called: Called) -> None:
    nothing = definition(DefinitionKind.ANSWER, 77, ANSWER.struct.pack(5, 3, 0) + b"abc")
    assert called.learn(HEADER, nothing + said("a.example", ADDRESS, "192.0.2.1", at=1, cut=2)) == 5
    assert (called.stats.answers, called.stats.unread, called.stats.cut) == (2, 1, 1)
    assert called.name(WEB, connect(), SECOND) == "a.example"
    assert called.name(WEB, connect("192.0.2.1"), SECOND) == ""


def test_a_run_that_is_none_is_refused(called: Called) -> None:
    for run in (
        said("a.example", ADDRESS, at=0)[:-9], definition(DefinitionKind.ANSWER, 77, b"short"), said("a.example", ADDRESS, at=1 << 62),
    ):  # fmt: skip
        with pytest.raises(DecodeError):
            called.learn(HEADER, run)
    assert called.learn(HEADER, definition(99, 1, b"a kind of later versions")) == 0


def test_what_is_remembered_is_bounded() -> None:
    called = Called(lambda node, cgroup: None, CalledSettings(addresses=64))
    called.learn(HEADER, said("quiet.example", ADDRESS, at=0, cgroup=1))
    for number in range(100):
        called.learn(HEADER, said("loud.example", f"10.0.0.{number}", at=number, cgroup=2))
        called.learn(HEADER, said("kept.example", "192.0.2.1", at=number, cgroup=3))
    assert called.held + called.stats.forgotten == 102
    assert 56 <= called.held <= 64
    assert called.held_bytes > 0
    # Who makes most names loses them, the oldest first, and nobody else does.
    assert called.name(WEB, connect(cgroup=1), SECOND) == "quiet.example"
    assert called.name(WEB, connect("192.0.2.1", cgroup=3), SECOND) == "kept.example"
    assert called.name(WEB, connect("10.0.0.99", cgroup=2), SECOND) == "loud.example"
    assert called.name(WEB, connect("10.0.0.1", cgroup=2), SECOND) == ""


def test_one_workload_has_its_share() -> None:
    called = Called(lambda node, cgroup: None, CalledSettings(addresses=8192))
    called.learn(HEADER, said("quiet.example", ADDRESS, at=0, cgroup=1))
    for number in range(3000):
        called.learn(HEADER, said("loud.example", f"10.0.{number >> 8}.{number & 255}", at=0, cgroup=2))
    assert called.held == 2049
    assert called.name(WEB, connect(cgroup=1), SECOND) == "quiet.example"


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 30), st.sampled_from("abc")), max_size=12))
def test_times_of_names_never_overlap(told: list[tuple[int, int, str]]) -> None:
    held: list[_Held] = []
    for since, lasts, name in told:
        _insert(held, _Held(since, since + lasts, name))
        assert len(held) <= 4
        assert all(one.until <= other.since for one, other in itertools.pairwise(held))
        assert all(one.since <= one.until for one in held)


# The stage as a whole.


def with_answers(node, *runs: bytes):
    from bus.contract import Record

    return Record(node.name.encode(), encode(msgspec.structs.replace(node.frame(), answers=b"".join(runs))))


async def test_a_peer_is_told_by_the_name_that_it_was_asked_for(node, stage, make_policy):
    stage.policies(make_policy(network={"matchProtocols": [{"protocol": "tcp"}]}, action="Audit"))
    service = ServiceFact(namespace="shop", name="db", addresses=("10.96.0.1",))
    stage.processor.inventory.apply_fact(service.key, encode_fact(service))
    # The answer comes after the first row of its frame.
    node.row(node.behaviour(Operation.OPEN, "/etc/resolv.conf", syscall=257))
    for address in (ADDRESS, "10.96.0.1", "192.0.2.1"):
        node.row(node.behaviour(Operation.CONNECT, "", syscall=42, **INET, address=address, port=443))
    run = said("api.example", ADDRESS, "10.96.0.1", at=node.clock - 2_500_000)
    await stage.take(with_answers(node, run))
    await stage.finish()
    # What the cluster says goes before what a name server said.
    wanted = ["dns/api.example", "svc/db", ""]
    assert [alert.RemotePeer for alert in stage.alerts] == wanted
    assert [alert.RemoteAddress for alert in stage.alerts] == [ADDRESS, "10.96.0.1", "192.0.2.1"]
    assert [log.RemotePeer for frame in stage.telemetry for log in logs(frame)] == ["", *wanted]
    entries = [entry.behaviour for one in stage.summaries for entry in one.entries]
    details = {one.address: one.detail for one in entries if one.address}
    assert details == {ADDRESS: "api.example", "10.96.0.1": "api.example", "192.0.2.1": ""}


async def test_connections_are_counted_by_name_exactly(node, stage):
    ident = node.behaviour(Operation.CONNECT, "", syscall=42, **INET, address=ADDRESS, port=443)
    times = [node.row(ident) and node.clock for _ in range(10)]
    runs = [said("a.example", ADDRESS, at=times[3] - 1), said("b.example", ADDRESS, at=times[7] - 1)]
    await stage.take(with_answers(node, *runs))
    node.row(ident)
    await stage.take(node.record())
    await stage.finish()
    entries = [entry for one in stage.summaries for entry in one.entries]
    counted: dict[str, int] = {}
    for entry in entries:
        counted[entry.behaviour.detail] = counted.get(entry.behaviour.detail, 0) + entry.count
    assert counted == {"": 3, "a.example": 4, "b.example": 4}
    assert stage.counted() == 11
    last = next(entry for entry in entries if entry.behaviour.detail == "a.example")
    assert (last.first, last.last) == (times[3] + node.offset, times[6] + node.offset)


async def test_names_take_from_the_budget_of_what_is_listed(node, make_stage, host, web):
    from processors.engine import ProcessorSettings
    from processors.names import NameSettings

    stage = make_stage(ProcessorSettings(names=NameSettings(per_minute=16)))
    stage.identity(host)
    stage.identity(web)
    ident = node.behaviour(Operation.CONNECT, "", syscall=42, **INET, address=ADDRESS, port=443)
    runs = []
    for number in range(40):
        node.row(ident)
        runs.append(said(f"n{number}.example", ADDRESS, at=node.clock - 1))
        await stage.take(with_answers(node, runs[-1]))
    await stage.finish()
    names = {entry.behaviour.detail for one in stage.summaries for entry in one.entries}
    assert len(names - {""}) == 16
    assert stage.counted() == 40


async def test_a_frame_of_answers_alone_counts_at_their_time(node, stage):
    await stage.take(with_answers(node, said("a.example", ADDRESS, at=node.clock)))
    node.row(node.behaviour(Operation.CONNECT, "", syscall=42, **INET, address=ADDRESS, port=443))
    await stage.take(node.record())
    await stage.finish()
    (summary,) = stage.summaries
    assert (summary.first_frame, summary.last_frame) == (0, 1), "both are of one second, and so of one group"
    assert summary.entries[0].behaviour.detail == "a.example"
    assert stage.processor.stats().dns_answers == 1
    assert stage.processor.stats().dns_names == 1
