# SPDX-License-Identifier: Apache-2.0
"""Answers of name servers, well formed and hostile."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.dns_answer import CHAIN, POINTERS, RECORDS, TEXT_MOST, DnsAnswer, parse

A, CNAME, AAAA = 1, 5, 28
V4, V6 = bytes([93, 184, 216, 34]), bytes.fromhex("20010db8") + bytes(11) + b"\1"


def labels(name: str | bytes) -> bytes:
    raw = name if isinstance(name, bytes) else name.encode()
    return b"".join(bytes([len(label)]) + label for label in raw.split(b".") if label) + b"\0"


def record(owner: bytes, kind: int, data: bytes, ttl: int = 300, class_: int = 1) -> bytes:
    return owner + struct.pack(">HHIH", kind, class_, ttl, len(data)) + data


def answer(
    name: str | bytes,
    *records: bytes,
    flags: int = 0x8180,
    questions: int = 1,
    count: int | None = None,
    class_: int = 1,
) -> bytes:
    head = struct.pack(">HHHHHH", 4711, flags, questions, len(records) if count is None else count, 0, 0)
    return head + labels(name) + struct.pack(">HH", A, class_) + b"".join(records)


BACK = b"\xc0\x0c"
"""A pointer to the question's name."""


def test_addresses_of_the_name_that_was_asked_for() -> None:
    found = parse(answer("WWW.Example.COM", record(BACK, A, V4), record(BACK, AAAA, V6, 60)))
    assert found == DnsAnswer("www.example.com", ((V4, 300), (V6, 60)), False)


def test_aliases_lead_to_addresses_and_the_least_time_holds() -> None:
    chain = [
        record(labels("edge.cdn.net"), A, V4, 200),  # before what leads to it: an order is custom, not law
        record(BACK, CNAME, labels("shop.cdn.net"), 3600),
        record(labels("shop.cdn.net"), CNAME, labels("edge.cdn.net"), 20),
    ]
    assert parse(answer("shop.example", *chain)) == DnsAnswer("shop.example", ((V4, 20),), False)


def test_records_that_the_question_does_not_lead_to_name_nothing() -> None:
    assert parse(answer("a.example", record(labels("bank.example"), A, V4))) is None
    mixed = answer("a.example", record(labels("bank.example"), A, bytes(4)), record(BACK, A, V4))
    assert parse(mixed) == DnsAnswer("a.example", ((V4, 300),), False)


@pytest.mark.parametrize(
    "message",
    [
        answer("a.example", record(BACK, A, V4), flags=0x0100),  # a question
        answer("a.example", record(BACK, A, V4), flags=0x8183),  # NXDOMAIN
        answer("a.example", record(BACK, A, V4), flags=0xA980),  # another opcode
        answer("a.example", record(BACK, A, V4), questions=2),
        answer("a.example", record(BACK, A, V4), class_=3),  # CHAOS
        answer("a.example", record(BACK, A, V4, class_=3)),
        answer("a.example", record(BACK, A, V4 + b"\0")),
        answer("a.example", record(BACK, AAAA, V4)),
        answer("", record(BACK, A, V4)),
        answer("a.example", record(BACK, CNAME, labels("b.example") + b"x"), record(labels("b.example"), A, V4)),
        b"", b"\0" * 11,
    ],
)  # fmt: skip
def test_what_is_no_answer_with_an_address_says_nothing(message: bytes) -> None:
    assert parse(message) is None


def test_a_time_that_is_none_is_zero() -> None:
    assert parse(answer("a.example", record(BACK, A, V4, 0xFFFFFFFF))) == DnsAnswer("a.example", ((V4, 0),), False)


def test_a_message_without_its_end_says_what_is_whole() -> None:
    whole = answer("a.example", record(BACK, A, V4), record(BACK, A, bytes(4)))
    for kept in range(len(whole) - 1, len(whole) - 16, -1):
        assert parse(whole[:kept], len(whole)) == DnsAnswer("a.example", ((V4, 300),), True)
    assert parse(whole[: len(whole) - 17], len(whole)) is None
    assert parse(answer("a.example", record(BACK, A, V4), flags=0x8380)) == DnsAnswer("a.example", ((V4, 300),), True)
    assert parse(answer("a.example", record(BACK, A, V4), count=9)) == DnsAnswer("a.example", ((V4, 300),), True)


