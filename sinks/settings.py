# SPDX-License-Identifier: Apache-2.0
"""What every sink's settings have in common. Neighbour: each component extends `Common` with its own, in its own file."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec

from schemas.topics import ALERTS, TELEMETRY, Topic
from sinks.delivery import Retry
from sinks.filters import Filter


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
    retry: Annotated[Retry, msgspec.Meta(description="Back-off when the far side is away.", examples=[{}])] = Retry()


Content: TypeAlias = Literal["alerts", "logs", "both"]
"""Which lines a sink of lines writes."""


def topics_of(content: Content) -> tuple[Topic, ...]:
    """The topics that hold such lines."""
    return {"alerts": (ALERTS,), "logs": (TELEMETRY,), "both": (ALERTS, TELEMETRY)}[content]
