# SPDX-License-Identifier: Apache-2.0
"""Hot: a tally to a telemetry frame: the same rows, with the enriched behaviours they refer to.

Rows pass through as bytes when every id is logged and are cut by visibility otherwise. Must never expand a row: that is
done at the edge by `schemas.expand`. Neighbours: `processors.judge`, `schemas.telemetry`.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from processors import rows
from processors.judge import Tally
from schemas.behaviour import Behaviour
from schemas.expand import PEERS
from schemas.frame import FOLDED
from schemas.identity import Identity
from schemas.telemetry import NOBODY, Enriched, RemotePeer, TelemetryFrame

PeerOf = Callable[[Identity, Behaviour, int], RemotePeer]
"""(whose, behaviour, Unix ns): who the other side was then."""


def telemetry(tally: Tally, peer: PeerOf | None = None) -> TelemetryFrame | None:
    """What of the frame is logged; None when nothing is. `peer`: who the other side of a connection was."""
    logged = {ident: entry for ident, entry in tally.entries.items() if entry.log}
    if not logged:
        return None
    whole = len(logged) == len(tally.counts) and not tally.folded
    data = tally.frame.occurrences if whole else rows.cut(tally, logged)
    folded = b"".join(FOLDED.pack(*row) for ident, found in tally.folded.items() if ident in logged for row in found)
    identities: list[Identity] = []
    index: dict[int, int] = {}
    behaviours = []
    offset = tally.header.clock_offset_ns
    asked = peer is not None and any(entry.behaviour.operation in PEERS for entry in logged.values())
    # When each was first: an answer that names its address may lie in this frame, before it.
    first = dict(zip(tally.ids[::-1], tally.times[::-1], strict=True)) if asked else {}
    for ident, entry in logged.items():
        place = index.get(id(entry.identity))
        if place is None:
            place = index[id(entry.identity)] = len(identities)
            identities.append(entry.identity)
        other = NOBODY
        if peer is not None and entry.behaviour.operation in PEERS:
            at = first[ident] if ident in first else tally.folded[ident][0][2]
            other = peer(entry.identity, entry.behaviour, at + offset)
        behaviours.append(
            Enriched(behaviour=entry.behaviour, identity=place, verdict=entry.verdict, user=entry.user, peer=other)
        )
    events = sum(tally.count(ident) for ident in logged)
    return TelemetryFrame(
        header=msgspec.structs.replace(tally.header, events=events),
        identities=tuple(identities),
        behaviours=tuple(behaviours),
        processes=tuple(tally.processes.values()),
        rows=data,
        folded=folded,
    )
