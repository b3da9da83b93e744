# SPDX-License-Identifier: Apache-2.0
"""The saved plan into programs that are loaded and have not taken the place of the old ones yet: rules hold through the swap.

Without it a new build's programs would run without rules from the swap until the stage of enforcement has started. Must never
raise: a plan that cannot be carried over is reported, and the load goes on. Neighbours: `kernel.loading.load` (calls between
attaching and replacing), `agent` (who carries out the same plan again and finds nothing to write).
"""

from __future__ import annotations

import logging
from pathlib import Path

from enforcers.apply import Applier
from enforcers.settings import EnforceSettings
from enforcers.trials import TrialRecord
from schemas.enforcement import Plan, decode_plan

log = logging.getLogger(__name__)


def saved_file(settings: EnforceSettings) -> Path | None:
    """Where the plan in force is saved; None when it is not."""
    return Path(settings.state_dir, "plan.msgpack") if settings.state_dir else None


def saved_plan(settings: EnforceSettings) -> Plan | None:
    """The saved plan; None when there is none. Raises DecodeError, OSError."""
    file = saved_file(settings)
    if file is None:
        return None
    try:
        return decode_plan(file.read_bytes())
    except FileNotFoundError:
        return None


def opened(pin_dir: str, node: str, settings: EnforceSettings) -> Applier:
    """Whoever carries plans out on these pins; the caller closes it."""
    return Applier(
        pin_dir, node, settings.backends, settings.grace_seconds,
        closed=settings.unresolved == "stop", rings=settings.io_uring == "pass", mounts=settings.mounts == "pass",
        loaded=settings.profiles, lsm=settings.lsm, shadow=settings.shadow,
    )  # fmt: skip


def carry_over(pin_dir: str, node: str, settings: EnforceSettings) -> None:
    """Put the saved plan in force on the programs under `pin_dir`."""
    try:
        plan = saved_plan(settings)
        if plan is None:
            return
        applier = opened(pin_dir, node, settings)
        record = TrialRecord(settings.state_dir)
        try:
            standing = record.now(plan)
            receipt = applier.apply(standing.plan)
            record.lifted(standing.over)
        finally:
            applier.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the programs must come into use all the same
        log.error("the saved plan is not in force until enforcement has started: %s: %s", type(error).__name__, error)
        return
    for sentence in receipt.failed:
        log.warning("enforcement: %s", sentence)
