# SPDX-License-Identifier: Apache-2.0
"""The live half: one poll for all, short queues that tell what they dropped, resuming, a store that goes away and comes back."""

from __future__ import annotations

import asyncio
import json
import os
import time

import pytest

from schemas.errors import DecodeError
from schemas.operations import Operation
from sinks.store.queries import SqliteReader
from sinks.store.sqlite import SqliteStore
from sinks.web import hub as room
from sinks.web.hub import Client, Hub, Questions


def parsed(message):
    """[(event, data, id)]"""
    found = []
    for part in message.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in part.split("\n") if line and not line.startswith(":"))
        if fields:
            found.append((fields["event"], json.loads(fields["data"]), int(fields["id"]) if "id" in fields else None))
    return found


class Asked:
    """Opens readers and counts them."""

    def __init__(self, path):
        self.path, self.opened, self.open = path, 0, 0

    def __call__(self):
        reader, asked = SqliteReader(self.path), self
        asked.opened += 1
        asked.open += 1
        close = reader.close

        def counted():
            asked.open -= 1
            close()

        reader.close = counted  # type: ignore[method-assign]
        return reader


@pytest.fixture
def asked(store, tmp_path):
    return Asked(str(tmp_path / "summary.db"))


@pytest.fixture
async def questions(asked):
    made = Questions(asked)
    yield made
    made.close()


@pytest.fixture
async def hub(questions, monkeypatch):
    monkeypatch.setattr(room, "POLL_SECONDS", 0.02)
    made = Hub(questions, 8)
    yield made
    made.close()


async def said(client, event, seconds=60.0):
    """What comes until `event` does, with it."""
    found = []
    async with asyncio.timeout(seconds):
        while not any(one[0] == event for one in found):
            message = await client.next()
            assert message is not None
            found += parsed(message)
    return found


async def test_a_full_queue_drops_the_oldest_and_says_so():
    client = Client()
    for number in range(room.WAITING_MOST + 7):
        client.put(b"event: x\ndata: %d\n\n" % number)
    found = parsed(await client.next())
    assert found[0] == ("gap", {"updates": 7}, None)
    assert [one[1] for one in found[1:]] == list(range(7, room.WAITING_MOST + 7))
    client.put(b"event: x\ndata: 0\n\n")
    assert parsed(await client.next()) == [("x", 0, None)], "told once"


async def test_silence_has_a_heart_and_an_end():
    client = Client()
    assert (await client.next(0.01)).startswith(b": ")
    client.put(b"event: x\ndata: 0\n\n")
    client.end()
    assert await client.next(60) is None


async def test_everybody_shares_one_poll(hub, asked, store, make, until):
    first, *others = [hub.join() for _ in range(8)]
    assert hub.join() is None, "no more than `most`"
    for _ in range(8):
        await hub.opening(None)
    before, polls = asked.opened, hub.polls
    await until(lambda: hub.polls > polls + 5)
    assert asked.opened - before <= hub.polls - polls + 2, "one question a poll, whoever looks"
    store.apply([], [make.alert(1)])
    for client in (first, *others):
        (told,) = [one for one in await said(client, "alerts") if one[0] == "alerts"]
        assert told[1][0]["alert"]["Resource"] == "/etc/shadow"
        assert told[2] == told[1][0]["ident"]


async def test_nobody_looks_nobody_asks(hub, asked, until):
    client = hub.join()
    await hub.opening(None)
    await until(lambda: hub.polls > 1)
    hub.leave(client)
    hub.leave(client)
    assert hub.clients == 0
    # A question that was under way may end yet.
    await until(lambda: asked.open == 0)
    opened = asked.opened
    await until(lambda: "page" not in {task.get_name() for task in asyncio.all_tasks()})
    assert asked.opened == opened
    again = hub.join()
    await hub.opening(None)
    await until(lambda: asked.opened > opened + 2)
    hub.leave(again)


