# SPDX-License-Identifier: Apache-2.0
"""What the processor stage counted: plain numbers, for whoever renders metrics or answers `doctor`.

Neighbours: `processors.engine` (fills it), Prometheus through `hauberk` (shows it).
"""

from __future__ import annotations

import msgspec

from schemas.stats import Gauge


class ProcessorStats(msgspec.Struct):
    """Plain counts since start. `events`: rows and folded; `told_unknown`: events judged without knowing whose they are;
    `unnamed`: events counted without their paths and addresses; `unlisted`: events that the summaries count by directory alone (`processor.names.per_minute`);
    `drift_forgotten`: behaviours outside baselines that were told and will be told again, for there was no room to remember more;
    `dns_answers`: heard of name servers; `dns_answers_unread`: of these, not well formed or without an address; `dns_answers_cut`: of which a part was missing;
    `dns_names`: addresses that workloads have a name for now; `dns_names_forgotten`: those that lost it for want of room;
    `undefined`: events whose definition never came; `repeats`: frames that were read before and are left out; `holes`: frames that never came; `bad_frames`: dead letters;
    `refused_records`: what came of frames and the bus would not take; `unjudged`: events lost to an error of this program, told
    as lost; `policies_damaged`: policies that plans were made of are missing on the bus; `outages`: times that policies and
    identities could not be read, `damaged_reads`: of these, because a file of the bus was damaged."""

    frames: int = 0
    events: int = 0
    judged: int = 0
    hits: int = 0
    revalidated: int = 0
    alerts: dict[str, int] = {}
    telemetry_events: int = 0
    counted_events: int = 0
    parked_events: int = 0
    waiting: Gauge = 0
    told_unknown: int = 0
    unnamed: int = 0
    undefined: int = 0
    throttled: int = 0
    unlisted: int = 0
    drift_forgotten: int = 0
    dns_answers: int = 0
    dns_answers_unread: int = 0
    dns_answers_cut: int = 0
    dns_names_forgotten: int = 0
    dns_names: Gauge = 0
    repeats: int = 0
    holes: int = 0
    lost: dict[str, int] = {}
    bad_frames: int = 0
    refused_records: int = 0
    unjudged: int = 0
    open_frames: Gauge = 0
    policies: Gauge = 0
    policies_damaged: bool = False
    facts_refused: int = 0
    policy_changes: int = 0
    outages: int = 0
    damaged_reads: int = 0
    identities: Gauge = 0
    problem: str = ""
