# SPDX-License-Identifier: Apache-2.0
"""One load of the real programs per session, and a way to run something in a cgroup of its own and see what was seen."""

from __future__ import annotations

import functools
import mmap
import os
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernel import bpf, call_exits
from kernel.features import cgroup2_mount, survey
from kernel.generation import renew
from kernel.loading import LoadedPrograms, LoadSettings, load, mount_bpffs, unload, unmount
from kernel.maps import Map
from kernel.siphash import string_id
from schemas.kernel import (
    BEHAVIOUR,
    DEFINITION,
    OCCURRENCE,
    PROCESS,
    RULE,
    RULE_KEY,
    SCOPE,
    Config,
    DefinitionKind,
    Loss,
    ScopeFlag,
)  # fmt: skip
from schemas.layout import Layout
from schemas.operations import Access, Backend, Class, Operation

ALL = sum(1 << member for member in Class)
WAYS = ("tracepoint", "fexit")


def why_not() -> str | None:
    """Why the programs cannot be loaded here; None when they can."""
    if os.geteuid():
        return "needs root"
    offered = {feature.name: feature for feature in survey()}
    for name in ("BTF", "BCC", "raw tracepoints", "ring buffer", "cgroup v2"):
        if not offered[name].available:
            return f"{name}: {offered[name].why}"
    return None


@pytest.fixture(scope="session")
def bpffs(bpffs_home: Callable[[str], str]) -> Iterator[str]:
    """A bpffs mounted for this session alone."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    where = bpffs_home("kernel")
    try:
        assert mount_bpffs(where)
        yield where
    finally:
        unmount(where)


@pytest.fixture(scope="session")
def load_by(bpffs: str) -> Iterator[Callable[[str], LoadedPrograms]]:
    """load_by(way): the programs, seeing system calls by `way`, watching only cgroups that a test made. Once each in a session:
    tests of both ways come in any order."""
    there: dict[str, LoadedPrograms] = {}

    def by(way: str) -> LoadedPrograms:
        if way == "fexit" and (why := no_functions()):
            pytest.skip(f"calls cannot be seen at functions: {why}")
        if way not in there:
            # New cgroups are not watched by themselves: the machine's other work is none of the tests' business.
            # Nobody drains while a test acts: 2000 paths of 4 KB each must leave the ring of definitions below half.
            settings = LoadSettings(new_visibility=("none",), definition_pages=4096, timeout=900.0, calls_by=way)
            there[way] = load(settings, f"{bpffs}/{way}")
            assert bool(there[way].functions) == (way == "fexit"), there[way].tracepoint
        return there[way]

    try:
        yield by
    finally:
        for way in WAYS:
            unload(f"{bpffs}/{way}")


@functools.cache
def no_functions() -> str:
    """Why calls cannot be seen at the kernel's functions here."""
    return call_exits.functions()[1]


@pytest.fixture(scope="session", params=WAYS)
def loaded(load_by: Callable[[str], LoadedPrograms], request: pytest.FixtureRequest) -> LoadedPrograms:
    """The programs, in each way of seeing system calls that this kernel has: whatever is asserted holds for both."""
    return load_by(request.param)


class Reader:
    """A ring read from where it is now: enough for tests, blind to speed."""

    def __init__(self, path: str) -> None:
        self.fd = bpf.pinned(path)
        self.size = bpf.map_info(self.fd).max_entries
        self.consumer = mmap.mmap(self.fd, mmap.PAGESIZE)
        self.producer = mmap.mmap(self.fd, mmap.PAGESIZE + 2 * self.size, prot=mmap.PROT_READ, offset=mmap.PAGESIZE)

    def take(self) -> list[bytes]:
        """Every record begun by now."""
        out = []
        (at,) = struct.unpack_from("=Q", self.consumer)
        (end,) = struct.unpack_from("=Q", self.producer)
        deadline = time.monotonic() + 30
        while at < end:
            place = mmap.PAGESIZE + (at & (self.size - 1))
            (length,) = struct.unpack_from("=I", self.producer, place)
            if length >> 31:
                # Somebody else's, on another processor at this moment; what lies behind it may be the test's own.
                assert time.monotonic() < deadline, "a record of the ring stays unfinished"
                continue
            size = length & 0x3FFFFFFF
            if not length >> 30 & 1:
                out.append(self.producer[place + 8 : place + 8 + size])
            at += (size + 15) & ~7
        struct.pack_into("=Q", self.consumer, 0, at)
        return out

    def close(self) -> None:
        """Give everything back."""
        self.consumer.close()
        self.producer.close()
        os.close(self.fd)


