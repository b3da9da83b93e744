# SPDX-License-Identifier: Apache-2.0
"""The doors that are fuzzed: samples of true inputs, and what takes one in as the program does.

`try_one` says whether the input was taken; errors of the tree are how it says no. It must raise whatever else happens.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from schemas import progress
from schemas.errors import HauberkError

ROOT: Final = Path(__file__).parents[2]
RECORDINGS: Final = sorted((ROOT / "examples/recordings").glob("*.hbrk"), key=lambda path: path.stat().st_size)
POLICIES: Final = sorted(path for path in (ROOT / "examples").rglob("*.yaml") if path.stat().st_size < 8000)


class Door(Protocol):
    """One kind of input. `close` when done."""

    samples: list[bytes]

    def try_one(self, data: bytes) -> bool: ...

    def close(self) -> None: ...


class _Plain:
    def close(self) -> None:
        """Nothing is held."""


def _entries(limit: int = 40) -> tuple[list[bytes], list[tuple[bytes, bytes]]]:
    """Frames and identities of the recordings that are shipped."""
    from sensors.recordings.recording import BlockKind, RecordingReader

    frames: list[bytes] = []
    identities: list[tuple[bytes, bytes]] = []
    for path in RECORDINGS:
        with RecordingReader(str(path)) as reader:
            for entry in reader:
                if entry.kind is BlockKind.FRAMES and entry.value and len(entry.value) < 20_000 and len(frames) < limit:
                    frames.append(entry.value)
                elif entry.kind is BlockKind.INVENTORY and entry.value and len(identities) < limit:
                    identities.append((entry.key, entry.value))
    return frames, identities


def _with_answer(frame: bytes) -> bytes:
    import msgspec

    from schemas import frame as frames
    from schemas.kernel import ANSWER, DefinitionKind

    message = Answers().samples[0]
    run = frames.definition(DefinitionKind.ANSWER, 1, ANSWER.struct.pack(1, len(message), 0) + message)
    return frames.encode(msgspec.structs.replace(frames.decode(frame), answers=run))


class Frames(_Plain):
    """Raw frames through the whole middle of a processor: decode, judge, alerts, telemetry, summaries; then the sinks' reader."""

    def __init__(self) -> None:
        from bus.memory import MemoryBus, MemorySettings
        from policy.parse import parse
        from policy.ruleset import compile_ruleset
        from processors.engine import Processor
        from sinks.delivery.filters import Filter
        from sinks.delivery.reader import ItemReader

        self.samples, self._identities = _entries()
        self.samples.append(_with_answer(self.samples[0]))
        self._now = 0.0
        self._made = lambda: Processor(MemoryBus(MemorySettings()), clock=lambda: self._now)
        documents = [one for path in POLICIES for one in parse(path.read_bytes(), path.name).policies]
        self._ruleset = compile_ruleset(documents)
        self._reader = ItemReader(Filter(), as_json=True)
        self._taken = 0
        self._fresh()

    def _fresh(self) -> None:
        self._processor = asyncio.run(self._make())
        for key, value in self._identities:
            self._processor.inventory.apply(key, value)
        self._processor.judge.use(self._ruleset)

    async def _make(self):  # type: ignore[no-untyped-def]
        return self._made()

    def try_one(self, data: bytes) -> bool:
        from bus.contract import Delivery, Record
        from schemas.topics import ALERTS, EVENTS_RAW, SUMMARIES, TELEMETRY

        self._taken += 1
        if self._taken % 2000 == 0:
            # What one frame leaves behind must not decide about those a million later: a case is found again from few.
            self._fresh()
        pipeline, tracker = self._processor.pipeline, self._processor.tracker
        # Else a changed frame is one that was read: most keep their run and number.
        pipeline._read.clear()
        delivery = Delivery(EVENTS_RAW, 0, self._taken, Record(b"k", data))
        tracker.taken([delivery])
        taken = True
        try:
            pipeline.read(delivery)
        except HauberkError:
            tracker.dead(delivery)
            taken = False
        # Longer than anything waits for its container: what a frame does is seen with this frame.
        self._now += 60.0
        pipeline.settle()
        assert pipeline.counts.unjudged == 0, "an error while telling"
        box = pipeline.outbox
        for topic, records in ((ALERTS, box.alerts), (TELEMETRY, box.telemetry), (SUMMARIES, box.summaries)):
            for record in records:
                # What the processor wrote the sinks read: no HauberkError here.
                self._reader.read(Delivery(topic, 0, 0, record))
        pipeline.discard()
        return taken


