# SPDX-License-Identifier: Apache-2.0
"""Whether what a plan says of a container that starts is in force: what its OCI hook waits for.

Neighbours: `agent` (says what was carried out), `newborn` (what is held before the first program), `sensors.containers.start_socket`.
"""

from __future__ import annotations

import asyncio

from schemas.enforcement import Plan, Receipt


class HeldStarts:
    """`until(cgroup)` for each container that starts, `carried_out` for each plan. All of one event loop."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._receipt: Receipt | None = None
        self._changed = asyncio.Event()

    def carried_out(self, plan: Plan, receipt: Receipt) -> None:
        """`plan` is in force, as far as `receipt` says."""
        self._plan, self._receipt = plan, receipt
        self._changed.set()
        self._changed = asyncio.Event()

    async def until(self, cgroup: int) -> str:
        """Wait for a plan that was made with the container of that cgroup in it; "" when its rules are in force, else why not."""
        while self._plan is None or cgroup not in self._plan.starting:
            await self._changed.wait()
        return self._problem(cgroup, self._plan)

    def _problem(self, cgroup: int, plan: Plan) -> str:
        scope = next((one for one in plan.scopes if one.cgroups[:1] == (cgroup,)), None)
        if plan.held:
            return plan.held
        if scope is None or not (scope.paths or scope.network):
            return ""
        assert self._receipt is not None, "set with the plan"
        who = f"{scope.workload or scope.cgroup_path}: "
        if failed := next((one for one in self._receipt.failed if one.startswith(who)), ""):
            return failed
        return "" if self._receipt.backends else "; ".join(self._receipt.failed) or "no backend enforces here"
