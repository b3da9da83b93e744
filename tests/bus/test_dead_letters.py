# SPDX-License-Identifier: Apache-2.0
"""Dead letters: one writer, one set of headers, and nothing that is too large for them stops a stage."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bus.attempts import Attempts
from bus.backoff import Backoff
from bus.contract import Delivery, Record
from bus.dead_letters import HEADERS, SHOWN, DeadLetters, Letter, letter
from bus.memory import MemoryBus
from schemas.errors import DecodeError, Refused, Unavailable
from schemas.topics import ALERTS, DEAD


@pytest.fixture
def bus() -> MemoryBus:
    return MemoryBus()


@pytest.fixture
def dead(bus: MemoryBus) -> DeadLetters:
    attempts = Attempts("test", Backoff(first_seconds=0.001, max_seconds=0.001), 1.0)
    return DeadLetters(bus, "stage", "group", attempts)


def read(bus: MemoryBus) -> list[tuple[Record, dict[str, bytes]]]:
    return [(record, dict(record.headers)) for record in bus.records(DEAD)]


async def test_a_letter_keeps_the_record_and_says_where_it_lay_and_why(bus: MemoryBus, dead: DeadLetters) -> None:
    delivery = Delivery(ALERTS, 3, 7, Record(b"k", b"v", (("own", b"1"),)))
    bus.fail(Unavailable("away"), times=2)
    await dead.write([letter(delivery, DecodeError("expected JSON"), 2), letter(delivery, KeyError("x"), 1, b"part")])
    (first, headers), (second, others) = read(bus)
    assert (first.key, first.value, headers.pop("own")) == (b"k", b"v", b"1")
    assert tuple(headers) == HEADERS
    assert int(headers.pop("dead.time")) > 0
    assert headers == {
        "dead.topic": b"alerts",
        "dead.partition": b"3",
        "dead.offset": b"7",
        "dead.group": b"group",
        "dead.stage": b"stage",
        "dead.reason": b"decode",
        "dead.error": b"DecodeError: expected JSON",
        "dead.attempts": b"2",
    }
    assert (second.value, others["dead.reason"]) == (b"part", b"internal")
    assert (dead.written, dead.lost) == (2, 0)


async def test_a_record_that_never_lay_anywhere_has_no_offset(bus: MemoryBus, dead: DeadLetters) -> None:
    await dead.write([Letter(ALERTS, Record(b"k", None), Refused("too large"), 1)])
    ((record, headers),) = read(bus)
    assert tuple(headers) == HEADERS
    assert (record.value, headers["dead.partition"], headers["dead.offset"]) == (b"", b"", b"")


async def test_what_dead_does_not_take_whole_is_cut_and_what_it_does_not_take_at_all_is_counted(
    bus: MemoryBus, dead: DeadLetters, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    most = SHOWN + 4096
    publish = bus.publish

    async def picky(topic, records):
        if any(record.size > most for record in records):
            raise Refused("too large")
        await publish(topic, records)

    monkeypatch.setattr(bus, "publish", picky)
    letters = [Letter(ALERTS, Record(b"k", value), Refused("no"), 1) for value in (b"small", b"x" * (2 * most))]
    await dead.write(letters)
    (first, _), (second, headers) = read(bus)
    assert (first.value, len(second.value or b"")) == (b"small", SHOWN)
    assert headers["dead.topic"] == b"alerts"
    most = 10
    await dead.write(letters[:1])
    assert (dead.written, dead.lost) == (2, 1)
    assert "a record is lost, `dead` refused it" in caplog.text


def test_the_page_lists_every_header() -> None:
    page = (Path(__file__).parents[2] / "docs/bus.md").read_text()
    rows = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `dead.")]
    assert tuple(name for row in rows for name in re.findall(r"`([a-z.]+)`", row)) == HEADERS
