# SPDX-License-Identifier: Apache-2.0
"""What events are judged with: the policies and the inventory, followed on the bus from their latest values on.

A broadcast reader: every processor sees all of both topics. A policy that cannot be read is left out and counted, and the
others stay in force. Compiling runs in a thread, judging goes on with the old set meanwhile; the new one is used from the
next frame on. Neighbours: `processors.identify`, `policy.ruleset`, `processors.engine`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final

from bus.contract import Bus, Record
from bus.present import present
from policy.documents import from_json
from policy.ruleset import PostureSettings, compile_ruleset
from policy.unread import PolicySet, lost
from processors.identify import Inventory
from processors.judge import Ruleset
from schemas.enforcement import decode_plan
from schemas.errors import DecodeError, Permanent, PolicyError, Refused, Temporary
from schemas.policy import PolicyDocument
from schemas.topics import ENFORCEMENT_DESIRED, INVENTORY, POLICIES

log = logging.getLogger(__name__)

_UNREADABLE: Final = 5.0
"""Seconds between looks at a bus that cannot be read."""

Compile = Callable[[list[PolicyDocument]], Ruleset]


class Facts:
    """`run` follows until cancelled; `ready` is set when the latest values are in force. `refused`: records not readable;
    `damage`: why the policies are fewer than those that plans were made of, "" when they are whole; `told(damage)` is called
    when that is news; `problem`: the last reason; `recompiled`: rulesets put in force; `policies`: documents in force."""

    def __init__(
        self,
        bus: Bus,
        inventory: Inventory,
        use: Callable[[Ruleset], None],
        moved: Callable[[], None],
        postures: PostureSettings,
        compile_documents: Compile | None = None,
        told: Callable[[str], None] = lambda why: None,
    ) -> None:
        self._bus = bus
        self._inventory = inventory
        self._use = use
        self._moved = moved
        self._compile = compile_documents or (lambda documents: compile_ruleset(documents, postures))
        self._told = told
        self._documents: dict[bytes, PolicyDocument] = {}
        self._unread: set[bytes] = set()
        self.ready = asyncio.Event()
        self.refused = 0
        self.problem = ""
        self.damage = ""
        self.recompiled = 0
        self.policies = 0
        self.position: dict[tuple[str, int], int] = {}
        """(topic name, partition) -> offset after the newest record that is in force here."""

    async def run(self) -> None:
        """Follow both topics. Ends only by cancelling."""
        while True:
            try:
                await self._follow()
            except Temporary as error:
                self.problem = str(error)
                await asyncio.sleep(error.retry_after or 1.0)
            except Permanent as error:
                # What is in force is judged with meanwhile; before the first time nothing is judged at all.
                self._refuse(error)
                log.error("policies and identities cannot be read: %s", error)
                await asyncio.sleep(_UNREADABLE)

    async def _follow(self) -> None:
        # Strictly before `latest`: what is published between the two is then seen twice, never missed.
        async with self._bus.subscribe((INVENTORY, POLICIES), None, "latest") as subscription:
            await self._start()
            self.position = dict(subscription.position)
            while True:
                batch = await subscription.take(500, 1.0)
                changed = False
                for delivery in batch:
                    if delivery.topic is POLICIES or delivery.topic.name == POLICIES.name:
                        changed = self._policy(delivery.record) or changed
                    else:
                        self._identity(delivery.record)
                if changed:
                    await self._recompile()
                if changed and self.damage:
                    await self._look()
                self.position = dict(subscription.position)
                if batch:
                    self._moved()

    async def _start(self) -> None:
        for record in (await self._bus.latest(INVENTORY)).values():
            self._identity(record)
        newest = await self._look()
        # What a damaged table forgot was not deleted: it is judged with as long as this process knows it.
        gone = [key for key in self._documents if key not in newest and not self.damage]
        for key in gone:
            del self._documents[key]
        changed = [self._policy(record) for record in newest.values()]
        if gone or any(changed) or not self.recompiled:
            await self._recompile()
        self.ready.set()
        self._moved()

    async def _look(self) -> dict[bytes, Record]:
        """Every policy record, and in `damage` whether they are fewer than those that plans were made of: told when it is news."""
        # The plans first: policies read after them are never older in a whole set.
        plans = await self._bus.latest(ENFORCEMENT_DESIRED)
        newest = await present(self._bus, POLICIES)
        deleted = {key for key, record in newest.items() if record.value is None}
        unread = {key for key, record in newest.items() if record.value is not None and not _readable(record.value)}
        at = max((record.timestamp_ms for record in newest.values()), default=0) * 1_000_000
        known = PolicySet(newest.keys() - deleted - unread, deleted, unread, at)
        why = ""
        for record in plans.values():
            with contextlib.suppress(DecodeError):
                plan = decode_plan(record.value or b"")
                why = why or lost(plan, known)
        if why and why != self.damage:
            log.error("policies: %s", why)
            self._told(why)
        self.damage = why
        return newest

    def _identity(self, record: Record) -> None:
        try:
            self._inventory.apply(record.key, record.value)
        except DecodeError as error:
            self._refuse(error)

    def _policy(self, record: Record) -> bool:
        """Take one policy record; whether the set changed."""
        if record.value is None:
            return self._documents.pop(record.key, None) is not None
        old = self._documents.get(record.key)
        if old is not None and old.raw == record.value:
            return False
        try:
            self._documents[record.key] = from_json(record.value)
        except PolicyError as error:
            self._refuse(error)
            return False
        return True

    def _refuse(self, error: Exception) -> None:
        self.refused += 1
        self.problem = str(error)

    async def _recompile(self) -> None:
        documents = list(self._documents.values())
        try:
            ruleset = await asyncio.to_thread(self._compile, documents)
        except Exception as error:
            if not self.recompiled:
                raise Refused(f"expected policies that can be compiled, got {type(error).__name__}: {error}") from error
            log.exception("the policies could not be compiled; the ones before stay in force")
            self._refuse(error)
            return
        self._use(ruleset)
        self.recompiled += 1
        self.policies = len(documents)


def _readable(value: bytes) -> bool:
    try:
        from_json(value)
    except PolicyError:
        return False
    return True
