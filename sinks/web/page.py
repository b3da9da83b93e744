# SPDX-License-Identifier: Apache-2.0
"""The web page: what a `store` sink kept, as live activity, alerts, workloads, network and policies.

What it does: serves a few fixed files, JSON, and server-sent events. What it never does: write, ask anything but the store and the
learner that it is given, serve a name it does not know, load anything from elsewhere. It has no users and no passwords: it stays on the loopback, or
behind a proxy that has them. A page of another site cannot read it: it answers only to its own names (DNS rebinding), and
no header lets another origin in. Neighbours: `hub` (streams), `feed` (what is sent), `learning` (learnt policies), `static/` (what the
browser runs).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from schemas.errors import HauberkError, SettingsError
from sinks.formats.summary_tables import build
from sinks.listener import CONNECTIONS, Listener, ListenerStats, names_us, why
from sinks.store.store import Query, Reading
from sinks.web import feed
from sinks.web.hub import Hub, Questions
from sinks.web.learning import Learner, Learning

if TYPE_CHECKING:
    from aiohttp import web

STATIC: Final = Path(__file__).parent / "static"
FILES: Final[Mapping[str, tuple[str, str]]] = {
    "/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
    "/views.js": ("views.js", "text/javascript"), "/draw.js": ("draw.js", "text/javascript"),
    "/learnt.js": ("learnt.js", "text/javascript"), "/page.css": ("page.css", "text/css"), "/icon.svg": ("icon.svg", "image/svg+xml"),
}  # fmt: skip
"""Everything that is served from `static/`: no path of a request is ever looked up in a directory."""

HEADERS: Final = {
    # Nothing inline, nothing from elsewhere, and no string ever becomes markup (trusted types): what a workload calls a
    # file stays text, even if somebody forgets.
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "object-src 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}  # fmt: skip

ROWS_MOST: Final = 5000
"""Rows behind one workload's tables, those with the highest counts: about 5 MB for a moment."""
HOURS_MOST: Final = 24 * 90
KEPT_SECONDS: Final = 3.0
KEPT_SHARE: Final = 20.0
"""An answer is good for three seconds, or twenty times what it took: a large store is not summed up at each click."""
KEPT_MOST: Final = 32
STUCK_SECONDS: Final = 20.0
"""A browser that reads nothing for so long is let go."""

_Handler = Callable[["web.Request"], Awaitable["web.StreamResponse"]]


class PageSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The web page."""

    enabled: Annotated[
        bool, msgspec.Meta(description="Serve it where a `store` sink runs; it shows the first one.", examples=[True])
    ] = True
    host: Annotated[
        str,
        msgspec.Meta(
            description="Address to listen on. It asks for no password: the loopback, or behind a proxy that does.",
            examples=["127.0.0.1"],
        ),
    ] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.", examples=[9643])] = (
        9643
    )
    names: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Host names it answers to, as a proxy passes them on; its own address and the loopback always work.",
            examples=[["hauberk.example.org"]],
        ),
    ] = ()
    clients: Annotated[
        int, msgspec.Meta(ge=1, le=1000, description="Browsers that may watch at a time.", examples=[16])
    ] = 16
    kept_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1 << 40,
            description="Bytes of answers kept for a few seconds; a larger one is made anew each time. By default a share of `memory.budget_bytes`.",
            examples=[4194304],
        ),
    ] = 4 << 20
    learn_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1 << 40,
            description="Bytes that learning policies for it may take, in a process of its own that runs only while somebody looks at them; never more than half of the machine's or container's memory; 0: none are learnt.",
            examples=[536870912],
        ),
    ] = 512 << 20


def refused(settings: PageSettings, error: OSError) -> SettingsError:
    """Its port cannot be had."""
    return SettingsError(
        f"page: expected to listen on `{settings.host}:{settings.port}`, but {why(error)}; set `page.port`, stop who "
        "listens there, or switch it off with `page.enabled=false`"
    )


class WebPage:
    """`await open()`, then `await close()`. `url` is known after `open`. `opening`: a new reader of the store. `learner`: who learns
    policies from it; None: nobody."""

    def __init__(self, settings: PageSettings, opening: Callable[[], Reading], learner: Learner | None = None) -> None:
        self.url = ""
        self._settings = settings
        self._questions = Questions(opening)
        self.hub = Hub(self._questions, settings.clients)
        # Half of what may be kept is for answers, half for learnt policies.
        self._answer_bytes = settings.kept_bytes if learner is None else settings.kept_bytes // 2
        self.learning = Learning(learner, settings.kept_bytes - self._answer_bytes) if learner is not None else None
        self._names = {name.lower() for name in (*settings.names, settings.host)}
        self._kept: dict[tuple[object, ...], tuple[float, bytes]] = {}
        self._listener: Listener | None = None

    async def open(self) -> None:
        """Listen. SettingsError when the port is somebody else's."""
        # Imported here: 25 MB that nobody without a page should carry.
        from aiohttp import web

        @web.middleware
        async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
            return self._refusal(request) or await handler(request)

        application = web.Application(middlewares=[guard])
        application.on_response_prepare.append(_with_headers)
        for path in FILES:
            application.router.add_get(path, self._file)
        application.router.add_get("/events", self._events)
        application.router.add_get("/api/survey", self._survey)
        application.router.add_get("/api/workload", self._workload)
        application.router.add_get("/api/learnt", self._learnt)
        listener = Listener("page", self._settings.host, self._settings.port, CONNECTIONS + self._settings.clients)
        try:
            # Cancelled handlers: a browser that went away is noticed at once, not at the next message.
            await listener.open(application, shutdown_timeout=0.5, handler_cancellation=True)
        except OSError as error:
            self._questions.close()
            raise refused(self._settings, error) from error
        self._listener = listener
        self.url = f"{listener.url}/"

    @property
    def stats(self) -> ListenerStats | None:
        """Of its port; None while it does not listen."""
        return self._listener.stats if self._listener is not None else None

    async def close(self) -> None:
        """End every stream and let go of the port. Twice is once."""
        self.hub.close()
        listener, self._listener = self._listener, None
        if self.learning is not None:
            await self.learning.close()
        if listener is not None:
            await listener.close()
        self._questions.close()

    def _refusal(self, request: web.Request) -> web.Response | None:
        from aiohttp import web

        if request.method not in ("GET", "HEAD"):
            return web.Response(
                status=405, text="expected GET or HEAD: nothing is written here\n", headers={"Allow": "GET, HEAD"}
            )
        if not names_us(request.headers.get("Host", ""), self._names, request.transport):
            return web.Response(
                status=421,
                text="expected to be asked by an address of this page; add the name to `page.names` if it is one\n",
            )
        if _of_another_site(request):
            return web.Response(
                status=403, text="expected to be asked by this page itself, got a request of another site\n"
            )
        return None

    async def _file(self, request: web.Request) -> web.Response:
        from aiohttp import web

        name, kind = FILES[request.path]
        return web.Response(body=(STATIC / name).read_bytes(), content_type=kind, charset="utf-8")

    async def _events(self, request: web.Request) -> web.StreamResponse:
        from aiohttp import web

        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
        if request.method == "HEAD":
            return web.Response(headers={"Content-Type": "text/event-stream"})
        client = self.hub.join()
        if client is None:
            return web.Response(
                status=503,
                text=f"expected at most {self._settings.clients} browsers at a time, this is one more; "
                "close one or set `page.clients`\n",
                headers={"Retry-After": "10"},
            )
        response.force_close()
        try:
            await response.prepare(request)
            message: bytes | None = await self.hub.opening(_had(request))
            while message is not None:
                # A browser that reads nothing fills the socket: TimeoutError, and its place is free.
                async with asyncio.timeout(STUCK_SECONDS):
                    await response.write(message)
                message = await client.next()
        except (ConnectionError, TimeoutError):
            if request.transport is not None:
                request.transport.abort()
        finally:
            self.hub.leave(client)
        return response

    async def _survey(self, request: web.Request) -> web.Response:
        hours = _hours(request)
        if hours is None:
            return _said(400, f"expected `hours` from 1 to {HOURS_MOST}")
        return await self._answer(
            ("survey", hours), lambda reader: feed.survey(reader.behaviours(Query(since=_since(hours))))
        )

    async def _workload(self, request: web.Request) -> web.Response:
        hours, name = _hours(request), request.query.get("name", "")
        if hours is None or not name:
            return _said(400, f"expected `name`, and `hours` from 1 to {HOURS_MOST}")
        fold = request.query.get("fold") == "1"

        def question(reader: Reading) -> feed.Sheet:
            rows = reader.totals(Query(workload=name, since=_since(hours), limit=ROWS_MOST))
            return feed.sheet(name, build(rows, agg=fold), cut=len(rows) >= ROWS_MOST)

        return await self._answer(("workload", name, hours, fold), question)

    async def _learnt(self, request: web.Request) -> web.Response:
        """Every workload's state, or with `policy` one of them. `known`: the `at` of an answer that need not be told again."""
        from aiohttp import web

        if self.learning is None:
            return web.Response(body=msgspec.json.encode({"off": True}), content_type="application/json")
        policy = request.query.get("policy")
        if policy is None:
            return web.Response(
                body=msgspec.json.encode(self.learning.look(_number(request.query.get("known")))),
                content_type="application/json",
            )
        body = self.learning.sheet(policy)
        if body is None:
            return _said(
                404, "expected a policy of the list whose rules are kept; `hauberk discover --explain` has all"
            )
        return web.Response(body=body, content_type="application/json")

    async def _answer(self, key: tuple[object, ...], question: Callable[[Reading], object]) -> web.Response:
        """What the store says, as JSON; the same for a moment to all who ask the same."""
        from aiohttp import web

        found = self._kept.get(key)
        if found is None or found[0] < time.monotonic():
            started = time.monotonic()
            try:
                body = await self._questions.ask(lambda reader: msgspec.json.encode(question(reader)))
            except HauberkError as error:
                return _said(503, str(error))
            ended = time.monotonic()
            found = ended + max(KEPT_SECONDS, KEPT_SHARE * (ended - started)), body
            self._keep(key, found)
        return web.Response(body=found[1], content_type="application/json")

    @property
    def kept_bytes(self) -> int:
        """Of the answers and the learnt policies that are kept now."""
        learnt = self.learning.kept_bytes if self.learning is not None else 0
        return learnt + sum(len(body) for _, body in self._kept.values())

    def _keep(self, key: tuple[object, ...], answer: tuple[float, bytes]) -> None:
        self._kept.pop(key, None)
        room = self._answer_bytes - len(answer[1])
        while self._kept and (len(self._kept) >= KEPT_MOST or sum(len(body) for _, body in self._kept.values()) > room):
            self._kept.pop(next(iter(self._kept)))
        if room >= 0:
            self._kept[key] = answer


