# SPDX-License-Identifier: Apache-2.0
"""Whether the stages of this process do their work: what `/readyz` asks. Each check names what is not ready, and why.

Ready is: what a stage subscribes to is read to its end, programs are attached and drained, some backend enforces where one is
asked for, the far sides of sinks accept. One container whose rules failed is in the receipt and the metrics, not here.
Neighbours: `metrics.Exposure` (shows it), `supervision` (starts what failed again).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bus.contract import Bus
    from enforcers.agent import Enforcement
    from hauberk.stages import ClusterPart, PlannerPart, StagePart
    from hauberk.supervision import Supervision
    from processors.engine import Processor
    from sensors.containers.inventory import NodeInventory
    from sensors.node.agent import Agent

Checks = Callable[[], Mapping[str, str]]
"""What is not ready -> why; empty when all is."""

STILL: Final = 30.0
"""Seconds without progress after which something that always moves, or has work, is stuck."""


class StageProgress:
    """`stuck(count)`: whether `count` was the same, and there was work, at every look of the last `STILL` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._count = -1
        self._worked = False
        self._since = clock()

    def stuck(self, count: int, work: bool = True) -> bool:
        """Look now."""
        if count != self._count or not work or not self._worked:
            self._count, self._since = count, self._clock()
        self._worked = work
        return self._clock() - self._since >= STILL


def of_stages(supervision: Supervision) -> Checks:
    """Stages that failed and do not run again yet."""
    return lambda: {f"stage.{name}": supervision.stats[name].last for name in supervision.down}


def of_spool(bus: Bus) -> Checks:
    """Topics that the bus does not take while it takes others: somebody has to make or grant them. A bus that is away is not here,
    because what a node does for its containers goes on without."""

    def checks() -> dict[str, str]:
        # Not asked for by its type: who has no spool does not import it.
        return {f"spool.{topic}": why for topic, why in getattr(bus, "unserved", {}).items()}

    return checks


def of_processor(part: StagePart[Processor]) -> Checks:
    """Policies and identities are read to their end, and frames are taken and committed."""
    progress = StageProgress()

    def checks() -> dict[str, str]:
        engine, found = part.engine, {}
        pump = engine.pump.stats
        if not engine.facts.ready.is_set():
            found["policies"] = engine.facts.failure or "policies and identities are not read completely yet"
        elif engine.facts.failure:
            found["policies"] = engine.facts.failure
        if pump.failure:
            found["frames"] = pump.failure
        elif progress.stuck(pump.records + pump.commits, pump.lag > 0):
            found["frames"] = f"{pump.lag} frames wait and none was taken or committed for {STILL:g} s"
        return found

    return checks


def of_planner(part: PlannerPart) -> Checks:
    """Plans for everything on the bus are published, or another planner does that and this one stands by."""

    def checks() -> dict[str, str]:
        engine = part.engine
        if part.election.state == "standing by":
            return {}
        if part.election.state == "joining":
            return {"planner": "the bus has not said yet which planner is the active one"}
        if engine.failure or not engine.ready.is_set():
            return {"planner": engine.failure or "policies and inventory are not read completely yet"}
        if engine.unplanned:
            return {"planner": f"no plan for {', '.join(engine.unplanned)}: {engine.stats.problem or 'not made yet'}"}
        return {}

    return checks


def of_cluster(part: ClusterPart) -> Checks:
    """Every kind is listed and on the bus, or another replica works. A kind that cannot be followed is not ready."""

    def checks() -> dict[str, str]:
        engine = part.engine
        if engine.problems:
            return {f"cluster.{kind}": why for kind, why in engine.problems.items()}
        if part.teller is not None and part.teller.problem and not engine.standing_by:
            return {"cluster": part.teller.problem}
        return {} if engine.ready else {"cluster": "objects of the cluster are not on the bus yet"}

    return checks


def of_sensor(part: StagePart[Agent]) -> Checks:
    """Somebody drains the kernel's rings."""
    progress = StageProgress()

    def checks() -> dict[str, str]:
        drains = part.engine.stats.drains
        if not drains:
            return {"sensor": "the kernel's rings have not been drained yet"}
        return {"sensor": f"the kernel's rings were not drained for {STILL:g} s"} if progress.stuck(drains) else {}

    return checks


def of_inventory(engine: Callable[[], NodeInventory]) -> Checks:
    """What ran at start is published."""
    return lambda: {} if engine().ready.is_set() else {"inventory": "what runs on this node is not published yet"}


def of_enforcement(part: StagePart[Enforcement]) -> Checks:
    """A plan, saved or desired, was carried out or there is none, and backends that are asked for can be used."""

    def checks() -> dict[str, str]:
        engine = part.engine
        if not engine.ready.is_set():
            return {"enforcement": engine.problem or "no plan has been applied yet"}
        return {"enforcement": engine.idle} if engine.idle else {}

    return checks
