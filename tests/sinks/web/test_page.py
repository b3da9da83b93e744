# SPDX-License-Identifier: Apache-2.0
"""The server, over HTTP: what it answers, to whom, with which headers, and that it ends at once."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from aiohttp import hdrs

from schemas.errors import SettingsError
from schemas.operations import Operation
from schemas.summary import SummaryEntry
from schemas.verdict import RuleRef
from sinks.store.queries import SqliteReader
from sinks.web.page import FILES, HEADERS, PageSettings, WebPage


async def get(http, url, **more):
    async with http.get(url, **more) as answer:
        return answer.status, answer.headers, await answer.read()


async def test_the_files_are_served_and_nothing_beside_them(page, http):
    for path, (name, kind) in FILES.items():
        status, headers, body = await get(http, page.url + path[1:])
        assert (status, headers["Content-Type"]) == (200, f"{kind}; charset=utf-8"), name
        assert body
    for path in ("page.py", "static/page.js", "..%2fpage.py", "%2e%2e/feed.py", "//etc/passwd", "index.html"):
        status, _, body = await get(http, page.url + path)
        assert status == 404, path
        assert b"SPDX" not in body


async def test_every_answer_has_the_headers(page, http):
    for path in ("", "page.js", "none", "api/survey", "api/workload", "api/learnt", "api/learnt?policy=x", "events"):
        async with http.get(page.url + path) as answer:
            assert {name: answer.headers[name] for name in HEADERS} == HEADERS, path
    for refused in (http.post(page.url), http.get(page.url, headers={"Host": "evil.example"})):
        async with refused as answer:
            assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy


async def test_nothing_is_written(page, http):
    for method in hdrs.METH_ALL - {"GET", "HEAD", "CONNECT"}:
        async with http.request(method, page.url + "api/survey") as answer:
            assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD"), method
    for path in ("", "page.css", "events", "api/survey"):
        async with http.head(page.url + path) as answer:
            assert answer.status == 200, path
    assert page.hub.clients == 0, "a HEAD of the stream is no stream"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200), ("127.0.0.1:9643", 200), ("localhost:1", 200), ("LOCALHOST", 200), ("[::1]:9643", 200), ("127.8.8.8", 200),
        ("hauberk.example.org", 200), ("Hauberk.Example.org:443", 200), ("evil.example", 421), ("evil.example:9643", 421), ("", 421),
        ("localhost.evil.example", 421), ("127.0.0.1.evil.example", 421), ("127.0.0.1@evil.example", 421), ("2130706433", 421), ("localhost.", 421), ("8.8.8.8", 421), ("[::2]", 421), ("0.0.0.0", 421),
    ],
)  # fmt: skip
async def test_only_its_own_names_are_answered(store, serve, http, host, status):
    page = await serve(names=["hauberk.example.org"])
    for path in ("", "api/survey", "api/learnt", "events", "none"):
        async with http.get(page.url + path, headers={"Host": host}) as answer:
            assert answer.status == (404 if path == "none" and status == 200 else status), path
            if status == 421:
                assert "page.names" in await answer.text()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_page_of_another_site_takes_no_place(page, http, site):
    asked = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": "cors"}
    for path in ("events", "api/survey", "api/workload", "page.js"):
        status, _, _ = await get(http, page.url + path, headers=asked)
        assert status == 403, path
    assert page.hub.polls == 0
    assert (await get(http, page.url, headers={**asked, "Sec-Fetch-Mode": "navigate"}))[0] == 200
    assert (await get(http, page.url + "api/survey", headers={**asked, "Sec-Fetch-Site": "same-origin"}))[0] == 200


@pytest.mark.parametrize(
    "asked",
    [
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"},
        {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
    ],
)  # fmt: skip
async def test_a_page_of_another_site_begins_nothing(store, serve, http, learner, asked):
    """Not by a frame or a window it opens either, nor where the browser says `Origin` alone."""
    page = await serve(learner)
    for path in ("events", "api/survey", "api/learnt", "api/learnt?policy=a"):
        status, _, _ = await get(http, page.url + path, headers=asked)
        assert status == 403, path
    assert (page.hub.polls, page.learning.runs) == (0, 0)
    framed = asked.get("Sec-Fetch-Dest") == "iframe" or "Origin" in asked
    assert (await get(http, page.url, headers=asked))[0] == (403 if framed else 200)


async def test_its_own_origin_is_let_in(page, http):
    host = page.url.removeprefix("http://").rstrip("/")
    assert (await get(http, f"{page.url}api/survey", headers={"Origin": f"http://{host}"}))[0] == 200


async def test_what_was_learnt_is_told_once(store, serve, http, learner, make, until):
    store.apply([make.summary(0)], [])
    page = await serve(learner)

    async def learnt():
        told = json.loads((await get(http, f"{page.url}api/learnt"))[2])
        return None if told["learning"] else told

    told = await until(learnt)
    assert [one["label"] for one in told["lines"]] == ["shop/web/web"]
    again = json.loads((await get(http, f"{page.url}api/learnt?known={told['at']}"))[2])
    assert (again["same"], again["lines"], again["at"]) == (True, [], told["at"])
    for name in ("nobody", "", "__proto__", "../page.py", "a" * 7000, "%00%0d%0a"):
        status, headers, body = await get(http, f"{page.url}api/learnt?policy={name}")
        assert (status, headers["Content-Type"]) == (404, "application/json"), name
        assert "discover" in json.loads(body)["why"]
    assert page.learning.runs == 1


async def test_the_survey_and_a_workload(page, store, http, make):
    rule = RuleRef("no-egress", "KubeArmorPolicy", "shop", "spec.network.matchProtocols[0]", 14)
    behaviour = make.behaviour(operation=Operation.CONNECT, family=2, socket_type=1, protocol=6, resource="", address="10.0.0.1", port=443)  # fmt: skip
    at = make.start * 10**9
    denied = SummaryEntry(behaviour=behaviour, status="Deny", policy="no-egress", rule=rule, count=3, first=at, last=at)
    store.apply([make.summary(0, None, make.entry(7), denied)], [])
    status, headers, body = await get(http, f"{page.url}api/survey?hours=1")
    found = json.loads(body)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert found["workloads"][0]["name"] == "shop/web"
    assert found["edges"][0]["counts"]["denied"] == 3
    assert found["policies"][0]["rules"][0]["position"] == "spec.network.matchProtocols[0]"
    _, _, body = await get(http, f"{page.url}api/workload", params={"name": "shop/web", "hours": "1"})
    tables = {one["title"]: one for one in json.loads(body)["tables"]}
    assert tables["File Data"]["lines"] == [["/bin/cat", "/etc/shadow", 7, make.start, "Allow"]]
    _, _, body = await get(http, f"{page.url}api/workload", params={"name": "nobody"})
    assert json.loads(body)["tables"] == []


@pytest.mark.parametrize(
    "path", ["survey?hours=0", "survey?hours=-1", "survey?hours=x", "survey?hours=%D9%A1", f"survey?hours={'9' * 30}", "survey?hours=2161",
             "workload", "workload?name=", "workload?name=a&hours=1.5"],
)  # fmt: skip
async def test_a_bad_question_is_told(page, http, path):
    status, _, body = await get(http, f"{page.url}api/{path}")
    assert status == 400
    assert json.loads(body)["why"].startswith("expected ")


async def test_an_answer_is_kept_for_a_moment(page, store, http, make):
    store.apply([make.summary(0)], [])
    _, _, before = await get(http, f"{page.url}api/survey")
    store.apply([make.summary(1)], [])
    _, _, after = await get(http, f"{page.url}api/survey")
    assert before == after
    deadline = time.monotonic() + 60
    while after == before:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
        _, _, after = await get(http, f"{page.url}api/survey")
    for number in range(100):
        await get(http, f"{page.url}api/workload?name={number}")
    assert len(page._kept) <= 32


async def test_answers_that_are_kept_have_a_cap_in_bytes(page, store, http, make, monkeypatch):
    store.apply([make.summary(0)], [])
    _, _, body = await get(http, f"{page.url}api/survey")
    monkeypatch.setattr(page, "_answer_bytes", len(body) * 2)
    for number in range(50):
        await get(http, f"{page.url}api/workload?name={number}")
        assert 0 < page.kept_bytes <= len(body) * 2
    monkeypatch.setattr(page, "_answer_bytes", 1)
    await get(http, f"{page.url}api/workload?name=last")
    assert not page._kept


async def test_alerts_come_as_they_happen_and_resume(page, store, make, listen):
    store.apply([], [make.alert(1)])
    stream = await listen(page)
    first = await stream.until("alerts")
    assert [one["alert"]["EventID"] for one in json.loads(first["data"])] == ["node-1:boot:1"]
    store.apply([], [make.alert(2)])
    second = await stream.until("alerts")
    assert int(second["id"]) == int(first["id"]) + 1
    stream.answer.close()
    store.apply([], [make.alert(3), make.alert(4)])
    back = await listen(page, after=int(second["id"]))
    assert (await back.message())["event"] == "activity", "no reset: what it has, it keeps"
    told = json.loads((await back.until("alerts"))["data"])
    assert [one["alert"]["EventID"] for one in told] == ["node-1:boot:4", "node-1:boot:3"]


async def test_browsers_are_limited_and_make_room(store, serve, listen, http, until):
    page = await serve(clients=2)
    one, _two = await listen(page), await listen(page)
    status, headers, body = await get(http, f"{page.url}events")
    assert (status, headers["Retry-After"]) == (503, "10")
    assert b"page.clients" in body
    one.answer.close()
    await until(lambda: page.hub.clients == 1)
    await listen(page)


async def test_it_ends_at_once_with_streams_open(page, store, make, listen):
    streams = [await listen(page) for _ in range(5)]
    for stream in streams:
        await stream.until("activity")
    host, port = page.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port))) as stuck:
        # Reads nothing, and there is more to say than the kernel holds for it.
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for number in range(400):
            store.apply([], [make.alert(number, Data="x" * 60000)])
        started = time.monotonic()
        await page.close()
        took = time.monotonic() - started
    assert took < 5, f"{took:.1f} s"
    for stream in streams:
        while await stream.message():
            pass
    await page.close()


async def test_a_port_in_use_is_a_sentence(page, tmp_path):
    port = int(page.url.rsplit(":", 1)[1].strip("/"))
    other = WebPage(PageSettings(port=port), lambda: SqliteReader(str(tmp_path / "summary.db")))
    with pytest.raises(SettingsError, match=rf"page: expected to listen on `127.0.0.1:{port}`, but it is in use; set `page.port`"):  # fmt: skip
        await other.open()
    await other.close()
    far = WebPage(PageSettings(host="203.0.113.1", port=0), lambda: SqliteReader(""))
    with pytest.raises(SettingsError, match=r"page\.enabled=false"):
        await far.open()


async def test_a_store_that_cannot_be_read_is_a_sentence(serve, http, tmp_path):
    page = await serve()
    status, _, body = await get(http, f"{page.url}api/survey")
    assert status == 503
    assert "summary.db" in json.loads(body)["why"]
    (tmp_path / "summary.db").write_bytes(b"no database" * 1000)
    status, _, body = await get(http, f"{page.url}api/survey")
    assert status == 503
    assert "Traceback" not in json.loads(body)["why"]


async def test_nothing_is_held_while_nobody_looks(page, tmp_path):
    """No thread, no file: the page costs a listening socket."""
    assert not [one for one in os.listdir("/proc/self/fd") if _points_to(one, str(tmp_path / "summary.db"), "ro")]
    import threading

    assert not [one for one in threading.enumerate() if one.name.startswith("hauberk-page")]


def _points_to(number: str, path: str, mode: str) -> bool:
    try:
        if os.readlink(f"/proc/self/fd/{number}") != path:
            return False
        with open(f"/proc/self/fdinfo/{number}") as info:
            flags = int(next(line for line in info if line.startswith("flags")).split()[1], 8)
    except (OSError, StopIteration):
        return False
    return (flags & os.O_ACCMODE == os.O_RDONLY) == (mode == "ro")


def test_the_server_is_loaded_only_when_it_opens():
    code = "import sys, hauberk.sections, sinks.web.page; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
