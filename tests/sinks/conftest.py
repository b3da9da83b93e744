# SPDX-License-Identifier: Apache-2.0
"""Words and a bus for the sinks' tests: alerts, summaries and frames made by hand, polling with a deadline."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from bus.contract import Record
from bus.memory import MemoryBus
from schemas import summary as summaries
from schemas import telemetry
from schemas.alert import Alert, encode_alert
from schemas.behaviour import Behaviour
from schemas.frame import FrameHeader
from schemas.identity import Identity, Kind, Owner
from schemas.kernel import OCCURRENCE
from schemas.operations import Operation
from schemas.summary import Summary, SummaryEntry
from schemas.telemetry import Enriched, ProcessContext, TelemetryFrame
from schemas.topics import ALERTS, SUMMARIES, TELEMETRY
from schemas.verdict import Verdict


class Make:
    """Makers of words. Everything has a sensible value; tests name only what they are about.

    `start`: a whole minute, Unix seconds; recent when this is made, because a store forgets what is old.
    """

    def __init__(self) -> None:
        self.start = int(time.time()) // 60 * 60 - 600

    def alert(self, number: int = 1, **fields: object) -> Alert:
        values: dict[str, object] = {
            "Timestamp": self.start + number,
            "UpdatedTime": "2023-11-14T22:14:00.000001Z",
            "ClusterName": "default",
            "HostName": "node-1",
            "NamespaceName": "shop",
            "PodName": "web-1",
            "Labels": "app=web,tier=front",
            "ContainerID": "c0ffee",
            "ContainerName": "web",
            "HostPID": 100 + number,
            "PID": number,
            "UID": 0,
            "ParentProcessName": "/bin/sh",
            "ProcessName": "/bin/cat",
            "PolicyName": "no-shadow",
            "Severity": "7",
            "Message": "reads secrets",
            "Type": "MatchedPolicy",
            "Source": "/bin/cat /etc/shadow",
            "Operation": "File",
            "Resource": "/etc/shadow",
            "Data": "syscall=SYS_OPENAT fd=-100 flags=O_RDONLY",
            "EventData": {"Syscall": "SYS_OPENAT"},
            "Enforcer": "eBPF Monitor",
            "Action": "Audit",
            "Result": "Passed",
            "EventID": f"node-1:boot:{number}",
        }
        return Alert(**{**values, **fields})  # type: ignore[arg-type]

    def identity(self, uid: str = "c0ffee", **fields: object) -> Identity:
        values: dict[str, object] = {
            "kind": Kind.CONTAINER, "node": "node-1", "uid": uid, "container_name": "web", "namespace": "shop",
            "pod": f"web-{uid}", "owner": Owner("Deployment", "web", "shop"), "labels": {"app": "web"}, "image": "web:1",
        }  # fmt: skip
        return Identity(**{**values, **fields})  # type: ignore[arg-type]

    def behaviour(self, **fields: object) -> Behaviour:
        values: dict[str, object] = {
            "operation": Operation.OPEN, "executable": "/bin/cat", "parent": "/bin/sh", "resource": "/etc/shadow",
            "syscall": 257, "syscall_name": "openat",
        }  # fmt: skip
        return Behaviour(**{**values, **fields})  # type: ignore[arg-type]

    def entry(self, count: int = 1, status: str = "Allow", **fields: object) -> SummaryEntry:
        first = self.start * 10**9
        return SummaryEntry(
            behaviour=self.behaviour(**fields), status=status, count=count, first=first, last=first + count
        )

    def summary(self, frame: int = 0, last: int | None = None, *entries: SummaryEntry, **fields: object) -> Summary:
        values: dict[str, object] = {
            "node": "node-1", "run": "run-1", "first_frame": frame, "last_frame": frame if last is None else last,
            "bucket": self.start, "identity": self.identity(), "entries": entries or (self.entry(),),
        }  # fmt: skip
        return Summary(**{**values, **fields})  # type: ignore[arg-type]

    def frame(self, rows: int, *, arguments: tuple[str, ...] = ("cat", "/etc/shadow")) -> TelemetryFrame:
        row = b"".join(
            bytes(8) + OCCURRENCE.struct.pack(7, number * 1000, number, 5, 100, 1, 10, 1, 3, 0)
            for number in range(rows)
        )
        return TelemetryFrame(
            header=FrameHeader(
                node="node-1", boot="boot", run="run-1", number=0, clock_offset_ns=self.start * 10**9, events=rows
            ),
            identities=(self.identity(),),
            behaviours=(Enriched(behaviour=self.behaviour(id=7), identity=0, verdict=Verdict()),),
            processes=(ProcessContext(process=5, executable="/bin/cat", parent="/bin/sh", arguments=arguments),),
            rows=row,
        )


@pytest.fixture(scope="module")
def make() -> Make:
    # Not for the session: by the end of one its recent past is half an hour ago.
    return Make()


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    yield bus
    await bus.close()


@pytest.fixture
def publish(bus: MemoryBus) -> Callable[..., Awaitable[None]]:
    """Puts words on the topic they belong on."""

    async def publish(*words: Alert | Summary | TelemetryFrame) -> None:
        for word in words:
            if isinstance(word, Alert):
                await bus.publish(ALERTS, [Record(word.PodName.encode(), encode_alert(word))])
            elif isinstance(word, Summary):
                await bus.publish(SUMMARIES, [Record(word.key, summaries.encode(word))])
            else:
                await bus.publish(TELEMETRY, [Record(b"node-1", telemetry.encode(word))])

    return publish
