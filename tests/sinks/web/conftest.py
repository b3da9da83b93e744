# SPDX-License-Identifier: Apache-2.0
"""A page over a real store, and a real browser that is driven over the DevTools protocol.

The browser resolves every name to 127.0.0.1, so nothing it does leaves the machine, and a name of a stranger leads to us, as
in an attack by DNS rebinding. It is started once, in a directory of its own, and ended by its process group, which is ours.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from bus.memory import MemoryBus, MemorySettings
from hauberk.learner_process import LearnerProcess
from policy.ruleset import PostureSettings
from sinks.store.queries import SqliteReader
from sinks.store.sqlite import SqliteStore
from sinks.web.learning import Learner
from sinks.web.page import PageSettings, WebPage

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    made = SqliteStore(str(tmp_path / "summary.db"))
    yield made
    made.close()


@pytest.fixture
async def serve(tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[WebPage]]]:
    """Opens a page over `tmp_path/summary.db`, on a free port."""
    async with contextlib.AsyncExitStack() as opened:

        async def serve(learner: Learner | None = None, **settings: Any) -> WebPage:
            page = WebPage(
                PageSettings(**{"port": 0, **settings}), lambda: SqliteReader(str(tmp_path / "summary.db")), learner
            )
            await page.open()
            opened.push_async_callback(page.close)
            return page

        yield serve


@pytest.fixture
def bus() -> MemoryBus:
    """What the learner asks for policies and facts of a cluster."""
    return MemoryBus(MemorySettings())


@pytest.fixture
def learner(tmp_path: Path, bus: MemoryBus) -> LearnerProcess:
    """The real one: a process over `tmp_path/summary.db`."""
    return LearnerProcess(str(tmp_path / "summary.db"), bus, PostureSettings(), 1 << 30)


@pytest.fixture
async def page(store: SqliteStore, serve: Callable[..., Awaitable[WebPage]]) -> WebPage:
    return await serve()


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Stream:
    """The events of one `/events`, as they come."""

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        self.answer = answer

    async def message(self) -> dict[str, str]:
        """The next one: `event`, `data`, `id`, or `comment`. Empty at the end."""
        found: dict[str, str] = {}
        async with asyncio.timeout(60):
            while line := (await self.answer.content.readline()).decode():
                if line == "\n":
                    return found
                name, _, value = line.rstrip("\n").partition(": ")
                found[name or "comment"] = value
        return {}

    async def until(self, event: str) -> dict[str, str]:
        while found := await self.message():
            if found.get("event") == event:
                return found
        raise AssertionError(f"the stream ended before `{event}`")


@pytest.fixture
async def listen(http: aiohttp.ClientSession) -> AsyncIterator[Callable[..., Awaitable[Stream]]]:
    async with contextlib.AsyncExitStack() as opened:

        async def listen(page: WebPage, after: int | None = None) -> Stream:
            headers = {} if after is None else {"Last-Event-ID": str(after)}
            answer = await opened.enter_async_context(http.get(f"{page.url}events", headers=headers))
            assert answer.status == 200, await answer.text()
            return Stream(answer)

        yield listen


class Tab:
    """One page of the browser. `said`: what its console had to complain of."""

    def __init__(self, line: aiohttp.ClientWebSocketResponse) -> None:
        self._line = line
        self._number = 0
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.said: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for raw in self._line:
            told = raw.json()
            if waiting := self._answers.pop(told.get("id", 0), None):
                waiting.set_result(told)
            elif told.get("method") == "Runtime.exceptionThrown":
                self.said.append(str(told["params"]["exceptionDetails"]))
            elif told.get("method") == "Log.entryAdded":
                self.said.append(told["params"]["entry"]["text"])

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        waiting = self._answers[self._number] = asyncio.get_running_loop().create_future()
        await self._line.send_json({"id": self._number, "method": method, "params": parameters})
        told = await asyncio.wait_for(waiting, 60)
        assert "error" not in told, (method, told)
        return dict(told.get("result", {}))

    async def run(self, script: str) -> Any:
        """What an expression is worth in the page."""
        told = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, script: str, seconds: float = 60.0) -> None:
        """Until the expression is true; an element that is there is."""
        deadline = time.monotonic() + seconds
        while not await self.run(f"Boolean({script})"):
            assert time.monotonic() < deadline, f"not so within {seconds} s: {script}\n{await self.text()}\n{self.said}"
            await asyncio.sleep(0.02)

    async def text(self, selector: str = "main") -> str:
        return str(await self.run(f"document.querySelector({selector!r}).innerText"))

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def click(self, selector: str) -> None:
        """With the mouse, in the middle of it: what is covered or hidden cannot be clicked."""
        await self.until(f"document.querySelector({selector!r})?.checkVisibility()")
        await self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = await self.run(
            f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    async def key(self, name: str) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, text="\r" if name == "Enter" else ""
            )

    async def type(self, selector: str, text: str) -> None:
        await self.click(selector)
        await self.call("Input.insertText", text=text)

    async def look(self, width: int = 1280, height: int = 900, scheme: str = "light") -> bytes:
        """A picture (PNG) at that size and in that scheme."""
        await self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)  # fmt: skip
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return base64.b64decode((await self.call("Page.captureScreenshot"))["data"])

    async def close(self) -> None:
        self._reading.cancel()
        await self._line.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a browser listens for DevTools. One module uses it: it is gone before others measure memory and time."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip(f"needs a browser, one of {', '.join(PROGRAMS)} (deploy/packages.sh test)")
    home = tmp_path_factory.mktemp("browser")
    with (home / "said.txt").open("w") as said:
        process = subprocess.Popen(
            [
                program, "--headless", "--remote-debugging-port=0", "--remote-debugging-address=127.0.0.1",
                f"--user-data-dir={home}", "--no-first-run", "--disable-gpu", "--disable-dev-shm-usage",
                "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-pings",
                "--host-resolver-rules=MAP * 127.0.0.1", *(["--no-sandbox"] if os.geteuid() == 0 else []), "about:blank",
            ],
            stdout=said, stderr=said, env=os.environ | {"HOME": str(home)}, start_new_session=True,
        )  # fmt: skip
    try:
        port, deadline = home / "DevToolsActivePort", time.monotonic() + 60
        while not (port.exists() and "\n" in port.read_text()):
            assert process.poll() is None, (home / "said.txt").read_text()
            assert time.monotonic() < deadline, (home / "said.txt").read_text()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port.read_text().splitlines()[0]}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)


@pytest.fixture
async def tab(browser: str, http: aiohttp.ClientSession) -> AsyncIterator[Tab]:
    async with http.put(f"{browser}/json/new?about:blank") as answer:
        made = await answer.json()
    tab = Tab(await http.ws_connect(made["webSocketDebuggerUrl"], max_msg_size=0))
    for domain in ("Runtime", "Log", "Page"):
        await tab.call(f"{domain}.enable")
    yield tab
    await tab.close()
    async with http.get(f"{browser}/json/close/{made['id']}"):
        pass
