# SPDX-License-Identifier: Apache-2.0
"""A node made of bytes: frames as the kernel programs would have sent them, and a processor on a bus in memory."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Callable

import msgspec
import pytest

from bus.contract import Delivery, Record
from bus.memory import MemoryBus
from processors.engine import Processor, ProcessorSettings
from schemas import identity as identities
from schemas.alert import Alert, decode_alert
from schemas.frame import FOLDED, Frame, FrameHeader, definition, encode
from schemas.identity import Identity, Kind, Owner
from schemas.kernel import BEHAVIOUR, OCCURRENCE, PROCESS, DefinitionKind, ProcessFlag
from schemas.operations import Access, Backend, Operation
from schemas.summary import Summary
from schemas.summary import decode as decode_summary
from schemas.telemetry import TelemetryFrame
from schemas.telemetry import decode as decode_telemetry
from schemas.topics import ALERTS, EVENTS_RAW, SUMMARIES, TELEMETRY

BOOT_NS = 1_765_863_400 * 1_000_000_000
NO_ACCESS = Access(0)
CONTAINER_ID = "4771ac3e9074f1bf8b01038d0cf776960aa44b18edccc0f2b017e8465dedefcd"


def ident(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Node:
    """One agent run. `row` adds an occurrence, `frame` cuts what was added since the last one."""

    def __init__(self, name: str = "node-1", boot: str = "boot-a", run: str = "run-1", salt: bytes = b"") -> None:
        self.name, self.boot, self.run, self.salt = name, boot, run, salt
        self.strings: dict[int, bytes] = {0: b""}
        self.behaviours: dict[int, tuple[bytes, set[int]]] = {}
        self.processes: dict[int, tuple[bytes, set[int]]] = {}
        self.cgroups: dict[int, bytes] = {}
        self.number = 0
        self.sequence = 0
        self.clock = 1_000_000_000
        self.lost: tuple[int, ...] = ()
        self.lost_by: tuple[tuple[int, int, int], ...] = ()
        self.offset = BOOT_NS
        self._rows: list[bytes] = []
        self._folded: list[bytes] = []
        self._used: set[int] = set()
        self._events = 0
        self.sent = 0

    def string(self, text: str | bytes) -> int:
        raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")
        if not raw:
            return 0
        key = ident(b"string" + raw)
        self.strings[key] = raw
        return key

    def behaviour(
        self,
        operation: Operation,
        resource: str | bytes = "",
        *,
        cgroup: int = 77,
        executable: str = "/bin/cat",
        parent: str = "/bin/bash",
        resource2: str = "",
        script: str = "",
        syscall: int = 0,
        access: Access = NO_ACCESS,
        enforcer: Backend = Backend.OBSERVER,
        tty: bool = False,
        flags: int = 0,
        result: int = 0,
        uid: int = 0,
        owner: int = 0xFFFFFFFF,
        args: tuple[int, int] = (0, 0),
        family: int = 0,
        port: int = 0,
        socket_type: int = 0,
        protocol: int = 0,
        address: str = "",
        pid_ns: int = 11,
        mnt_ns: int = 12,
    ) -> int:
        raw = b""
        if address:
            raw = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
        used = [self.string(text) for text in (executable, parent, resource, resource2, script)]
        body = BEHAVIOUR.struct.pack(
            cgroup, *used[:4], pid_ns, mnt_ns, operation, syscall, access, enforcer, tty, flags, result, uid, owner, *args,
            family, port, socket_type, protocol, raw.ljust(16, b"\0"), used[4],
        )  # fmt: skip
        key = ident(self.salt + b"behaviour" + body)
        self.behaviours[key] = (body, set(used))
        return key

    def process(
        self,
        executable: str,
        arguments: tuple[str, ...],
        *,
        cwd: str = "/",
        tty: str = "",
        process: int = 0,
        called: str = "",
        cut: bool = False,
    ) -> int:
        words = (called, *arguments) if called else arguments
        flags = ProcessFlag.CALLED * bool(called) | ProcessFlag.CUT * cut
        used = [self.string(executable), self.string("/bin/bash"), self.string("\0".join(words)), self.string(cwd)]
        process = process or 900_000 + len(self.processes)
        body = PROCESS.struct.pack(
            process, *used, 1, 5, 4242, 4200, 42, 0xFFFFFFFF, 0xFFFFFFFF, flags, tty.encode().ljust(16, b"\0")
        )
        self.processes[process] = (body, set(used))
        return process

    def row(
        self,
        behaviour: int,
        *,
        process: int = 0,
        aux: int = 0,
        pid: int = 4242,
        ppid: int = 4200,
        ns_pid: int = 42,
        ns_ppid: int = 1,
        at: int | None = None,
        step: int = 1_000_000,
        sequence: int | None = None,
    ) -> int:
        self.clock = self.clock + step if at is None else at
        self.sequence += 1
        number = self.sequence if sequence is None else sequence
        body = OCCURRENCE.struct.pack(behaviour, self.clock, number, process, pid, ppid, ns_pid, ns_ppid, 0, aux)
        self._rows.append(len(body).to_bytes(4, "little") + b"\0\0\0\0" + body)
        self._used |= {behaviour, process, number}
        self._events += 1
        return number

    def fold(self, behaviour: int, count: int, *, process: int = 0) -> None:
        self.sequence += 1
        self._folded.append(FOLDED.pack(behaviour, count, self.clock, self.clock + 5_000_000, self.sequence, process))
        self._used |= {behaviour, process}
        self._events += count

    def frame(self, *, forget: frozenset[int] = frozenset()) -> Frame:
        """`forget`: behaviours whose definition the agent missed."""
        strings: set[int] = set()
        tables = b""
        for key, path in self.cgroups.items():
            tables += definition(DefinitionKind.CGROUP, key, path)
        self.cgroups = {}
        for kind, table in ((DefinitionKind.BEHAVIOUR, self.behaviours), (DefinitionKind.PROCESS, self.processes)):
            for key, (body, used) in table.items():
                if key in self._used and key not in forget:
                    tables += definition(kind, key, body)
                    strings |= used
        for key in strings - {0}:
            tables += definition(DefinitionKind.STRING, key, self.strings[key])
        made = Frame(
            header=FrameHeader(
                node=self.name, boot=self.boot, run=self.run, number=self.number, clock_offset_ns=self.offset,
                events=self._events, lost=self.lost, lost_by=self.lost_by,
            ),
            occurrences=b"".join(self._rows), definitions=tables, folded=b"".join(self._folded),
        )  # fmt: skip
        self.sent += self._events
        self.number += 1
        self._rows, self._folded, self._used, self._events = [], [], set(), 0
        self.lost, self.lost_by = (), ()
        return made

    def record(self, **options: frozenset[int]) -> Record:
        return Record(self.name.encode(), encode(self.frame(**options)))


class Stage:
    """A processor read by hand: no tasks, a clock that is turned. `alerts`, `summaries`, `telemetry`: what it published."""

    def __init__(self, settings: ProcessorSettings | None = None, **wiring: object) -> None:
        self.bus = MemoryBus()
        self.now = 100.0
        self.processor = Processor(self.bus, settings, clock=lambda: self.now, **wiring)
        self.processor.facts.ready.set()
        self._offset = 0

    def identity(self, identity: Identity) -> None:
        self.processor.inventory.apply(identity.key, identities.encode(identity))

    def gone(self, identity: Identity) -> None:
        self.processor.inventory.apply(identity.key, None)

    def policies(self, *documents: dict[str, object]) -> None:
        from policy.documents import from_json
        from policy.ruleset import compile_ruleset

        read = [from_json(json.dumps(document).encode()) for document in documents]
        self.processor.judge.use(compile_ruleset(read, self.processor.settings.postures))

    def delivery(self, record: Record) -> Delivery:
        self._offset += 1
        return Delivery(EVENTS_RAW, 0, self._offset - 1, record)

    async def take(self, *records: Record) -> list[Delivery]:
        deliveries = [self.delivery(record) for record in records]
        self.processor.tracker.taken(deliveries)
        await self.processor.handle(deliveries)
        await self.processor.tick(idle=False)
        return deliveries

    async def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.processor.pipeline.settle()
        await self.processor.send()

    async def finish(self) -> None:
        """Let everything that waits be told."""
        await self.pass_time(1000.0)
        await self.pass_time(1000.0)

    @property
    def alerts(self) -> list[Alert]:
        return [decode_alert(record.value or b"") for record in self.bus.records(ALERTS)]

    @property
    def summaries(self) -> list[Summary]:
        return [decode_summary(record.value or b"") for record in self.bus.records(SUMMARIES)]

    @property
    def telemetry(self) -> list[TelemetryFrame]:
        return [decode_telemetry(record.value or b"") for record in self.bus.records(TELEMETRY)]

    def counted(self) -> int:
        return sum(entry.count for summary in self.summaries for entry in summary.entries)


WEB = Identity(
    kind=Kind.CONTAINER,
    node="node-1",
    uid=CONTAINER_ID,
    cgroups=(77,),
    cgroup_path=f"/docker/{CONTAINER_ID}",
    pid_ns=11,
    mnt_ns=12,
    container_name="web",
    image="docker.io/library/nginx:1.27",
    image_digest="sha256:8c94",
    namespace="demo",
    pod="web-8dc5d8d48-5s8pf",
    owner=Owner("Deployment", "web", "demo"),
    labels={"tier": "front", "app": "web"},
    orchestrated=True,
)
HOST = Identity(kind=Kind.NODE, node="node-1", uid="node-1", cgroups=(1,), pid_ns=1, mnt_ns=2)


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture(scope="session")
def make_node() -> type[Node]:
    return Node


@pytest.fixture
def stage() -> Stage:
    made = Stage()
    made.identity(HOST)
    made.identity(WEB)
    return made


@pytest.fixture(scope="session")
def make_stage() -> type[Stage]:
    return Stage


@pytest.fixture(scope="session")
def web() -> Identity:
    return WEB


@pytest.fixture(scope="session")
def host() -> Identity:
    return HOST


def policy(kind: str = "KubeArmorPolicy", name: str = "p", **spec: object) -> dict[str, object]:
    spec.setdefault("severity", 5)
    metadata: dict[str, object] = {"name": name}
    if kind == "KubeArmorPolicy":
        metadata["namespace"] = "demo"
        spec.setdefault("selector", {"matchLabels": {"app": "web"}})
    else:
        spec.setdefault("nodeSelector", {"matchLabels": {"kubernetes.io/hostname": "*"}})
    return {"apiVersion": "security.kubearmor.com/v1", "kind": kind, "metadata": metadata, "spec": spec}


@pytest.fixture(scope="session")
def make_policy() -> Callable[..., dict[str, object]]:
    return policy


@pytest.fixture(scope="session")
def replace() -> Callable[..., Identity]:
    return msgspec.structs.replace