def fields(layout: Layout, data: bytes) -> SimpleNamespace:
    """A record by field name; repeated fields as tuples."""
    values = list(layout.struct.unpack(data))
    out: dict[str, Any] = {}
    for field in layout.fields:
        if field.ctype == "u8" or field.count == 1:
            out[field.name] = values.pop(0)
        else:
            out[field.name] = tuple(values.pop(0) for _ in range(field.count))
    return SimpleNamespace(**out)


class Event(SimpleNamespace):
    """One occurrence with its behaviour and texts spelled out."""


class Sensor:
    """The loaded programs seen from a test."""

    def __init__(self, loaded: LoadedPrograms, cgroup: Path) -> None:
        self.loaded = loaded
        self.key = loaded.key
        self.cgroup = cgroup
        self.cgroup_id = cgroup.stat().st_ino
        self.occurrences = Reader(f"{loaded.pin_dir}/maps/occurrences")
        self.definitions = Reader(f"{loaded.pin_dir}/maps/definitions")
        self.texts: dict[int, bytes] = {0: b""}
        self.behaviours: dict[int, SimpleNamespace] = {}
        self.processes: dict[int, SimpleNamespace] = {}
        self.cgroups: list[tuple[DefinitionKind, int, bytes]] = []
        # What earlier tests were told is told again: every test stands alone. The definitions strictly before the clearing:
        # what others on this machine have announced since is not announced once more.
        self.definitions.take()
        for name in ("strings", "behaviours", "processes"):
            with loaded.map(name) as table:
                table.clear()
        with loaded.map("config") as config:
            renew(config)
            config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", (1 << 64) - 1))
        self.occurrences.take()
        self.scope()

    def scope(self, *, flags: ScopeFlag = ScopeFlag.CONTAINER, table: int = 0, visibility: int = ALL) -> None:
        """Write this test's scope."""
        with self.loaded.map("scopes") as scopes:
            scopes.put(struct.pack("=Q", self.cgroup_id), SCOPE.struct.pack(table, 0, flags, visibility))

    def run(self, action: Callable[[], object] | list[str], *, status: int | None = 0) -> list[Event]:
        """Run `action` in a forked child inside the cgroup (a list is executed) and return what was seen of the cgroup.

        `status`: wait status expected, None for any. A child that raises prints its traceback and ends with 99.
        """
        pid = os.fork()
        if not pid:
            code = 99
            try:
                (self.cgroup / "cgroup.procs").write_text("0")
                if isinstance(action, list):
                    os.execv(action[0], action)
                action()
                code = 0
            except BaseException:  # noqa: BLE001  a forked child must not return into pytest
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, ended = os.waitpid(pid, 0)
        if status is not None:
            assert ended == status
        self.pid = pid
        return self.seen()

    def seen(self) -> list[Event]:
        """What the rings hold of this cgroup, in order of time."""
        rows = [fields(OCCURRENCE, record) for record in self.occurrences.take()]
        for record in self.definitions.take():
            self._define(record)
        events = []
        for row in rows:
            behaviour = self.behaviours.get(row.id)
            assert behaviour is not None, f"occurrence of the undefined behaviour {row.id:#x}"
            if behaviour.cgroup != self.cgroup_id:
                continue
            event = Event(**{**vars(behaviour), **vars(row)})
            event.operation = Operation(event.operation)
            event.access = Access(event.access)
            event.enforcer = Backend(event.enforcer)
            for name in ("executable", "parent", "resource", "resource2"):
                setattr(event, name, self.texts[getattr(behaviour, name)].decode())
            events.append(event)
        return sorted(events, key=lambda event: event.time)

    def _define(self, record: bytes) -> None:
        ident, kind, size = DEFINITION.struct.unpack_from(record)
        body = record[DEFINITION.size : DEFINITION.size + size]
        assert len(body) == size
        match DefinitionKind(kind):
            case DefinitionKind.STRING:
                self.texts[ident] = body
            case DefinitionKind.BEHAVIOUR:
                self.behaviours[ident] = fields(BEHAVIOUR, body)
            case DefinitionKind.PROCESS:
                process = fields(PROCESS, body)
                for name in ("executable", "parent", "arguments", "cwd"):
                    setattr(process, name, self.texts.get(getattr(process, name)))
                self.processes[ident] = process
            case other:
                self.cgroups.append((other, ident, body))

    def lost(self, what: Loss) -> int:
        """A loss counter, over all cpus."""
        with self.loaded.map("losses") as losses:
            return losses.sum_u64(struct.pack("=I", what))

    def map(self, name: str) -> Map:
        """A map of the session's load."""
        return self.loaded.map(name)

    def close(self) -> None:
        """Let go of the rings."""
        self.occurrences.close()
        self.definitions.close()


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """An empty cgroup of this test, removed afterwards."""
    mount = cgroup2_mount()
    if mount is None or os.geteuid():
        pytest.skip("needs root and cgroup v2")
    path = Path(mount) / f"hauberk-test-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir()
    yield path
    remove(path)


