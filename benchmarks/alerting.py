# SPDX-License-Identifier: Apache-2.0
"""Policies into a running `up`, and its file of alerts read as it is written. Neighbours: `live`, `bench_latency`, `bench_new`."""

from __future__ import annotations

import ctypes
import os
import select
import time
from pathlib import Path
from typing import Final

import msgspec
from live import Live

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from policy.documents import key, to_json
from policy.parse import parse
from schemas.topics import POLICIES

ANSWER_SECONDS: Final = 30.0
_IN_MODIFY: Final = 2


class AlertLine(msgspec.Struct):
    """Of an alert, what benchmarks look at."""

    Resource: str = ""
    PolicyName: str = ""
    Operation: str = ""
    Message: str = ""
    EventData: dict[str, str] | None = None


def policy(name: str, spec: str) -> Record:
    """A policy for the cgroup of the benchmark."""
    text = (
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\n"
        f"metadata: {{name: {name}, namespace: bench, annotations: {{hauberk.io/signal: enabled}}}}\n"
        f"spec: {{selector: {{matchLabels: {{app: bench}}}}, {spec}}}\n"
    )
    document = parse(text, "bench").policies[0]
    return Record(key(document), to_json(document))


async def publish(up: Live, records: list[Record]) -> None:
    """Put them on its bus, as `hauberk apply` does."""
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(up.state / "bus")))
    await bus.publish(POLICIES, records)
    await bus.close()


class Tail:
    """Reads whole lines of a growing file as they are written: (Unix ns at which it was readable, line)."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        deadline = time.monotonic() + ANSWER_SECONDS
        while not path.exists():
            if time.monotonic() > deadline:
                raise TimeoutError(f"expected {path} within {ANSWER_SECONDS:g} s")
            time.sleep(0.05)
        self._notify = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        self._libc.inotify_add_watch(self._notify, os.fsencode(path), _IN_MODIFY)
        self._file = os.open(path, os.O_RDONLY)
        self._rest = b""

    def lines(self, wait: float) -> list[tuple[int, AlertLine]]:
        """What came within `wait` seconds; empty when nothing did."""
        data = os.read(self._file, 1 << 20)
        if not data:
            if not select.select([self._notify], [], [], wait)[0]:
                return []
            os.read(self._notify, 1 << 16)
            data = os.read(self._file, 1 << 20)
        at = time.clock_gettime_ns(time.CLOCK_REALTIME)
        *whole, self._rest = (self._rest + data).split(b"\n")
        return [(at, msgspec.json.decode(line, type=AlertLine)) for line in whole]

    def close(self) -> None:
        """Give its descriptors back."""
        os.close(self._file)
        os.close(self._notify)
