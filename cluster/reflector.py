# SPDX-License-Identifier: Apache-2.0
"""One resource of the API server, followed: listed in pages, then watched; listed again only when the server forgot where we were.

::

    list (pages) ─► apply(whole) ─► watch ─► apply(changes) ... ─► the watch ends ─► watch from there
        ▲                             │
        └──────── 410 Gone ◄──────────┘            away: back-off with jitter, and what is known stays

Nothing is removed because a list or a watch failed: `whole` is told of a complete list only. Neighbours: `server`;
`sensors.kubernetes` decides what objects mean.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from cluster.server import ApiStatus, Gone, Server
from schemas.errors import HauberkError, Incompatible, Permanent

log = logging.getLogger(__name__)

METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_METADATA_WATCH: Final = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json"
_FIRST: Final = 0.2
_LAST: Final = 30.0


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """`path`: of the list. `metadata`: only metadata is wanted. `optional`: the cluster may lack the kind (a CRD), `absent`: what to do then.
    `kind`: the part of an object that is wanted, so that of a long list nothing else is held."""

    name: str
    path: str
    metadata: bool = False
    optional: bool = False
    absent: str = ""
    kind: Any = None


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Versioned(msgspec.Struct):
    metadata: _ListMeta


Apply = Callable[[bool, list[tuple[bool, msgspec.Raw]]], None]
"""`apply(whole, changes)`: each change says whether the object is there, and the object as JSON."""

_page = msgspec.json.Decoder(_Page).decode
_event = msgspec.json.Decoder(_Event).decode
_versioned = msgspec.json.Decoder(_Versioned).decode
_status = msgspec.json.Decoder(ApiStatus).decode


class Reflector:
    """`run(apply)` until cancelled. `ready`: a whole list was applied. `problem`: why it cannot be followed now, "" when it is.
    `lists`, `watches`, `failures`: since start. `absent`: the cluster does not have the kind. `name`: of the kind."""

    def __init__(self, server: Server, resource: Resource) -> None:
        self._server = server
        self._resource = resource
        self._part = None if resource.kind is None else decoded(resource.kind)
        self.ready = asyncio.Event()
        self.problem = ""
        self.absent = False
        self.lists = 0
        self.watches = 0
        self.failures = 0

    @property
    def name(self) -> str:
        return self._resource.name

    async def run(self, apply: Apply, after: Sequence[Reflector] = ()) -> None:
        """Follow the resource, once all of `after` were listed. Every error is told once and tried again."""
        for other in after:
            await self._wait_for(other)
        version = ""
        attempt = 0
        while True:
            try:
                if not version:
                    version = await self._list(apply)
                    self.lists += 1
                    self._good()
                version = await self._watch(version, apply)
                attempt = 0
            except Gone:
                version = ""
            except HauberkError as error:
                await self._pause(error, attempt)
                attempt += 1
            except (msgspec.MsgspecError, ValueError) as error:
                version = ""
                await self._pause(
                    Permanent(f"expected {self._resource.name} as JSON from {self._server.where}, got: {error}"),
                    attempt,
                )
                attempt += 1

    async def _wait_for(self, other: Reflector) -> None:
        """What keeps the other keeps this one too, and is told of it as well."""
        while not other.ready.is_set():
            if (why := other.problem) and why != self.problem:
                log.warning("%s of the cluster wait for %s, what is known stays: %s", self.name, other.name, why)
            self.problem = why
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FIRST):
                    await other.ready.wait()

    async def _list(self, apply: Apply) -> str:
        settings = self._server.settings
        accept = METADATA if self._resource.metadata else "application/json"
        objects: list[tuple[bool, msgspec.Raw]] = []
        query = {"limit": str(settings.page)}
        while True:
            page = _page(await self._server.get(self._resource.path, query, accept))
            objects += [(True, self._wanted(one)) for one in page.items or ()]
            if not page.metadata.continue_:
                break
            query["continue"] = page.metadata.continue_
        self.absent = False
        apply(True, objects)
        return page.metadata.resource_version

    def _wanted(self, one: msgspec.Raw) -> msgspec.Raw:
        """The object without what nobody asks for, and without the page that it stood on."""
        if self._part is not None:
            try:
                return msgspec.Raw(msgspec.json.encode(self._part(one)))
            except (msgspec.MsgspecError, ValueError):
                pass
        return one.copy()

    async def _watch(self, version: str, apply: Apply) -> str:
        """Changes since `version` until the server ends the watch; the version to go on from. Gone when it is too old."""
        seconds = self._server.settings.watch_seconds * (0.75 + random.random() / 2)
        query = {
            "watch": "1", "allowWatchBookmarks": "true", "resourceVersion": version, "timeoutSeconds": str(max(1, int(seconds))),
        }  # fmt: skip
        accept = _METADATA_WATCH if self._resource.metadata else "application/json"
        self.watches += 1
        async with self._server.lines(self._resource.path, query, accept, seconds + 30) as lines:
            self._good()
            async for line in lines:
                event = _event(line)
                if event.type == "ERROR":
                    status = _status(event.object)
                    if status.code == 410:
                        raise Gone(status.message)
                    raise Permanent(f"expected changes of {self._resource.name}, got {status.code}: {status.message}")
                version = _versioned(event.object).metadata.resource_version or version
                if event.type != "BOOKMARK":
                    apply(False, [(event.type != "DELETED", event.object)])
        return version

    def _good(self) -> None:
        if self.problem:
            # As loud as the outage was.
            log.warning("%s of the cluster are followed again", self._resource.name)
        self.problem = ""
        self.ready.set()

    async def _pause(self, error: HauberkError, attempt: int) -> None:
        self.failures += 1
        self.absent = self._resource.optional and isinstance(error, Incompatible)
        if str(error) != self.problem:
            remedy = f"; {self._resource.absent}" if self.absent and self._resource.absent else ""
            log.warning(
                "%s of the cluster cannot be followed, what is known stays: %s%s", self._resource.name, error, remedy
            )
        self.problem = str(error)
        bound = min(_LAST, _FIRST * 2.0 ** min(attempt, 16))
        await asyncio.sleep(bound * (0.5 + random.random() / 2))


def decoded(kind: Any) -> Callable[[msgspec.Raw], Any]:
    """A decoder of objects of `kind`. Raises msgspec.MsgspecError."""
    return msgspec.json.Decoder(kind).decode
