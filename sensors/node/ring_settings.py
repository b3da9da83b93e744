# SPDX-License-Identifier: Apache-2.0
"""How the kernel's rings are drained, and what was read of them. Neighbour: `rings`, which uses and offers both."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from sensors.node.frames import FrameSettings


class RingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the rings are drained."""

    frames: Annotated[FrameSettings, msgspec.Meta(description="How chunks become frames.", examples=[{}])] = (
        FrameSettings()
    )
    definitions_bytes: Annotated[
        int,
        msgspec.Meta(
            description="Memory for definitions, in bytes; by default a share of `memory.budget_bytes`.",
            examples=[4194304],
            ge=65536,
            le=1 << 50,
        ),
    ] = 4 << 20
    drain_bytes: Annotated[
        int,
        msgspec.Meta(
            description="Rows taken per drain without folding, in bytes.", examples=[1048576], ge=65536, le=1 << 50
        ),
    ] = 1 << 20
    fold: Annotated[
        Literal["never", "pressure", "always"],
        msgspec.Meta(description="When repeats are counted instead of sent one by one.", examples=["pressure"]),
    ] = "pressure"
    pressure: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=1, description="Share of the ring that is full from which `pressure` folds, 0..1.", examples=[0.5]
        ),
    ] = 0.5
    state_dir: Annotated[
        str,
        msgspec.Meta(
            description="Directory where definitions survive a kill of the agent; empty: they do not.",
            examples=["/var/lib/hauberk/sensor"],
        ),
    ] = ""


class RingStats(msgspec.Struct, kw_only=True):
    """Rows read from the kernel's rings since this source was opened. `folded`: events counted in the row of another;
    `undefined`: events whose definition never came; `unlogged`: definitions that could not be kept on disk, so that a kill of the
    agent has them announced again; `discarded`: rows that their kernel program took back."""

    rows: int = 0
    folded: int = 0
    undefined: int = 0
    unlogged: int = 0
    discarded: int = 0
