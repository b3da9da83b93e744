# SPDX-License-Identifier: Apache-2.0
"""Policies that were applied with `--confirm`: held for a minute, and lifted again unless somebody confirms them.

    plan with trials -> when was each first seen here? -> younger than a minute: the plan as it is; else what holds without them

The minute is counted by each node on its own clock since boot, from the first time that it was given the policy; a reboot ends it.
What was seen is on disk strictly before the plan is carried out, so that an agent that is killed finds the minute where it was.
Where that cannot be written a trial counts as over. Neighbours: `agent` (lifts), `trial_watch` (lifts when the agent is gone).
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from schemas.enforcement import Plan, Refusal, Trial
from schemas.refusals import RefusalCode
from schemas.verdict import RuleRef

log = logging.getLogger(__name__)

MINUTE: Final = 60.0
"""Seconds."""
FILE: Final = "trials.json"


class FirstSeen(msgspec.Struct, frozen=True):
    """`boot`: the kernel's id of it; `seconds`: CLOCK_BOOTTIME. `lifted`: what holds without the policy was carried out."""

    boot: str
    seconds: float
    lifted: bool = False


Seen = Mapping[str, FirstSeen]
"""`Trial.name` -> when it was first seen."""


class Standing(msgspec.Struct, frozen=True):
    """What of a plan is to be carried out. `left`: seconds until something is lifted, None when nothing will be."""

    plan: Plan
    left: float | None = None
    over: tuple[Trial, ...] = ()


def noted(plan: Plan, seen: Seen, boot: str, now: float) -> dict[str, FirstSeen]:
    """What was seen of the plan's trials, those that are new from now on. Pure."""
    return {one.name: seen.get(one.name, FirstSeen(boot, now)) for one in plan.trials}


def standing(plan: Plan, seen: Seen, boot: str, now: float) -> Standing:
    """What of `plan` holds at `now`. A trial that was not noted is over. Of several that are over the last one says what holds without
    it and all before it; a younger one goes on. Pure."""
    ends = [_left(seen.get(one.name), boot, now) for one in plan.trials]
    last = max((index for index, left in enumerate(ends) if left <= 0), default=-1)
    left = min(ends[last + 1 :], default=None)
    if last < 0:
        return Standing(plan, left)
    over = plan.trials[: last + 1]
    without = over[-1]
    dropped = {*without.dropped, *(one.uid for one in without.scopes)}
    scopes = (*(one for one in plan.scopes if one.uid not in dropped), *without.scopes)
    refused = (*plan.refused, *map(_refusal, over))
    return Standing(msgspec.structs.replace(plan, scopes=scopes, refused=refused), left, over)


def _left(first: FirstSeen | None, boot: str, now: float) -> float:
    if first is None or first.boot != boot or now < first.seconds:
        return 0.0
    return max(0.0, first.seconds + MINUTE - now)


def _refusal(trial: Trial) -> Refusal:
    kind, _, rest = trial.policy.partition("/")
    namespace, _, name = rest.partition("/")
    reason = f"nobody confirmed it within {MINUTE:g} s, so it is lifted; `hauberk confirm {name}` holds it again"
    return Refusal(
        ref=RuleRef(name, kind=kind, namespace=namespace, position="spec"), reason=reason, code=RefusalCode.UNCONFIRMED
    )


class TrialRecord:
    """The file in `directory`, "" for none."""

    def __init__(self, directory: str) -> None:
        self._file = Path(directory, FILE) if directory else None

    def now(self, plan: Plan) -> Standing:
        """What of `plan` holds now; trials that are new are noted on disk before this returns."""
        boot, now = boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME)
        if not plan.trials:
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.unlink()
            return Standing(plan)
        seen = noted(plan, self.read(), boot, now)
        return standing(plan, seen if self._write(seen) else {}, boot, now)

    def lifted(self, over: tuple[Trial, ...]) -> None:
        """Note that what holds without these is in force."""
        names = {one.name for one in over}
        self._write({
            name: msgspec.structs.replace(first, lifted=first.lifted or name in names) for name, first in self.read().items()
        })  # fmt: skip

    def read(self) -> dict[str, FirstSeen]:
        """What was noted; nothing when that cannot be read: trials of it are then new, and end in a minute at the latest."""
        if self._file is None:
            return {}
        try:
            return msgspec.json.decode(self._file.read_bytes(), type=dict[str, FirstSeen])
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            return {}

    def _write(self, seen: Seen) -> bool:
        if self._file is None:
            return False
        if self._file.exists() and self.read() == seen:
            return True
        new = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with open(new, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
                file.write(msgspec.json.encode(seen))
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, self._file)
        except OSError as error:
            log.error("%s: %s; policies that wait for a confirmation are lifted", self._file, error.strerror)
            return False
        return True


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
