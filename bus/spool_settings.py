# SPDX-License-Identifier: Apache-2.0
"""The settings of a spool and its counts. Neighbour: `spool`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from bus.backoff import Backoff
from schemas.stats import Gauge, Gauges

Meta = msgspec.Meta


class SpoolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where records wait while the bus is away."""

    directory: Annotated[
        str, Meta(description="Where the spool lies; made when missing.", examples=["/var/lib/hauberk/spool"])
    ] = "/var/lib/hauberk/spool"
    max_bytes: Annotated[
        int, Meta(ge=1, le=1 << 50, description="Bytes on disk before shedding.", examples=[536870912])
    ] = 512 << 20
    max_age: Annotated[
        float,
        Meta(gt=0, le=315_360_000, description="Seconds after which a spooled record is shed.", examples=[86400.0]),
    ] = 86400.0
    publish_timeout: Annotated[
        float,
        Meta(
            gt=0,
            le=315_360_000,
            description="Seconds the bus has to acknowledge before it counts as away; more than its own `publish_seconds`, whose error says which topic it is about.",
            examples=[15.0],
        ),
    ] = 15.0
    retry: Annotated[Backoff, Meta(description="Between looks whether the bus is back.", examples=[{}])] = Backoff(
        first_seconds=0.5, max_seconds=15.0
    )
    drain_bytes: Annotated[int, Meta(ge=1, le=1 << 50, description="Bytes per drained batch.", examples=[1048576])] = (
        1 << 20
    )


class SpoolStats(msgspec.Struct):
    """Counts since open. `shed`: records lost by topic name, `damaged` those of them whose file could not be read; `waiting`: records in the spool now; `full`: times that the disk had
    no room for a record at first.

    `refused`: records the bus will never take, which went to `dead` while draining. `unserved`: 1 for each topic whose records wait by
    themselves while the bus takes others, such as one that is not there; `unserved_tries`: how often it was found so.
    """

    spooled: int = 0
    drained: int = 0
    shed: dict[str, int] = {}
    damaged: dict[str, int] = {}
    waiting: Gauge = 0
    bytes: Gauge = 0
    full: int = 0
    refused: int = 0
    unserved: Gauges = {}
    unserved_tries: dict[str, int] = {}
    away: bool = False
    last_error: str = ""
