# SPDX-License-Identifier: Apache-2.0
"""The endpoint's HTTP against plain sockets: what is answered, what is refused, and what a client may not make it hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from schemas.errors import SettingsError
from sinks.endpoint import Endpoint, MetricsSettings
from sinks.http_get import MOST, UNREAD, Request, Response

pytestmark = pytest.mark.servers
HOST = b"Host: localhost\r\n"


@pytest.fixture
async def endpoint() -> AsyncIterator[Endpoint]:
    made = Endpoint("metrics", MetricsSettings(enabled=True, port=0))
    await made.open()
    yield made
    await made.close()


async def ask(endpoint: Endpoint, *pieces: bytes) -> bytes:
    """Everything that comes back until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(endpoint.url.rpartition(":")[2]))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    try:
        async with asyncio.timeout(60):
            return await reader.read()
    finally:
        writer.close()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_requests_of_one_connection_are_answered_in_order(endpoint: Endpoint) -> None:
    answer = await ask(
        endpoint,
        b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\nGET /no",
        b"where?x=1 HTTP/1.1\r\n" + HOST + b"\r\n",
        b"HEAD /readyz HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n",
    )
    assert [int(part.split(b" ")[0]) for part in answer.split(b"HTTP/1.1 ")[1:]] == [200, 404, 200]
    assert answer.count(b'"live":true') == 1
    assert answer.endswith(b"Connection: close\r\n\r\n"), "HEAD has no body"
    assert b"Content-Length: 30\r\n" in answer


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (b"POST /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 405),
        (b"GET /metrics HTTP/2.0\r\n" + HOST + b"\r\n", 400),
        (b"GET metrics HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b" folded: x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"Name : x\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\nhello", 400),
        (b"GET /healthz HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /healthz HTTP/1.0\r\n" + HOST + b"\r\n", 200),
        (b"GET /healthz HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", 421),
        (b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n", 421),
        (b"GET /" + b"x" * MOST, 431),
    ],
)
async def test_what_is_no_plain_request_is_refused_and_closed(
    endpoint: Endpoint, request_: bytes, expected: int
) -> None:
    answer = await ask(endpoint, request_)
    assert status(answer) == expected
    assert answer.count(b"HTTP/1.1 ") == 1


async def test_an_answer_that_cannot_be_made_is_a_500_and_the_port_lives_on(endpoint: Endpoint) -> None:
    endpoint.ready_when(lambda: {"x": str(1 // 0)})
    request = b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
    assert status(await ask(endpoint, b"GET /readyz" + request)) == 500
    assert status(await ask(endpoint, b"GET /healthz" + request)) == 200


async def test_who_asks_and_never_reads_is_dropped(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "answer", lambda request: Response(b"x" * UNREAD))
    port = int(endpoint.url.rpartition(":")[2])
    await endpoint.close()
    await endpoint.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
    writer.write((b"GET / HTTP/1.1\r\n" + HOST + b"\r\n") * 40)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        async with asyncio.timeout(60):
            await reader.readexactly(40 * UNREAD)
    writer.close()


async def test_requests_of_one_packet_leave_the_loop_to_others_between_answers(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, turns, answered = asyncio.get_running_loop(), 0, []

    def turn() -> None:
        nonlocal turns, due
        turns += 1
        due = loop.call_soon(turn)

    def answer(request: Request) -> Response:
        answered.append(turns)
        return Response(b"x")

    monkeypatch.setattr(endpoint, "answer", answer)
    await endpoint.close()
    await endpoint.open()
    due = loop.call_soon(turn)
    request = b"HEAD / HTTP/1.1\r\n" + HOST
    got = await ask(endpoint, (request + b"\r\n") * 200 + request + b"Connection: close\r\n\r\n")
    due.cancel()
    assert got.count(b"HTTP/1.1 200") == len(answered) == 201
    assert len(set(answered)) == 201


async def test_a_port_in_use_names_the_setting(endpoint: Endpoint) -> None:
    port = int(endpoint.url.rpartition(":")[2])
    other = Endpoint("metrics", MetricsSettings(enabled=True, port=port))
    with pytest.raises(
        SettingsError, match=f"listen on `127.0.0.1:{port}`, but it is in use; set `metrics.port` or stop"
    ):
        await other.open()


def test_a_port_of_another_address_is_asked_by_any_name() -> None:
    made = Endpoint("metrics", MetricsSettings(host="0.0.0.0"))
    request = Request("/healthz", {"host": "anything.example"}, asyncio.Transport())
    assert made.answer(request).status == 200