async def _with_headers(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(HEADERS)
    response.headers.pop("Server", None)


def _of_another_site(request: web.Request) -> bool:
    """Whether a page of another origin asks, as browsers say it. It could not read the answer, but it could take every
    place of the stream, keep the store busy and begin the learner. A link to the page itself that somebody follows is no such
    request; a frame is. Where a browser says nothing of sites (no HTTPS, no loopback), `Origin` says it of what scripts ask."""
    said = request.headers
    site = said.get("Sec-Fetch-Site")
    if site is None:
        origin = said.get("Origin")
        return origin is not None and origin.partition("://")[2].lower() != said.get("Host", "").lower()
    followed = said.get("Sec-Fetch-Mode") == "navigate" and said.get("Sec-Fetch-Dest", "document") == "document"
    return site in ("cross-site", "same-site") and not (followed and request.path == "/")


def _said(status: int, why: str) -> web.Response:
    from aiohttp import web

    return web.Response(status=status, body=msgspec.json.encode({"why": why}), content_type="application/json")


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and len(text) <= 18 and text.isascii() and text.isdigit() else None


def _had(request: web.Request) -> int | None:
    """The newest alert the browser has: it says so itself when it comes back, the page says it when it begins again."""
    said = _number(request.headers.get("Last-Event-ID"))
    return said if said is not None else _number(request.query.get("after"))


def _hours(request: web.Request) -> int | None:
    hours = _number(request.query.get("hours", "24"))
    return hours if hours is not None and 1 <= hours <= HOURS_MOST else None


def _since(hours: int) -> int:
    return int(time.time()) - 3600 * hours
