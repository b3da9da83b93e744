# SPDX-License-Identifier: Apache-2.0
"""The engine of `hauberk cluster`: watches the API server, and publishes facts and policies as they change.

It keeps no state of its own: what is on the bus is read at the start, what a whole list does not have any more is removed.
An API server or a bus that is away changes nothing. Neighbours: `facts_watch`, `policy_watch`, `cluster.reflector`, `cluster.lease`.
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from bus.contract import Bus
from bus.follow import Follower
from bus.side_by_side import SideBySide
from cluster.lease import LeaderLease
from cluster.reflector import Reflector
from cluster.server import Server
from schemas.topics import CLUSTER, POLICIES
from sensors.kubernetes.ended_facts import EndedFacts
from sensors.kubernetes.facts_watch import OWNERS, PODS, FactsWatch
from sensors.kubernetes.policy_watch import HEADERS, Check, PolicyWatch
from sensors.kubernetes.published import Published
from sensors.kubernetes.settings import ClusterSettings
from sensors.kubernetes.stats import ClusterStats

Beside = Callable[[], Coroutine[Any, Any, None]]
_SWEEP: Final = 60.0
"""Seconds between looks for facts whose time is over."""


class ClusterWatch:
    """`run` until cancelled. `ready`: everything the cluster has was on the bus once, or this replica stands by. `beside`: what else
    the replica that works does, each until cancelled."""

    def __init__(
        self, bus: Bus, server: Server, settings: ClusterSettings, check: Check, beside: Sequence[Beside] = ()
    ) -> None:
        self._bus = bus
        self._server = server
        self._settings = settings
        self._check = check
        self._beside = beside
        self._begin()
        lease = settings.lease
        me = f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        self.lease = LeaderLease(server, lease.namespace, lease.name, me, lease.seconds) if lease.enabled else None

    def _begin(self) -> None:
        """Everything anew: what another replica wrote meanwhile is read again."""
        self._facts = Published(self._bus, CLUSTER)
        self._policies = Published(self._bus, POLICIES, HEADERS)
        settings = self._settings
        self._ended = EndedFacts(self._facts, settings.ended_hours * 3600, settings.ended_most)
        self._facts_watch = FactsWatch(self._facts, self._ended)
        self.policies = PolicyWatch(self._policies, self._facts, self._check)
        applies = self._facts_watch.applies + (self.policies.applies if self._settings.policies else [])
        self._reflected = [(Reflector(self._server, resource), apply) for resource, apply in applies]

    async def run(self) -> None:
        """Work, or stand by while another replica does."""
        if self.lease is None:
            await self._work()
        else:
            await self.lease.run(self._work)

    async def _work(self) -> None:
        self._begin()
        await self._facts.load()
        self._ended.load()
        await self._policies.load()
        follower = Follower(self._bus, (POLICIES,))
        async with SideBySide() as parts:
            parts.start(follower.run(self.policies.follow))
            # Strictly before an object is put on the bus: what others own there must be known.
            await parts.until(follower.ready.wait())
            parts.start(self._facts.run(), self._policies.run(), self._sweep(), *(work() for work in self._beside))
            # Owners before pods: a pod's first fact names its Deployment, not its ReplicaSet.
            owners = [one for one, _ in self._reflected if one.name in {owner.name for owner in OWNERS}]
            for reflector, apply in self._reflected:
                parts.start(reflector.run(apply, owners if reflector.name == PODS.name else ()))
            await parts.first()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(_SWEEP)
            self._facts_watch.sweep()

    @property
    def standing_by(self) -> bool:
        """Whether another replica works."""
        return self.lease is not None and not self.lease.held

    @property
    def problems(self) -> dict[str, str]:
        """Each kind that cannot be followed, and `lease` where that cannot be read -> one sentence."""
        told = {one.name: one.problem for one, _ in self._reflected if one.problem}
        return ({"lease": self.lease.problem} if self.lease is not None and self.lease.problem else {}) | told

    @property
    def ready(self) -> bool:
        """Every kind that the cluster has was listed whole, and all of it is on the bus; or this replica stands by."""
        if self.standing_by:
            return bool(self.lease and self.lease.holder)
        listed = all(one.ready.is_set() or one.absent for one, _ in self._reflected)
        return listed and not self._facts.waiting and not self._policies.waiting

    @property
    def stats(self) -> ClusterStats:
        """The counts as of now."""
        return ClusterStats(
            facts=len(self._facts.keys()), published=self._facts.published + self._policies.published,
            removed=self._facts.removed + self._policies.removed, unchanged=self._facts.unchanged,
            undecoded=self._facts_watch.undecoded, waiting=self._facts.waiting + self._policies.waiting,
            unpublished=self._facts.refused + self._policies.refused,
            policies=self.policies.in_force, refused_policies=self.policies.refused,
            foreign_policies=self.policies.foreign, away=sum(bool(one.problem) for one, _ in self._reflected),
            ended_facts=len(self._ended), dropped_facts=self._ended.dropped, cut=self._facts_watch.cut,
            misread=len(self._facts_watch.misread),
        )  # fmt: skip