def remove(path: Path) -> None:
    """End what runs in a cgroup of the test's own and rmdir it with all below; tasks that were just reaped may hold it for a moment."""
    deadline = time.monotonic() + 30
    while path.exists():
        try:
            for child in sorted(path.glob("**/"), reverse=True):
                for pid in (child / "cgroup.procs").read_text().split():
                    os.kill(int(pid), signal.SIGKILL)
                child.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


@pytest.fixture(name="remove", scope="session")
def _remove() -> Callable[[Path], None]:
    return remove


@pytest.fixture
def sensor(loaded: LoadedPrograms, cgroup: Path) -> Iterator[Sensor]:
    """The programs watching `cgroup`."""
    made = Sensor(loaded, cgroup)
    yield made
    made.close()


@pytest.fixture
def sensor_of(cgroup: Path) -> Iterator[Callable[[LoadedPrograms], Sensor]]:
    """sensor_of(loaded): other programs than the session's, watching `cgroup`."""
    made: list[Sensor] = []

    def of(loaded: LoadedPrograms) -> Sensor:
        made.append(Sensor(loaded, cgroup))
        return made[-1]

    yield of
    for one in made:
        one.close()


@pytest.fixture
def rules(sensor: Any) -> Iterator[Callable[..., None]]:
    """rules((class, kind, path, action, ...), ..., flags=): put a table in force for the test's cgroup."""
    table = time.monotonic_ns()
    keys: list[bytes] = []

    def put(*wanted: tuple[Any, ...], flags: int = 0) -> None:
        with sensor.map("rules") as rules_map:
            for class_, kind, path, action, *rest in wanted:
                source, limits = (*rest, *("", 0)[len(rest) :])
                key = RULE_KEY.struct.pack(
                    table, string_id(sensor.key, path), string_id(sensor.key, source) if source else 0, class_, kind
                )
                rules_map.put(key, RULE.struct.pack(action, limits, 7, 0))
                keys.append(key)
        sensor.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL | flags, table=table)

    yield put
    with sensor.map("rules") as rules_map:
        for key in keys:
            rules_map.delete(key)


@pytest.fixture
def pick() -> Callable[..., Event]:
    """pick(events, operation, **fields): the only event with that operation and those fields."""

    def choose(events: list[Event], operation: Operation, **wanted: object) -> Event:
        found = [
            event
            for event in events
            if event.operation is operation and all(getattr(event, name) == value for name, value in wanted.items())
        ]
        near = [event for event in events if event.operation is operation]
        assert len(found) == 1, f"expected one {operation.name} with {wanted}, got {len(found)} of {near}"
        return found[0]

    return choose


@pytest.fixture(scope="session")
def compiler() -> str:
    """A C compiler's name."""
    for name in ("cc", "gcc", "clang"):
        if subprocess.run(["which", name], capture_output=True, check=False).returncode == 0:
            return name
    pytest.skip("needs a C compiler")
