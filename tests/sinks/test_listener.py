# SPDX-License-Identifier: Apache-2.0
"""A listening port under idle, late, slow and too many clients: real sockets throughout."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, web
from waiting import until

from sinks import listener as listeners
from sinks.listener import Listener

HALF = b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "


class Served:
    """A listener with three places: `/` answers, `/wait` does not until `go`, `/much` answers more than any buffer takes."""

    def __init__(self) -> None:
        self.listener = Listener("test", "127.0.0.1", 0, 3)
        self.go = asyncio.Event()
        self.waiting = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def open(self) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text="ok")

        async def wait(_: web.Request) -> web.Response:
            self.waiting += 1
            await self.go.wait()
            return web.Response(text="waited")

        async def much(_: web.Request) -> web.Response:
            return web.Response(body=b"x" * (64 << 20))

        async def mistake(_: web.Request) -> web.Response:
            raise ValueError("ours")

        application = web.Application()
        application.router.add_get("/", answer)
        application.router.add_get("/wait", wait)
        application.router.add_get("/much", much)
        application.router.add_get("/mistake", mistake)
        await self.listener.open(application, shutdown_timeout=0.1)

    async def connect(self, said: bytes = HALF) -> asyncio.StreamReader:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.port)
        self.writers.append(writer)
        writer.write(said)
        await writer.drain()
        return reader

    async def ask(self, path: str = "/") -> str:
        async with ClientSession() as session, session.get(f"{self.listener.url}{path}") as response:
            return await response.text()


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    made = Served()
    await made.open()
    yield made
    made.go.set()
    for writer in made.writers:
        writer.transport.abort()
    await made.listener.close()


async def ended(reader: asyncio.StreamReader) -> bool:
    async with asyncio.timeout(60):
        try:
            return await reader.read(1) == b""
        except ConnectionError:
            return True


async def test_idle_connections_make_room_the_longest_idle_first(served: Served) -> None:
    first = await served.connect()
    await until(lambda: served.listener.stats.connections == 1)
    for number in range(2, 4):
        await served.connect()
        await until(lambda number=number: served.listener.stats.connections == number)
    assert await served.ask() == "ok"
    assert await ended(first)
    assert (served.listener.stats.evicted, served.listener.stats.refused) == (1, 0)


async def test_hundreds_of_idle_connections_keep_nobody_out_and_cost_three_places(served: Served) -> None:
    for _ in range(300):
        await served.connect()
        assert served.listener.stats.connections <= 3
    assert await served.ask() == "ok"
    assert served.listener.stats.evicted >= 297


async def test_who_is_being_answered_is_not_cut_off_for_who_comes(served: Served) -> None:
    waiting = [asyncio.create_task(served.ask("/wait")) for _ in range(3)]
    await until(lambda: served.waiting == 3)
    late = await served.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert await ended(late)
    assert served.listener.stats.refused == 1
    served.go.set()
    assert await asyncio.gather(*waiting) == ["waited"] * 3


async def test_a_request_that_does_not_come_whole_in_time_is_given_up(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "HEADER_SECONDS", 0.05)
    silent, dripping = await served.connect(b""), await served.connect()

    async def drip() -> None:
        while True:
            served.writers[-1].write(b"x")
            await asyncio.sleep(0.01)

    dropping = asyncio.create_task(drip())
    assert await ended(silent)
    assert await ended(dripping)
    dropping.cancel()
    assert served.listener.stats.late == 2
    await until(lambda: served.listener.stats.connections == 0)


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\n\n",
    ],
)  # fmt: skip
async def test_what_is_no_request_is_counted_and_not_logged(
    served: Served, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    reader = await served.connect(said)
    async with asyncio.timeout(60):
        assert b" 400 " in await reader.read()
    await until(lambda: served.listener.stats.malformed == 1)
    assert caplog.text == ""
    assert await served.ask() == "ok"


async def test_a_mistake_of_ours_is_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    assert "500" in await served.ask("/mistake")
    assert "ValueError: ours" in caplog.text
    assert served.listener.stats.malformed == 0


async def test_a_connection_that_asks_nothing_more_is_let_go(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "IDLE_SECONDS", 0.05)
    reader = await served.connect(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    async with asyncio.timeout(60):
        assert (await reader.read()).endswith(b"ok")
    assert served.listener.stats.late == 1


async def test_an_answer_that_nobody_reads_holds_no_place(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "IDLE_SECONDS", 0.05)
    await served.connect(b"GET /much HTTP/1.1\r\nHost: localhost\r\n\r\n")
    served.writers[-1].transport.pause_reading()
    await until(lambda: served.listener.stats.late == 1)
    await until(lambda: served.listener.stats.connections == 0)


async def test_it_lets_go_of_the_port_and_can_be_opened_again_there(served: Served) -> None:
    await served.connect()
    port = served.listener.port
    await served.listener.close()
    await served.open()
    assert served.listener.port == port
    assert await served.ask() == "ok"


async def lose(served: Served) -> None:
    """As `ss -K` of the listening socket does: the kernel takes nobody on it any more."""
    server = served.listener._server
    assert server is not None
    server.sockets[0].shutdown(socket.SHUT_RDWR)


async def test_a_port_that_is_lost_while_it_is_served_is_opened_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "LOOK_SECONDS", 0.01)
    waiting = asyncio.create_task(served.ask("/wait"))
    await until(lambda: served.waiting == 1)
    port = served.listener.port
    await lose(served)
    await until(lambda: served.listener.stats.reopened == 1)
    assert (served.listener.port, served.listener.stats.up) == (port, 1)
    assert await served.ask() == "ok"
    served.go.set()
    assert await waiting == "waited", "who was connected stays connected"


async def test_a_lost_port_that_somebody_took_is_waited_for(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(listeners, "LONGEST_PAUSE", 0.02)
    port = served.listener.port
    await lose(served)
    with socket.create_server(("127.0.0.1", port)):
        await until(lambda: served.listener.stats.up == 0)
        await asyncio.sleep(0)
    await until(lambda: served.listener.stats.up == 1)
    assert await served.ask() == "ok"
