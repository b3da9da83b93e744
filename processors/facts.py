# SPDX-License-Identifier: Apache-2.0
"""What events are judged with: the policies and the inventory, followed on the bus from their latest values on.

A broadcast reader: every processor sees all of both topics. A policy that cannot be read is left out and counted, and the
others stay in force. Compiling runs in a thread, judging goes on with the old set meanwhile; the new one is used from the
next frame on. Neighbours: `processors.identify`, `policy.ruleset`, `processors.engine`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bus.contract import Bus, Record
from policy.documents import from_json
from policy.ruleset import PostureSettings, compile_ruleset
from processors.identify import Inventory
from processors.judge import Ruleset
from schemas.errors import DecodeError, PolicyError, Temporary
from schemas.policy import PolicyDocument
from schemas.topics import INVENTORY, POLICIES

Compile = Callable[[list[PolicyDocument]], Ruleset]


class Facts:
    """`run` follows until cancelled; `ready` is set when the latest values are in force. `refused`: records not readable;
    `problem`: the last reason; `recompiled`: rulesets put in force; `policies`: documents in force."""

    def __init__(
        self,
        bus: Bus,
        inventory: Inventory,
        use: Callable[[Ruleset], None],
        moved: Callable[[], None],
        postures: PostureSettings,
        compile_documents: Compile | None = None,
    ) -> None:
        self._bus = bus
        self._inventory = inventory
        self._use = use
        self._moved = moved
        self._compile = compile_documents or (lambda documents: compile_ruleset(documents, postures))
        self._documents: dict[bytes, PolicyDocument] = {}
        self.ready = asyncio.Event()
        self.refused = 0
        self.problem = ""
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
                self.position = dict(subscription.position)
                if batch:
                    self._moved()

    async def _start(self) -> None:
        for record in (await self._bus.latest(INVENTORY)).values():
            self._identity(record)
        newest = await self._bus.latest(POLICIES)
        gone = [key for key in self._documents if key not in newest]
        for key in gone:
            del self._documents[key]
        changed = [self._policy(record) for record in newest.values()]
        if gone or any(changed) or not self.recompiled:
            await self._recompile()
        self.ready.set()
        self._moved()

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
        ruleset = await asyncio.to_thread(self._compile, documents)
        self._use(ruleset)
        self.recompiled += 1
        self.policies = len(documents)