async def test_who_comes_back_gets_what_it_missed(hub, store, make):
    store.apply([], [make.alert(n) for n in range(5)])
    hub.join()
    fresh = parsed(await hub.opening(None))
    assert [one[0] for one in fresh] == ["reset", "activity", "alerts"]
    idents = [one["ident"] for one in fresh[2][1]]
    assert len(idents) == 5
    assert idents == sorted(idents, reverse=True)
    back = parsed(await hub.opening(idents[2]))
    assert [one[0] for one in back] == ["activity", "alerts"]
    assert [one["ident"] for one in back[1][1]] == idents[:2]
    assert [one[0] for one in parsed(await hub.opening(idents[0]))] == ["activity"]
    stranger = parsed(await hub.opening(10**9))
    assert [one[0] for one in stranger] == ["reset", "activity", "alerts"], "numbers of another store"


async def test_what_does_not_fit_is_counted(hub, store, make, monkeypatch):
    monkeypatch.setattr(room, "ALERTS_MOST", 10)
    client = hub.join()
    store.apply([], [make.alert(0)])
    await hub.opening(None)
    store.apply([], [make.alert(n) for n in range(1, 31)])
    found = await said(client, "alerts")
    assert ("gap", {"alerts": 20}, None) in found
    assert len(next(one for one in found if one[0] == "alerts")[1]) == 10
    back = parsed(await hub.opening(1))
    assert ("gap", {"alerts": 20}, None) in back


async def test_activity_is_told_when_it_changes(hub, store, make):
    client = hub.join()
    opening = parsed(await hub.opening(None))
    assert opening[1][1]["points"] == []
    now = int(time.time()) // 60 * 60
    store.apply([make.summary(1, None, make.entry(7), bucket=now)], [])
    found = [one for one in await said(client, "activity") if one[1].get("points")]
    while not found:
        found = [one for one in await said(client, "activity") if one[1].get("points")]
    assert found[-1][1]["points"] == [[now, "File", "Allow", 7]]


async def test_a_store_that_is_begun_anew_is_noticed(hub, store, make, tmp_path):
    store.apply([], [make.alert(n) for n in range(5)])
    client = hub.join()
    await hub.opening(None)
    store.close()
    path = str(tmp_path / "summary.db")
    other = SqliteStore(f"{path}.new")
    other.apply([], [make.alert(77, Resource="/new")])
    other.close()
    for tail in ("-wal", "-shm"):
        if os.path.exists(path + tail):
            os.unlink(path + tail)
    os.replace(f"{path}.new", path)
    found = await said(client, "alerts")
    assert "reset" in [one[0] for one in found]
    assert [one["alert"]["Resource"] for one in found[-1][1]] == ["/new"] or "/new" in str(found)


async def test_trouble_is_told_once_and_ends(hub, store, make, tmp_path, until):
    client = hub.join()
    await hub.opening(None)
    path = tmp_path / "summary.db"
    store.close()
    os.rename(path, tmp_path / "away.db")
    found = await said(client, "trouble")
    assert "summary.db" in found[-1][1]["why"]
    polls = hub.polls
    await until(lambda: hub.polls > polls + 3)
    os.rename(tmp_path / "away.db", path)
    found = await said(client, "activity")
    assert "trouble" not in [one[0] for one in found]


async def test_words_of_another_version_are_trouble_and_no_end(questions):
    with pytest.raises(DecodeError, match="values that this version knows"):
        await questions.ask(lambda reader: Operation(250))


async def test_a_page_may_begin_while_the_store_is_away(hub, store, make, tmp_path):
    path = tmp_path / "summary.db"
    store.apply([], [make.alert(1)])
    store.close()
    os.rename(path, tmp_path / "away.db")
    client = hub.join()
    assert [one[0] for one in parsed(await hub.opening(None))] == ["trouble"]
    os.rename(tmp_path / "away.db", path)
    found = await said(client, "alerts")
    assert found[-1][1][0]["alert"]["Resource"] == "/etc/shadow"
