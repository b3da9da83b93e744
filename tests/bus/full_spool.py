# SPDX-License-Identifier: Apache-2.0
"""Run by `test_kafka_others` in a mount namespace of its own: a spool on a small tmpfs, first without brokers, then with. Prints JSON of what happened."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import msgspec

from bus.backoff import Backoff
from bus.contract import Record
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from bus.spool import SpooledBus
from bus.spool_lines import Shed
from bus.spool_settings import SpoolSettings
from schemas.errors import DiskFull
from schemas.topics import EVENTS_RAW


async def main(root: Path, ballast: int, bootstrap: str, prefix: str) -> None:
    with (root / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, ballast)
    told = 0

    def notice(shed: Shed) -> Record:
        nonlocal told
        told += shed.records
        return Record(b"node", shed.why.encode())

    inner = await KafkaBus.open(KafkaSettings(bootstrap="127.0.0.1:1", prefix=prefix, publish_seconds=20.0))
    settings = SpoolSettings(
        directory=str(root / "spool"), publish_timeout=30.0, retry=Backoff(first_seconds=0.2, max_seconds=1.0)
    )
    bus = await SpooledBus.open(inner, settings, notice=notice)
    failed = 0
    for number in range(200):
        try:
            await bus.publish(EVENTS_RAW, [Record(b"node-1", b"%d " % number + os.urandom(100_000))])
        except DiskFull:
            failed += 1
    # The brokers are there from now on.
    inner.link.settings = inner.producer._settings = msgspec.structs.replace(inner.settings, bootstrap=bootstrap)
    async with asyncio.timeout(60):
        while bus.stats.waiting or bus.stats.away:  # noqa: ASYNC110 - another thread counts
            await asyncio.sleep(0.05)
    stats = bus.stats
    await bus.close()
    print(json.dumps({"failed": failed, "shed": stats.shed, "full": stats.full, "notices": told}))


asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]))
