# SPDX-License-Identifier: Apache-2.0
"""What every sink's settings have in common. Neighbour: each component extends `Common` with its own, in its own file."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from bus.backoff import Backoff
from schemas.topics import ALERTS, TELEMETRY, Topic
from sinks.delivery.filters import Filter


class Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Name, filter and back-off."""

    name: Annotated[
        str,
        msgspec.Meta(
            description="Name of this sink, its consumer group and metric label; the type when empty.",
            pattern=r"^[a-z0-9._-]{0,63}$",
            examples=["siem"],
        ),
    ] = ""
    filter: Annotated[Filter, msgspec.Meta(description="What passes and what is blanked.", examples=[{}])] = Filter()
    retry: Annotated[Backoff, msgspec.Meta(description="Back-off when the far side is away.", examples=[{}])] = (
        Backoff()
    )
    drain_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0,
            le=315_360_000,
            description="Once stopped: seconds without progress after which what is in hand is left for the next start.",
            examples=[5.0],
        ),
    ] = 5.0


Content: TypeAlias = Literal["alerts", "logs", "both"]
"""Which lines a sink of lines writes."""


def topics_of(content: Content) -> tuple[Topic, ...]:
    """The topics that hold such lines."""
    return {"alerts": (ALERTS,), "logs": (TELEMETRY,), "both": (ALERTS, TELEMETRY)}[content]
