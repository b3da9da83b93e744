# SPDX-License-Identifier: Apache-2.0
"""A file of the spool that cannot be read any more: what it held is counted and told as that, and the rest arrives in order."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import pytest

from bus.backoff import Backoff
from bus.contract import Record
from bus.memory import MemoryBus
from bus.spool import SpooledBus
from bus.spool_lines import Shed, SpoolLine, SpoolLines
from bus.spool_settings import SpoolSettings
from schemas.errors import Unavailable
from schemas.topics import ALERTS, EVENTS_RAW

MANY = 30


@pytest.fixture
async def opened(tmp_path):
    made: list[SpooledBus] = []

    async def opened(inner: MemoryBus, **changes: object) -> SpooledBus:
        retry = Backoff(first_seconds=0.01, max_seconds=0.02)
        settings = SpoolSettings(**{"directory": str(tmp_path / "spool"), "retry": retry} | changes)
        made.append(await SpooledBus.open(inner, settings, notice=told))
        return made[-1]

    yield opened
    for bus in made:
        await bus.close()


def told(shed: Shed) -> Record:
    return Record(b"node", json.dumps([shed.topic, shed.records, shed.first, shed.reason, shed.why]).encode())


def notices(inner: MemoryBus) -> list[list]:
    return [json.loads(one.value or b"") for one in inner.records(ALERTS)]


def numbers(inner: MemoryBus) -> list[int]:
    return [int((one.value or b"").split()[0]) for one in inner.records(EVENTS_RAW)]


def fill(directory: Path, *, clock: float | None = None, many: int = MANY) -> list[Path]:
    """`many` raw frames in segments of a few each, by a process that ended; the segments."""
    at = time.time() if clock is None else clock
    lines = SpoolLines(directory, 1 << 26, 1e9, lambda: at)
    line = lines.open(EVENTS_RAW)
    for number in range(many):
        record = Record(b"k", b"%d " % number + b"x" * 2000, (), int(at * 1000))
        line.end = lines.append(line, [record])
        if number % 5 == 4:
            line.log.rotate(at, force=True)
    lines.close()
    return sorted((directory / "events.raw").glob("*.db"))


def overwrite(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    path.write_bytes(b"nothing that anybody wrote" * 1000)


@pytest.mark.parametrize("which", [0, 1, 4])
async def test_a_damaged_segment_is_counted_and_told(opened, until, tmp_path, which):
    overwrite(fill(tmp_path / "spool")[which])
    inner = MemoryBus()
    bus = await opened(inner)
    await until(lambda: bus.stats.waiting == 0 and notices(inner))
    lost = list(range(which * 5, which * 5 + 5))
    assert numbers(inner) == [one for one in range(MANY) if one not in lost]
    assert bus.stats.shed == bus.stats.damaged == {"events.raw": 5}
    ((topic, records, first, reason, why),) = notices(inner)
    assert (topic, records, first, reason) == ("events.raw", 5, which * 5, "damaged")
    assert "*.corrupt" in why
    await bus.close()
    fresh = MemoryBus()
    again = await opened(fresh)
    assert (again.stats.waiting, again.stats.shed, notices(fresh)) == (0, {}, []), "told once"


async def test_the_newest_segment_is_damaged_before_a_start(opened, until, tmp_path):
    """Nobody knows what it held: told with the most that there can have been."""
    fill(tmp_path / "spool", many=28)
    overwrite(max((tmp_path / "spool" / "events.raw").glob("*.db")))
    inner = MemoryBus()
    bus = await opened(inner)
    await until(lambda: bus.stats.waiting == 0 and notices(inner))
    assert numbers(inner) == list(range(25))
    ((_, records, first, reason, why),) = notices(inner)
    assert (first, reason) == (25, "damaged")
    assert records == bus.stats.damaged["events.raw"] >= 3
    assert "at most" in why
    await bus.publish(EVENTS_RAW, [Record(b"k", b"28")])
    assert numbers(inner)[-1] == 28


def drained(lines: SpoolLines, line: SpoolLine) -> tuple[list[int], list[Shed]]:
    """Everything that is left of `line`, and what is told of it."""
    found: list[int] = []
    said: list[Shed] = []
    while (batch := lines.oldest()) is not None:
        _, first, rows, past = batch
        found += [int((record.value or b"").split()[0]) for _, record in rows]
        lines.published(line, first, past)
        sheds, place = lines.to_tell(line)
        said += sheds
        lines.advance(line, place)
    return found, said


def newest_damaged(where: Path) -> tuple[SpoolLines, SpoolLine]:
    """Three records in the only segment, which was put aside."""
    lines = SpoolLines(where / "spool", 1 << 26, 1e9, lambda: 1000.0)
    line = lines.open(EVENTS_RAW)
    for number in range(3):
        lines.append(line, [Record(b"k", b"%d" % number, (), 1)])
    line.log.quarantine(line.log._path(0))
    return lines, line


def test_offsets_that_no_record_had_are_no_loss(tmp_path):
    """After a damaged newest segment offsets go on far above it."""
    lines, line = newest_damaged(tmp_path)
    for number in range(3, 6):
        lines.append(line, [Record(b"k", b"%d" % number, (), 1)])
    assert line.waiting == 6
    found, said = drained(lines, line)
    assert found == [3, 4, 5]
    assert [(one.records, one.first, one.reason) for one in said] == [(3, 0, "damaged")]
    assert (lines.shed, lines.damaged, line.waiting) == ({"events.raw": 3}, {"events.raw": 3}, 0)
    lines.close()


def test_the_newest_segment_is_damaged_and_nothing_comes_after_it(tmp_path):
    lines, line = newest_damaged(tmp_path)
    lines.tidy()
    found, said = drained(lines, line)
    assert (found, [(one.records, one.reason) for one in said]) == ([], [(3, "damaged")])
    assert lines.oldest() is None
    lines.append(line, [Record(b"k", b"3", (), 1)])
    assert drained(lines, line) == ([3], [])
    lines.close()


async def test_a_damaged_record_among_good_ones(opened, until, tmp_path):
    segments = fill(tmp_path / "spool")
    with sqlite3.connect(segments[1]) as database:
        database.execute("UPDATE record SET key = 'no bytes' WHERE offset = 7")
    database.close()
    inner = MemoryBus()
    bus = await opened(inner)
    await until(lambda: bus.stats.waiting == 0 and notices(inner))
    assert numbers(inner) == [one for one in range(MANY) if one != 7]
    assert [one[1:4] for one in notices(inner)] == [[1, 7, "damaged"]]
    assert bus.stats.damaged == {"events.raw": 1}


async def test_a_damaged_segment_is_not_told_as_too_old(opened, until, tmp_path):
    """Its age cannot be read."""
    overwrite(fill(tmp_path / "spool")[0])
    inner = MemoryBus()
    bus = await opened(inner, max_age=3600.0)
    await until(lambda: bus.stats.waiting == 0 and notices(inner))
    assert [one[1:4] for one in notices(inner)] == [[5, 0, "damaged"]]
    assert list((tmp_path / "spool" / "events.raw").glob("*.corrupt")), "kept for who wants to look"


def test_what_is_shed_and_what_is_damaged_are_told_apart(tmp_path):
    overwrite(fill(tmp_path / "spool", clock=1000.0)[0])
    lines = SpoolLines(tmp_path / "spool", 1 << 26, 500.0, lambda: 2000.0)
    lines.find()
    lines.tidy()
    found, said = drained(lines, lines.get(EVENTS_RAW))
    assert found == []
    assert [(one.records, one.first, one.reason) for one in said] == [(25, 5, "shed"), (5, 0, "damaged")]
    assert (lines.shed, lines.damaged) == ({"events.raw": 30}, {"events.raw": 5})
    lines.close()


async def test_a_damaged_place_is_no_loss(opened, until, tmp_path, caplog):
    """What was drained is gone as well: nobody knows, and nothing is told that was none."""
    spool = tmp_path / "spool"
    fill(spool)
    inner = MemoryBus()
    bus = await opened(inner)
    await until(lambda: bus.stats.waiting == 0)
    inner.fail(Unavailable("no broker", 0.01), times=10_000)
    await bus.publish(EVENTS_RAW, [Record(b"k", b"30")])
    await bus.close()
    overwrite(spool / "groups.db")
    fresh = MemoryBus()
    again = await opened(fresh)
    await until(lambda: again.stats.waiting == 0 and 30 in numbers(fresh))
    assert (again.stats.shed, notices(fresh)) == ({}, [])
    assert "place" in caplog.text