class Answers(_Plain):
    """What name servers answer: said by the parser, or not; it raises nothing."""

    def __init__(self) -> None:
        head = bytes.fromhex("1267818000010003000000000377777707657861 6d706c650363 6f6d0000010001".replace(" ", ""))
        alias = bytes.fromhex("c00c000500010000003c0009026362 01620178c018".replace(" ", ""))
        self.samples = [
            head
            + alias
            + bytes.fromhex(
                "c02d000100010000012c00045db8d822" + "c02d001c00010000012c0010" + "20010db8" + "00" * 11 + "01"
            ),
            bytes.fromhex("000181000001000100000000" + "01610000010001" + "c00c000100010000000000047f000001"),
        ]

    def try_one(self, data: bytes) -> bool:
        from schemas.dns_answer import TEXT_MOST, parse

        taken = False
        for length in (0, len(data) + 7):
            found = parse(data, length)
            if found is not None:
                taken = True
                assert 0 < len(found.name) <= TEXT_MOST
                assert all(letter in "abcdefghijklmnopqrstuvwxyz0123456789-_.\\" for letter in found.name)
                assert found.addresses
                assert all(len(raw) in (4, 16) and 0 <= ttl < 1 << 31 for raw, ttl in found.addresses)
        return taken


class Recordings:
    """Recording files, played at once, damaged blocks left out or not."""

    def __init__(self) -> None:
        self.samples = [path.read_bytes()[:16_000] for path in RECORDINGS[:3]]
        self._directory = tempfile.TemporaryDirectory()
        self._path = os.path.join(self._directory.name, "x.hbrk")
        self._turn = 0

    def close(self) -> None:
        self._directory.cleanup()

    def try_one(self, data: bytes) -> bool:
        from sensors.recordings.replay import Replay, ReplaySettings

        self._turn += 1
        with open(self._path, "wb") as file:
            file.write(data)
        try:
            source = Replay(ReplaySettings(path=self._path, speed=0, skip_damaged=bool(self._turn % 2)), "run")
        except HauberkError:
            return False
        try:
            while not source.finished:
                source.drain()
        except HauberkError:
            return False
        finally:
            source.close()
        return True


class Plans(_Plain):
    """Plans and receipts, and a plan's way into map entries."""

    def __init__(self) -> None:
        from enforcers.plan import Planner
        from policy.parse import parse
        from policy.ruleset import compile_ruleset
        from schemas import identity
        from schemas.enforcement import encode

        documents = [one for path in POLICIES for one in parse(path.read_bytes(), path.name).policies]
        _, identities = _entries()
        known = [identity.decode(value) for _, value in identities]
        planner = Planner(compile_ruleset(documents))
        nodes = sorted({one.node for one in known})
        self.samples = [encode(planner.plan(node, known, 1)) for node in nodes]

    def try_one(self, data: bytes) -> bool:
        from schemas.enforcement import decode_plan, decode_receipt, digest, encode

        try:
            plan = decode_plan(data)
            encode(plan)
            digest(plan.scopes)
        except HauberkError:
            try:
                decode_receipt(data)
            except HauberkError:
                return False
        return True


class Words:
    """Identities, alerts, telemetry and summaries as sinks and processors take them, store included."""

    def __init__(self) -> None:
        from processors.inventory import Inventory
        from sinks.delivery.filters import Filter
        from sinks.delivery.reader import ItemReader
        from sinks.store.sqlite import SqliteStore

        _, identities = _entries()
        self._inventory = Inventory()
        self._directory = tempfile.TemporaryDirectory()
        self._store = SqliteStore(os.path.join(self._directory.name, "s.db"))
        self._store._db.execute("PRAGMA synchronous=OFF")
        self._reader = ItemReader(Filter())
        frames = Frames()
        pipeline = frames._processor.pipeline
        from bus.contract import Delivery, Record
        from schemas.topics import EVENTS_RAW

        for number, value in enumerate(frames.samples):
            delivery = Delivery(EVENTS_RAW, 0, number, Record(b"k", value))
            frames._processor.tracker.taken([delivery])
            pipeline.read(delivery)
        pipeline.settle(closing=True)
        box = pipeline.outbox
        self.samples = [value for _, value in identities]
        self.samples.append(progress.encode(progress.Progress(node="n", group="g", boot="b", run="r", number=7)))
        for records in (box.alerts, box.telemetry, box.summaries):
            self.samples += [record.value for record in records[:20] if record.value and len(record.value) < 20_000]

    def close(self) -> None:
        self._store.close()
        self._directory.cleanup()

    def try_one(self, data: bytes) -> bool:
        from bus.contract import Delivery, Record
        from schemas.alert import Alert
        from schemas.summary import Summary
        from schemas.topics import ALERTS, SUMMARIES, TELEMETRY

        taken = False
        for door in (lambda: self._inventory.apply(b"k", data), lambda: progress.decode(data)):
            try:
                door()
                taken = True
            except HauberkError:
                continue
        for topic in (ALERTS, TELEMETRY, SUMMARIES):
            try:
                items = self._reader.read(Delivery(topic, 0, 0, Record(b"k", data)))
            except HauberkError:
                continue
            taken = True
            summaries = [one for one in items if isinstance(one, Summary)]
            alerts = [one for one in items if isinstance(one, Alert)]
            try:
                self._store.apply(summaries, alerts)
            except HauberkError:
                continue
        return taken


