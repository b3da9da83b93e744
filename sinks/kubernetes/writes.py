# SPDX-License-Identifier: Apache-2.0
"""The way to the API server: statuses that are there, paced writes of others, Events.

Neighbours: `teller` (decides what), `cluster.server`.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

import msgspec

from cluster.policy_object import KINDS
from cluster.server import Conflict, Server
from schemas.cluster import PolicyFact
from schemas.errors import Incompatible
from schemas.policy import API_VERSION
from sinks.kubernetes import event as events

_PLURALS: Final = {kind: plural for plural, kind in KINDS.items()}
_MERGE: Final = "application/merge-patch+json"


class _StatusMeta(msgspec.Struct):
    name: str
    namespace: str = ""
    uid: str = ""


class _StatusObject(msgspec.Struct):
    metadata: _StatusMeta
    status: msgspec.Raw = msgspec.Raw(b"{}")


class _StatusListMeta(msgspec.Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _StatusPage(msgspec.Struct):
    metadata: _StatusListMeta
    items: list[_StatusObject] | None = None


_page = msgspec.json.Decoder(_StatusPage).decode


class Writes:
    """One at a time, `per_second` at most. Everything raises HauberkError."""

    def __init__(self, server: Server, per_second: float) -> None:
        self._server = server
        self._pause = 1.0 / per_second
        self._next = 0.0
        self._one = asyncio.Lock()
        self._me = socket.gethostname()

    async def statuses(self) -> dict[str, tuple[str, bytes]]:
        """Key of each policy object of the cluster -> its uid and status, as JSON: an object of Python is ten times that."""
        found: dict[str, tuple[str, bytes]] = {}
        for kind, plural in _PLURALS.items():
            query = {"limit": str(self._server.settings.page)}
            while True:
                try:
                    page = _page(await self._server.get(f"/apis/{API_VERSION}/{plural}", query))
                except Incompatible:
                    break
                for one in page.items or ():
                    meta = one.metadata
                    found[f"{kind}/{meta.namespace}/{meta.name}"] = meta.uid, bytes(one.status)
                if not page.metadata.continue_:
                    break
                query["continue"] = page.metadata.continue_
        return found

    async def status(self, fact: PolicyFact, status: dict[str, Any]) -> bool:
        """Write the status of the object that `fact` is of; whether the server kept all of it: what its definition does not name it drops.
        Conflict when another has its name by now."""
        place = f"namespaces/{fact.namespace}/" if fact.namespace else ""
        path = f"/apis/{API_VERSION}/{place}{_PLURALS[fact.kind]}/{fact.name}/status"
        # With its uid: the server refuses to give one object the status of another that had its name.
        stored = await self._send("PATCH", path, {"metadata": {"uid": fact.uid}, "status": status}, _MERGE)
        return "conditions" not in status or "conditions" in _kept(stored)

    async def still_there(self, fact: PolicyFact) -> bool:
        """Whether the object that `fact` is of is there: then a status that was not found is one that its definition lacks."""
        place = f"namespaces/{fact.namespace}/" if fact.namespace else ""
        query = {"fieldSelector": f"metadata.name={fact.name}"}
        page = _page(await self._server.get(f"/apis/{API_VERSION}/{place}{_PLURALS[fact.kind]}", query))
        return any(one.metadata.uid == fact.uid for one in page.items or ())

    async def event(self, subject: events.EventSubject, reason: str, message: str, now: str, once: str = "") -> None:
        """Say it in an Event, or count it in the one that is there. `once`: what is said; where that was said before, nothing is."""
        made = events.event(subject, reason, message, now, self._me, once)
        path = f"/api/v1/namespaces/{made['metadata']['namespace']}/events"
        try:
            await self._send("POST", path, made, "application/json")
        except Conflict:
            if once:
                return
            mine = f"{path}/{made['metadata']['name']}"
            found = msgspec.json.decode(await self._server.get(mine))
            await self._send("PATCH", mine, events.again(found, message, now), _MERGE)

    async def _send(self, method: str, path: str, body: object, content: str) -> bytes:
        clock = asyncio.get_running_loop().time
        async with self._one:
            if (left := self._next - clock()) > 0:
                await asyncio.sleep(left)
            self._next = clock() + self._pause
            return await self._server.send(method, path, body, content=content)


def _kept(stored: bytes) -> dict[str, Any]:
    """The status of an object as the server answers with it; {} when that is none."""
    try:
        found = msgspec.json.decode(msgspec.json.decode(stored, type=_StatusObject).status)
    except (msgspec.MsgspecError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
