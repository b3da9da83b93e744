# SPDX-License-Identifier: Apache-2.0
"""Run by `test_full_disk` in a mount namespace of its own: a bus on a small tmpfs under a flood. Prints JSON of what happened."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from hauberk import disk
from schemas.alert import decode_alert
from schemas.errors import Temporary
from schemas.topics import ALERTS, EVENTS_RAW, SUMMARIES, TELEMETRY


async def main(root: Path) -> None:
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(root / "bus"), housekeeping=0.2))
    telling = asyncio.create_task(disk.report(bus, 0.1, 0.5))
    failed = {"alert": 0, "take": 0, "commit": 0, "raw": 0}
    why: list[str] = []
    # Somebody else takes all but 14 MiB.
    ballast = int(sys.argv[2])
    if ballast:
        with (root / "ballast").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, ballast)
    async with bus.subscribe((EVENTS_RAW, ALERTS), "slow") as slow:
        for number in range(300):
            for topic, size in ((EVENTS_RAW, 200_000), (TELEMETRY, 60_000), (SUMMARIES, 5_000)):
                try:
                    await bus.publish(topic, [Record(b"%d" % number, os.urandom(size))])
                except Temporary:
                    failed["raw"] += 1
            try:
                await bus.publish(ALERTS, [Record(b"k", json.dumps({"Timestamp": number, "UpdatedTime": ""}).encode())])
            except Temporary:
                failed["alert"] += 1
            try:
                await slow.take(1, 0)
            except Temporary:
                # Opening a file of SQLite's needs a page beside it; the next try may find one, and nothing was skipped.
                failed["take"] += 1
            try:
                await slow.commit()
            except Temporary as error:
                failed["commit"] += 1
                why.append(str(error))
        await asyncio.sleep(1.5)
        stats = bus.stats
        alerts = []
        async with bus.subscribe((ALERTS,), None, "earliest") as reading:
            while batch := await reading.take(500, 0.2):
                alerts += [decode_alert(one.record.value or b"") for one in batch]
    telling.cancel()
    await bus.close()
    room = os.statvfs(root)
    print(json.dumps({
        "failed": failed, "commits": why, "ours": sum(not one.Type for one in alerts), "shed": stats.shed, "full": stats.full,
        "notices": [one.Message for one in alerts if one.Operation == "DiskFull"], "reserve": (root / "bus/reserve").exists(),
        "total": room.f_blocks * room.f_frsize, "free": room.f_bavail * room.f_frsize, "disk_bytes": stats.disk_bytes,
        "quarantined": stats.quarantined,
    }))  # fmt: skip


asyncio.run(main(Path(sys.argv[1])))
