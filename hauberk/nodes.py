# SPDX-License-Identifier: Apache-2.0
"""What the bus knows of nodes: when each was last heard of, what it refused, and how one that left for good is forgotten.

A node says that it is there by its receipt, which its agent repeats every 30 s, and by its inventory. It must never judge by
what a receipt says, only by when the bus took it, by the clock of the bus (`Topic.log_time`). Neighbours: `verbs.apply`, `verbs.get`, `verbs.describe`, `verbs.delete`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from bus.contract import Bus
    from bus.standing import Newest
    from schemas.verdict import RuleRef

DROP_SECONDS: Final = 10.0
"""Time for the planner to drop the plan of a node that was forgotten: it hears at once, and gathers changes for a moment."""
STALE_SECONDS: Final = 120.0
"""A node that was not heard of for longer is away: four of its receipts are missing."""


class RefusedRule(NamedTuple):
    """A rule that a node does not enforce, by its receipt. `backend`: as `get nodes` names it; `code`: one of `schemas.refusals`."""

    node: str
    ref: RuleRef
    backend: str
    code: str
    reason: str

    @property
    def policy(self) -> str:
        """Its policy's key, `kind/namespace/name`."""
        return f"{self.ref.kind}/{self.ref.namespace}/{self.ref.policy}"

    @property
    def rule(self) -> str:
        """Where it stands in its policy."""
        return self.ref.position or "(default posture)"


async def last_heard(bus: Newest) -> dict[str, float]:
    """Node -> Unix seconds of its newest receipt or identity on the bus."""
    from schemas.topics import ENFORCEMENT_STATUS, INVENTORY

    found: dict[str, float] = {}
    for topic in (INVENTORY, ENFORCEMENT_STATUS):
        for key, record in (await bus.latest(topic)).items():
            node = key.split(b"/", 1)[0].decode("utf-8", "replace")
            found[node] = max(found.get(node, 0.0), record.timestamp_ms / 1000)
    return found


async def unheld(bus: Newest, *, partial: bool = False) -> list[RefusedRule]:
    """Every rule that some node's receipt refuses, by node; with `partial` those enforced of which a part is not."""
    from hauberk.client import readable
    from schemas.backends import backend_name
    from schemas.enforcement import decode_receipt
    from schemas.topics import ENFORCEMENT_STATUS

    found = []
    receipts = [record.value for _, record in sorted((await bus.latest(ENFORCEMENT_STATUS)).items()) if record.value]
    for receipt in readable(receipts, decode_receipt, "receipts"):
        found += [
            RefusedRule(receipt.node, one.ref, backend_name(one.backend), one.code.value, one.reason)
            for one in (receipt.partial if partial else receipt.refused)
        ]  # fmt: skip
    return found


async def forget(bus: Bus, node: str) -> int:
    """Take the node's identities, plan and receipt off the bus; how many records that were. What it enforces it goes on enforcing.

    Where only the planner may write plans (Kafka), its plan goes as soon as the planner hears that the identities are gone."""
    from bus.contract import Record
    from schemas.errors import NotGranted
    from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY, NODES, PROGRESS

    gone = 0
    denied: NotGranted | None = None
    # Identities strictly first: the planner drops the node with them and makes no plan for it any more.
    for topic in (INVENTORY, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, PROGRESS, NODES):
        keys = [key for key in await bus.latest(topic) if key.split(b"/", 1)[0] == node.encode()]
        if keys:
            try:
                await bus.publish(topic, [Record(key, None) for key in keys])
            except NotGranted as error:
                if topic is not ENFORCEMENT_DESIRED:
                    raise
                denied = error
        gone += len(keys)
    if denied is not None:
        deadline = time.monotonic() + DROP_SECONDS
        while node.encode() in await bus.latest(ENFORCEMENT_DESIRED):
            if time.monotonic() > deadline:
                raise NotGranted(
                    f"expected the planner to drop the plan of `{node}`, it did not within {DROP_SECONDS:g} s; start it and try again: {denied}"
                )
            await asyncio.sleep(0.1)
    return gone
