# SPDX-License-Identifier: Apache-2.0
"""Which of several replicas works: a `Lease` of coordination.k8s.io/v1, as kube-controller-manager's leaders take it.

A holder writes the time into the object more often than `seconds`; who sees no newer writing for that long, by its own
clock and not by the time in the object, takes it. The API server's version check makes one of two takers lose.
Neighbours: `server`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

import msgspec

from cluster.server import Conflict, Server
from schemas.errors import HauberkError, Incompatible

log = logging.getLogger(__name__)

_LOOK: Final = 0.3
"""Seconds for the server to answer who has the lease, when it is given back: who ends waits no longer for one that hangs."""
_GIVE_BACK: Final = 2.0
"""The same with the writing, by a server that has just answered."""


class _Meta(msgspec.Struct, rename="camel", omit_defaults=True):
    name: str
    namespace: str
    resource_version: str = ""


class _Spec(msgspec.Struct, rename="camel", omit_defaults=True):
    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class _Lease(msgspec.Struct, rename="camel"):
    metadata: _Meta
    spec: _Spec = msgspec.field(default_factory=_Spec)
    api_version: str = "coordination.k8s.io/v1"
    kind: str = "Lease"


_decode = msgspec.json.Decoder(_Lease).decode


class LeaderLease:
    """`held`: it is ours now. `holder`: who had it when it was last read. `problem`: why it cannot be read or written.

    `seconds`: after which a silent holder is replaced; a holder that could not renew for two thirds of that stops by itself, so
    that two never work at once while clocks run at the same speed.
    """

    def __init__(self, server: Server, namespace: str, name: str, me: str, seconds: float = 15.0) -> None:
        self._server = server
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._namespace = namespace
        self._name = name
        self._me = me
        self._seconds = seconds
        self._seen: tuple[str, float] = ("", 0.0)
        self._asked = 0.0
        self.held = False
        self.holder = ""
        self.problem = ""

    async def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Take the lease whenever it is free, do `work` while it is held, give it back when cancelled. What `work` raises is raised."""
        while True:
            await self._acquire()
            log.info("this replica works for the cluster now: it has the lease %s", self._name)
            working = asyncio.ensure_future(work())
            keeping = asyncio.create_task(self._keep())
            try:
                await asyncio.wait((working, keeping), return_when="FIRST_COMPLETED")
                if working.done():
                    working.result()
                    return
                log.warning(
                    "the lease %s was lost to `%s`, this replica stands by: %s", self._name, self.holder, self.problem
                )
            finally:
                for task in (working, keeping):
                    task.cancel()
                await asyncio.gather(working, keeping, return_exceptions=True)
                # Also after renewals that failed: what is ours on the server is given back, what is another's is left alone.
                if self.holder in ("", self._me):
                    await self._give_back()

    async def _acquire(self) -> None:
        while not self.held:
            try:
                await self._try()
                self.problem = ""
            except Conflict:
                pass
            except HauberkError as error:
                if str(error) != self.problem:
                    log.warning("the lease %s cannot be read, so this replica stands by: %s", self._name, error)
                self.problem = str(error)
            if not self.held:
                await asyncio.sleep(self._seconds / 6 * (0.75 + random.random() / 2))

    async def _keep(self) -> None:
        """Renew until that was not possible for two thirds of the time."""
        # Since it was asked for: others count from when the server wrote it, which may be long before the answer was here.
        renewed = self._asked
        while time.monotonic() - renewed < self._seconds * 2 / 3:
            await asyncio.sleep(self._seconds / 6)
            try:
                async with asyncio.timeout(self._seconds / 3):
                    await self._try()
            except (HauberkError, TimeoutError) as error:
                self.problem = str(error) or "no answer in time"
                continue
            if not self.held:
                return
            renewed, self.problem = self._asked, ""
        self.held = False

    async def _try(self) -> None:
        """Read, and write when it is ours or nobody's."""
        was = self.held
        self._asked = time.monotonic()
        try:
            lease = _decode(await self._server.get(f"{self._path}/{self._name}"))
        except Incompatible:
            lease = None
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        if lease is None:
            made = _Lease(_Meta(self._name, self._namespace), _Spec(self._me, int(self._seconds) or 1, now, now, 0))
            await self._server.send("POST", self._path, msgspec.to_builtins(made))
            self.held, self.holder = True, self._me
            return
        spec = lease.spec
        self.holder = spec.holder_identity or ""
        mark = f"{self.holder} {spec.renew_time}"
        if mark != self._seen[0]:
            self._seen = (mark, time.monotonic())
        silent = time.monotonic() - self._seen[1]
        if self.holder not in ("", self._me) and silent < (spec.lease_duration_seconds or self._seconds):
            self.held = False
            return
        if not (was and self.holder == self._me):
            spec.acquire_time, spec.lease_transitions = now, (spec.lease_transitions or 0) + 1
        spec.holder_identity, spec.renew_time, spec.lease_duration_seconds = self._me, now, int(self._seconds) or 1
        await self._server.send("PUT", f"{self._path}/{self._name}", msgspec.to_builtins(lease))
        self.held, self.holder = True, self._me

    async def _give_back(self) -> None:
        """So that another takes it at once; when that fails it waits until this one counts as silent."""
        self.held = False
        try:
            async with asyncio.timeout(_LOOK) as deadline:
                lease = _decode(await self._server.get(f"{self._path}/{self._name}"))
                deadline.reschedule(asyncio.get_running_loop().time() + _GIVE_BACK)
                if lease.spec.holder_identity == self._me:
                    lease.spec.holder_identity = ""
                    await self._server.send("PUT", f"{self._path}/{self._name}", msgspec.to_builtins(lease))
        except (HauberkError, TimeoutError) as error:
            log.warning("the lease %s was not given back: %s", self._name, str(error) or "no answer in time")