def test_names_that_are_no_hosts_are_escaped() -> None:
    found = parse(answer(b"a\x1b[31m <b>_x-9", record(BACK, A, V4)))
    assert found is not None
    assert found.name == "a\\027\\09131m\\032\\060b\\062_x-9"
    head = struct.pack(">HHHHHH", 1, 0x8180, 1, 1, 0, 0)
    dotted = parse(head + b"\3a.b\3com\0" + struct.pack(">HH", A, 1) + record(BACK, A, V4))
    assert dotted is not None
    assert dotted.name == "a\\046b.com", "a dot within a label is none between two"


def test_a_name_longer_than_any_host_is_not_told() -> None:
    assert parse(answer(b".".join([b"\xff" * 40] * 3), record(BACK, A, V4))) is None
    longest = ".".join(["a" * 63] * 3 + ["b" * 61])
    assert len(longest) == TEXT_MOST
    found = parse(answer(longest, record(BACK, A, V4)))
    assert found is not None
    assert found.name == longest
    assert parse(answer(".".join(["a" * 63] * 4), record(BACK, A, V4))) is None


def test_pointers_go_backwards_and_are_few() -> None:
    # At its own name, forwards, and in a circle of two.
    here = len(answer("a.example"))
    for target in (here, here + 2, here + 40):
        assert parse(answer("a.example", record(struct.pack(">H", 0xC000 | target), A, V4))) is None
    assert parse(answer("a.example", record(b"\xc0\x02", A, V4))) is None, "the head is no name"

    def chained(jumps: int) -> bytes:
        # Each record's owner is the one before it: the last takes `jumps` pointers to the question's name.
        records, at, target = [], here, 12
        for _ in range(jumps):
            one = record(struct.pack(">H", 0xC000 | target), A, V4)
            records.append(one)
            target, at = at, at + len(one)
        return answer("a.example", *records)

    found = parse(chained(POINTERS))
    assert found is not None
    assert len(found.addresses) == POINTERS
    more = parse(chained(POINTERS + 1))
    assert more is not None
    assert (len(more.addresses), more.cut) == (POINTERS, True)


def test_chains_end() -> None:
    def chain(length: int) -> bytes:
        names = ["a.example", *(f"n{number}.example" for number in range(length))]
        steps = [record(labels(one), CNAME, labels(other)) for one, other in itertools.pairwise(names)]
        return answer("a.example", *steps, record(labels(names[-1]), A, V4))

    assert parse(chain(CHAIN)) is not None
    assert parse(chain(CHAIN + 1)) is None
    circle = [record(BACK, CNAME, labels("b.example")), record(labels("b.example"), CNAME, labels("a.example"))]
    assert parse(answer("a.example", *circle, record(labels("b.example"), A, V4))) is not None


def test_records_are_few() -> None:
    found = parse(answer("a.example", *[record(BACK, A, V4)] * (RECORDS + 1)))
    assert found is not None
    assert (len(found.addresses), found.cut) == (RECORDS, True)


@given(st.binary(max_size=1300), st.integers(0, 65535))
def test_no_bytes_raise(message: bytes, length: int) -> None:
    parse(message, length)


@given(st.data())
def test_no_damage_raises_and_what_is_said_is_bounded(data: st.DataObject) -> None:
    whole = bytearray(
        answer(
            "www.example.com",
            record(BACK, CNAME, labels("x.cdn.net")),
            record(labels("x.cdn.net"), A, V4),
            record(BACK, AAAA, V6),
        )
    )
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    found = parse(bytes(whole[: data.draw(st.integers(0, len(whole)))]), data.draw(st.integers(0, 2000)))
    if found is not None:
        assert 0 < len(found.name) <= TEXT_MOST
        assert found.name.isascii()
        assert found.name.isprintable()
        assert all(len(raw) in (4, 16) and 0 <= ttl < 1 << 31 for raw, ttl in found.addresses)