class Settings(_Plain):
    """Settings files of the three forms, checked against every section."""

    def __init__(self) -> None:
        import msgspec
        import yaml

        from hauberk.sections import Configuration

        toml = (
            b'state = "/x"\n[bus]\ntype = "embedded"\nsegment_bytes = 65536\nretention_bytes_of = {alerts = 5}\n[sensor.load]\nscopes = 5\n'
            b'[processor.pump]\nmax_wait = 0.5\n[[sinks]]\ntype = "file"\npath = "/x"\n[sinks.filter]\nactions = ["Block"]\n'
            b'[[sinks]]\ntype = "syslog"\naddress = "h:1"\n[planner.plan]\nhost_cgroups = ["/a/*"]\n[postures]\nfile = "block"\n'
        )
        tree = msgspec.toml.decode(toml)
        self._kind = Configuration
        self._forms = ("toml", "json", "yaml")
        self.samples = [b"t" + toml, b"j" + msgspec.json.encode(tree), b"y" + yaml.safe_dump(tree).encode()]

    def try_one(self, data: bytes) -> bool:
        from hauberk.settings import LoadedSettings, check
        from hauberk.settings_text import parse

        form = {b"t": "toml", b"j": "json", b"y": "yaml"}.get(data[:1], self._forms[len(data) % 3])
        try:
            check(LoadedSettings(parse(data[1:], form, f"x.{form}"), {}), self._kind)
        except HauberkError:
            return False
        return True


class Policies(_Plain):
    """Policy text: parsed, normalised, compiled, planned, linted."""

    def __init__(self) -> None:
        self.samples = [path.read_bytes() for path in POLICIES]

    def try_one(self, data: bytes) -> bool:
        from policy.parse import parse
        from policy.ruleset import compile_ruleset
        from policy.text.diagnostics import render
        from policy.tools.lint import lint

        parsed = parse(data, "x.yaml")
        for diagnostic in parsed.diagnostics:
            render(diagnostic, parsed.text)
        if not parsed.policies:
            return False
        ruleset = compile_ruleset(parsed.policies)
        lint(ruleset)
        return parsed.ok


class _Written(asyncio.Transport):
    """What a protocol wrote, instead of a connection."""

    def __init__(self) -> None:
        super().__init__({"sockname": ("127.0.0.1", 9644)})
        self.data = b""
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += bytes(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        return

    def resume_reading(self) -> None:
        return


class Requests(_Plain):
    """Requests to the endpoint of metrics and health, in two pieces."""

    def __init__(self) -> None:
        from sinks.endpoint import Endpoint, MetricsSettings

        self._endpoint = Endpoint("metrics", MetricsSettings())
        head = b" HTTP/1.1\r\nHost: localhost:9644\r\nUser-Agent: Prometheus/2.53\r\nAccept: text/plain;version=0.0.4;q=0.5\r\n"
        self.samples = [
            b"GET /metrics" + head + b"\r\n",
            b"GET /readyz?full" + head + b"Connection: close\r\n\r\n",
            b"HEAD /healthz" + head + b"Content-Length: 0\r\n\r\nGET /healthz" + head + b"\r\n",
        ]

    def try_one(self, data: bytes) -> bool:
        return asyncio.run(self._connection(data))

    async def _connection(self, data: bytes) -> bool:
        from sinks.http_get import MOST, GetProtocol

        written = _Written()
        protocol = GetProtocol(self._endpoint.answer, lambda transport: None)
        protocol.connection_made(written)
        for piece in (data[: len(data) // 2], data[len(data) // 2 :]):
            if not written.closed:
                protocol.data_received(piece)
        for _ in range(data.count(b"\r\n\r\n") + 1):
            await asyncio.sleep(0)
        assert len(protocol._buffer) < MOST, "no more is kept than one request"
        statuses = [answer.partition(b" ")[0] for answer in written.data.split(b"HTTP/1.1 ")[1:]]
        assert b"500" not in statuses, written.data
        return b"200" in statuses


DOORS: Final[dict[str, Callable[[], Door]]] = {
    "frames": Frames, "recordings": Recordings, "plans": Plans, "settings": Settings, "policies": Policies, "words": Words,
    "requests": Requests, "answers": Answers,
}  # fmt: skip
