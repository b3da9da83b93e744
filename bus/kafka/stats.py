# SPDX-License-Identifier: Apache-2.0
"""What the bus of this process counts on Kafka, as metrics of part `kafka` of every role. Light: who renders metrics imports it always."""

from __future__ import annotations

import msgspec

from schemas.stats import Gauge


class KafkaStats(msgspec.Struct):
    """Plain counts since open. `records` that brokers have taken, in `batches` of `bytes` as they travelled; `publish_seconds`: that
    `publications` waited for them, failed ones included. `renewed`: producer ids that were given up, after any doubt about a
    batch; `timeless`: batches whose times brokers refused. `rebalances`: times that groups gave this process partitions, or none.
    `connects`: times that a way to the brokers was found; `outages`: times they went away, `away_seconds`: for how long in all;
    `away`: they are now, and `problem` says why. `reads`: times that followed topics were read from the beginning.
    `skipped`: records that readers without a group, who follows `policies`, plans or the inventory among them, will never see: they cannot be
    read, or retention deleted them first. Those of groups are counted by their pumps."""

    records: int = 0
    batches: int = 0
    bytes: int = 0
    publications: int = 0
    publish_seconds: float = 0.0
    queue_bytes: Gauge = 0
    renewed: int = 0
    timeless: int = 0
    rebalances: int = 0
    connects: int = 0
    outages: int = 0
    away_seconds: float = 0.0
    away: bool = False
    reads: int = 0
    skipped: int = 0
    problem: str = ""
