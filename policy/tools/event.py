# SPDX-License-Identifier: Apache-2.0
"""One event of a log, as the judge asks about it. Neighbours: `events` (reads it from a line), `rejudge`."""

from __future__ import annotations

import msgspec

from schemas.behaviour import Behaviour
from schemas.identity import Identity


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event. `line`: where it stood, from 1. `arguments`: argv of an exec, None for everything else."""

    identity: Identity
    behaviour: Behaviour
    arguments: tuple[str, ...] | None = None
    line: int = 0
