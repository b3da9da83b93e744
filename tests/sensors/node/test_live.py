# SPDX-License-Identifier: Apache-2.0
"""The sensor on the running kernel: what a generator did in a cgroup of its own arrives, exactly, whatever happens to the agent.

Only that cgroup is visible (a scope of its own; host and new cgroups are not watched), so the machine's other work
does not count.
"""

from __future__ import annotations

import asyncio
import os
import random
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bus.memory import MemoryBus
from kernel import bpf
from kernel.loading import LoadedPrograms, LoadSettings, load, mount_bpffs, unload, unmount
from schemas import frame as words
from schemas.errors import KernelError
from schemas.frame import FOLDED, Frame
from schemas.kernel import BEHAVIOUR, PROCESS, SCOPE, DefinitionKind, Loss
from schemas.operations import Class, Operation
from schemas.topics import EVENTS_RAW
from schemas.wakeup import Sleep
from sensors.node.agent import Agent, AgentSettings
from sensors.node.rings import RingSettings, RingSource
from sensors.recordings.recording import BlockKind, RecordingReader

pytestmark = pytest.mark.kernel
STORM = Path(__file__).parents[3] / "benchmarks" / "flood.c"


def why_not() -> str:
    """What is missing for these tests; empty when nothing is."""
    if shutil.which("cc") is None:
        return "no C compiler"
    if not unified():
        return "no cgroup v2"
    try:
        os.close(bpf.map_create(2, 4, 8, 1))
    except KernelError as error:
        return str(error)
    return "" if os.path.isdir("/usr/lib/python3/dist-packages/bcc") else "no BCC (python3-bpfcc)"


def unified() -> Path | None:
    for path in (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")):
        if (path / "cgroup.procs").exists():
            return path
    return None


if why_not():
    pytest.skip(why_not(), allow_module_level=True)


@pytest.fixture(scope="session")
def storm(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("storm") / "storm"
    subprocess.run(["cc", "-O2", "-o", str(path), str(STORM), "-lpthread"], check=True)
    return str(path)


@pytest.fixture(scope="module")
def mount(bpffs_home: Callable[[str], str]) -> Iterator[str]:
    where = bpffs_home("live")
    try:
        mount_bpffs(where)
        yield where
    finally:
        unmount(where)


@pytest.fixture(scope="module")
def loaded(mount: str) -> Iterator[LoadedPrograms]:
    """Real programs with the usual rings, watching nothing by themselves."""
    try:
        yield load(LoadSettings(host_visibility=("none",), new_visibility=("none",), timeout=300.0), f"{mount}/usual")
    finally:
        unload(f"{mount}/usual")


@pytest.fixture(scope="module")
def small(mount: str) -> Iterator[LoadedPrograms]:
    """The same with a ring of 1023 rows."""
    settings = LoadSettings(host_visibility=("none",), new_visibility=("none",), occurrence_pages=16, timeout=100.0)
    try:
        yield load(settings, f"{mount}/small")
    finally:
        unload(f"{mount}/small")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of our own, empty and removed at the end."""
    root = unified()
    assert root is not None
    path = root / f"hauberk-test-rings-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir()
    yield path
    deadline = time.monotonic() + 30
    while path.exists():
        try:
            for pid in (path / "cgroup.procs").read_text().split():
                os.kill(int(pid), signal.SIGKILL)
            path.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


def watch(loaded: LoadedPrograms, cgroup: Path, classes: int = 1 << Class.FILE) -> int:
    """Make `cgroup` visible; its id."""
    ident = cgroup.stat().st_ino
    with loaded.map("scopes") as scopes:
        scopes.put(struct.pack("=Q", ident), SCOPE.struct.pack(0, 0, 0, classes))
    return ident


def run_storm(storm: str, cgroup: Path, count: int, path: str, distinct: int = 0, threads: int = 1) -> int:
    command = [storm, str(cgroup / "cgroup.procs"), str(count), path, str(distinct), str(threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    return int(done.stdout.split()[0])


def settled(source: RingSource, frames: list[Frame]) -> None:
    """Drain until the ring is empty. A definition may stand behind one that another CPU still writes: its rows wait."""
    deadline = time.monotonic() + 30
    while (batch := source.drain()) or source.parked:
        assert time.monotonic() < deadline
        frames += batch.frames
        source.release()
    while batch := source.finish():
        frames += batch.frames
        source.release()


def opens(frames: list[Frame], cgroup: int) -> Counter[str]:
    """Path -> opens in `cgroup`, from rows and folded rows."""
    found: Counter[str] = Counter()
    for frame in frames:
        known = {(kind, ident): body for ident, kind, body in words.definitions(frame.definitions)}
        counts: Counter[int] = Counter(memoryview(frame.occurrences).cast("Q")[1::8].tolist())
        for row in FOLDED.iter_unpack(frame.folded):
            counts[row[0]] += row[1]
        for ident, count in counts.items():
            body = known[DefinitionKind.BEHAVIOUR, ident]
            behaviour = dict(zip(BEHAVIOUR.offsets, BEHAVIOUR.struct.unpack(body)[:5], strict=False))
            if behaviour["cgroup"] == cgroup:
                found[known[DefinitionKind.STRING, behaviour["resource"]].decode()] += count
    return found


def behaviours_of(frames: list[Frame], cgroup: int, path: str) -> set[int]:
    """Ids of what was done to `path` in `cgroup`."""
    found: set[int] = set()
    for frame in frames:
        known = {(kind, ident): body for ident, kind, body in words.definitions(frame.definitions)}
        for (kind, ident), body in known.items():
            if kind == DefinitionKind.BEHAVIOUR:
                behaviour = dict(zip(BEHAVIOUR.offsets, BEHAVIOUR.struct.unpack(body)[:5], strict=False))
                text = known.get((DefinitionKind.STRING, behaviour["resource"]), b"")
                if (behaviour["cgroup"], text.decode()) == (cgroup, path):
                    found.add(ident)
    return found


def test_every_open_arrives_with_its_path(loaded: LoadedPrograms, storm: str, cgroup: Path, tmp_path: Path) -> None:
    ident = watch(loaded, cgroup)
    for n in range(0, 50, 2):
        (tmp_path / f"f.{n}").touch()
    source = RingSource(loaded.pin_dir, "n", "r", RingSettings(fold="never"))
    source.observe()
    made = run_storm(storm, cgroup, 5000, str(tmp_path / "f"), distinct=50)
    frames: list[Frame] = []
    settled(source, frames)
    source.close()
    assert made == 5000
    assert opens(frames, ident) == {str(tmp_path / f"f.{n}"): 100 for n in range(50)}
    assert sum(frame.header.undefined for frame in frames) == 0
    # Half of the files are missing: success and failure are two behaviours.
    rows = b"".join(frame.occurrences for frame in frames)
    returned = memoryview(rows).cast("i")[2 + 12 :: 16].tolist()
    assert sum(value == -2 for value in returned) == 2500
    sequences = memoryview(rows).cast("Q")[3::8].tolist()
    assert len(set(sequences)) == len(sequences)


def test_a_flood_is_counted_exactly_by_rows_and_folds(loaded: LoadedPrograms, storm: str, cgroup: Path) -> None:
    ident = watch(loaded, cgroup)
    source = RingSource(loaded.pin_dir, "n", "r", RingSettings(fold="pressure", pressure=0.0005))
    source.observe()
    # Of two threads, and fewer rows than the ring holds: however late the reader is, none is lost.
    command = [storm, str(cgroup / "cgroup.procs"), "120000", "/etc/hostname", "0", "2"]
    frames: list[Frame] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        while child.poll() is None:
            frames += source.drain().frames
            source.release()
            time.sleep(0.005)
        assert child.stdout is not None
        made = int(child.stdout.read().split()[0])
    settled(source, frames)
    source.close()
    assert opens(frames, ident) == {"/etc/hostname": made}
    assert any(frame.folded for frame in frames)
    assert not any(frame.header.lost and frame.header.lost[Loss.OCCURRENCES_FULL] for frame in frames)


async def test_a_ring_that_is_half_full_calls_a_reader_that_sleeps(
    loaded: LoadedPrograms, storm: str, cgroup: Path
) -> None:
    ident = watch(loaded, cgroup)
    bus = MemoryBus()
    source = RingSource(loaded.pin_dir, "n", "r", RingSettings())
    agent = Agent(source, bus, AgentSettings(tick=3600, idle=3600, coalesce=3600))
    running = asyncio.create_task(agent.run())
    try:
        while not agent.stats.drains:  # noqa: ASYNC110 - a count, which has no event
            await asyncio.sleep(0.01)
        made = await asyncio.to_thread(run_storm, storm, cgroup, 200_000, "/etc/hostname")
        async with asyncio.timeout(60):
            while agent.stats.events < 100_000:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert agent.stats.calls > 0
    finally:
        agent.stop()
        await running
        source.close()
    frames = [words.decode(record.value or b"") for record in bus.records(EVENTS_RAW)]
    assert opens(frames, ident) == {"/etc/hostname": made}


def called(source: RingSource, seconds: float) -> bool:
    """Whether the kernel called within `seconds`."""
    heard = bool(select.select([source.calls], [], [], seconds)[0])
    source.heard()
    return heard


def test_the_first_event_calls_a_reader_that_sleeps(loaded: LoadedPrograms, storm: str, cgroup: Path) -> None:
    ident = watch(loaded, cgroup)
    source = RingSource(loaded.pin_dir, "n", "r", RingSettings())
    frames: list[Frame] = []
    settled(source, frames)
    source.heard()
    assert source.rest(Sleep.ASLEEP)
    made = run_storm(storm, cgroup, 3, "/etc/hostname")
    assert called(source, 30)
    settled(source, frames)
    # Known by now: it calls who sleeps and leaves alone who dozes.
    assert source.rest(Sleep.ASLEEP)
    made += run_storm(storm, cgroup, 1, "/etc/hostname")
    assert called(source, 30)
    settled(source, frames)
    source.close()
    assert opens(frames, ident) == {"/etc/hostname": made}


def test_what_cannot_wait_calls_a_reader_that_dozes(loaded: LoadedPrograms, cgroup: Path) -> None:
    ident = watch(loaded, cgroup)
    source = RingSource(loaded.pin_dir, "n", "r", RingSettings())
    frames: list[Frame] = []
    opener = "import os\nfor line in iter(input, ''): os.close(os.open(line, os.O_RDONLY)); print(flush=True)"
    enter = f"open({str(cgroup / 'cgroup.procs')!r}, 'w').write('0')\n"
    with subprocess.Popen(
        [sys.executable, "-S", "-c", enter + opener], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None

        def open_file(path: str) -> None:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(f"{path}\n")
            child.stdin.flush()
            child.stdout.readline()

        def doze() -> None:
            settled(source, frames)
            source.heard()
            assert source.rest(Sleep.DOZING)

        def waits() -> bool:
            doze()
            open_file("/etc/hostname")
            return not called(source, 0.1)

        # From the first drain on something is observed.
        settled(source, frames)
        open_file("/etc/hostname")
        # A cgroup that somebody else on this machine makes calls too.
        tries = next(number for number in range(1, 50) if waits())
        doze()
        open_file("/etc/hosts")
        assert called(source, 30)
        settled(source, frames)
        source.wanted.call_for(behaviours_of(frames, ident, "/etc/hostname"))
        doze()
        open_file("/etc/hostname")
        assert called(source, 30)
        # Awake it is noted instead.
        open_file("/etc/hostname")
        assert not source.rest(Sleep.DOZING)
        child.stdin.write("\n")
    settled(source, frames)
    source.close()
    assert opens(frames, ident)["/etc/hostname"] == 1 + tries + 2


def test_what_does_not_fit_is_reported_exactly(small: LoadedPrograms, storm: str, cgroup: Path) -> None:
    ident = watch(small, cgroup)
    source = RingSource(small.pin_dir, "n", "r", RingSettings(fold="never"))
    source.observe()
    made = run_storm(storm, cgroup, 5000, "/etc/hostname")
    frames: list[Frame] = []
    settled(source, frames)
    lost = sum(frame.header.lost[Loss.OCCURRENCES_FULL] for frame in frames if frame.header.lost)
    arrived = sum(opens(frames, ident).values())
    source.close()
    assert arrived == 1023
    assert arrived + lost == made == 5000


def test_a_new_agent_takes_over_the_pins(loaded: LoadedPrograms, storm: str, cgroup: Path, tmp_path: Path) -> None:
    ident = watch(loaded, cgroup)
    settings = RingSettings(fold="never", state_dir=str(tmp_path))
    frames: list[Frame] = []
    for number in range(3):
        source = RingSource(loaded.pin_dir, "n", f"r{number}", settings)
        source.observe()
        run_storm(storm, cgroup, 1000, "/etc/hostname")
        settled(source, frames)
        source.close()
        # Nobody is reading now.
        run_storm(storm, cgroup, 500, "/etc/hostname")
    source = RingSource(loaded.pin_dir, "n", "last", settings)
    source.observe()
    settled(source, frames)
    source.close()
    assert opens(frames, ident) == {"/etc/hostname": 4500}
    assert sum(frame.header.undefined for frame in frames) == 0


def test_a_cgroups_birth_and_end_are_told(loaded: LoadedPrograms) -> None:
    told: list[tuple[int, str | None, bool]] = []
    root = unified()
    assert root is not None
    source = RingSource(loaded.pin_dir, "n", "r", RingSettings(), lambda *seen: told.append(seen))
    source.observe()
    path = root / f"hauberk-test-born-{os.getpid()}-{time.monotonic_ns()}"
    path.mkdir()
    ident = path.stat().st_ino
    path.rmdir()
    deadline = time.monotonic() + 60
    while (ident, None, True) not in told and time.monotonic() < deadline:
        source.drain()
        source.release()
        time.sleep(0.005)
    source.close()
    assert [each for each in told if each[0] == ident] == [(ident, f"/{path.name}", False), (ident, None, True)]


def test_a_child_is_seen_with_its_arguments(loaded: LoadedPrograms, cgroup: Path, tmp_path: Path) -> None:
    ident = watch(loaded, cgroup, 1 << Class.PROCESS)
    source = RingSource(loaded.pin_dir, "n", "r", RingSettings(state_dir=str(tmp_path)))
    source.observe()
    script = f"echo $$ > {cgroup}/cgroup.procs; /bin/ls -d 'a b' /etc/hostname 2>/dev/null; true"
    subprocess.run(["/bin/sh", "-c", script], check=True, stdout=subprocess.DEVNULL)
    frames: list[Frame] = []
    settled(source, frames)
    source.close()
    known = {(kind, i): body for frame in frames for i, kind, body in words.definitions(frame.definitions)}
    said = set()
    for (kind, _), body in known.items():
        if kind == DefinitionKind.PROCESS:
            values = dict(zip(PROCESS.offsets, PROCESS.struct.unpack(body), strict=True))
            said.add((known[1, values["executable"]], known.get((1, values["arguments"]))))
    # The path it was called by, then its arguments.
    assert (os.fsencode(os.path.realpath("/bin/ls")), b"/bin/ls\0/bin/ls\0-d\0a b\0/etc/hostname") in said
    operations = Counter(
        int.from_bytes(body[BEHAVIOUR.offsets["operation"] :][:2], "little")
        for (kind, _), body in known.items()
        if kind == DefinitionKind.BEHAVIOUR and int.from_bytes(body[:8], "little") == ident
    )
    assert operations[Operation.EXEC] == 1
    assert operations[Operation.EXIT] >= 1


AGENT = """
import asyncio, sys
from schemas.topics import EVENTS_RAW
from schemas.wakeup import Sleep
from schemas.wakeup import Sleep
from sensors.node.agent import Agent, AgentSettings
from sensors.recordings.recording import BlockKind, RecordingWriter
from sensors.node.rings import RingSettings, RingSource

class ToFile:
    def __init__(self, path):
        self.writer = RecordingWriter(path)
    async def publish(self, topic, records):
        for record in records:
            self.writer.add(BlockKind.FRAMES, 0, record.key, record.value)
        self.writer.flush()

async def main(pins, state, path):
    source = RingSource(pins, "n", "r", RingSettings(fold="never", state_dir=state))
    source.observe()
    agent = Agent(source, ToFile(path), AgentSettings(tick=0.002, idle=0.002))
    print("ready", flush=True)
    asyncio.get_running_loop().add_reader(0, agent.stop)
    await agent.run()
    with open("/proc/self/status") as status:
        rss = [line.split()[1] for line in status if line.startswith("VmRSS")][0]
    source.close()
    print(rss, agent.stats.events, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


Start = Callable[[Path, Path], subprocess.Popen[str]]


@pytest.fixture
def start_agent(loaded: LoadedPrograms) -> Iterator[Start]:
    """start_agent(state, out): an agent over the usual pins. Whatever still runs in the end is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(state: Path, out: Path) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", AGENT, loaded.pin_dir, str(state), str(out)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(child)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        return child

    yield start
    for child in started:
        child.kill()
        with child:
            pass


def stop_agent(child: subprocess.Popen[str]) -> tuple[int, int]:
    """Ask it to stop; (RSS in KiB, events)."""
    out, _ = child.communicate("stop", timeout=90)
    rss, events = out.split()
    return int(rss), int(events)


def test_killed_at_any_moment_it_loses_nothing(
    loaded: LoadedPrograms, start_agent: Start, storm: str, cgroup: Path, tmp_path: Path
) -> None:
    ident = watch(loaded, cgroup)
    out, state = tmp_path / "out", tmp_path / "state"
    command = [storm, str(cgroup / "cgroup.procs"), "60000", str(tmp_path / "f"), "40"]
    child = start_agent(state, out)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load_generator:
        for _ in range(4):
            time.sleep(random.uniform(0.01, 0.05))
            child.send_signal(signal.SIGKILL)
            child.communicate()
            child = start_agent(state, out)
        load_generator.communicate(timeout=100)
    stop_agent(child)
    with RecordingReader(str(out)) as reader:
        frames = [words.decode(e.value) for e in reader if e.kind is BlockKind.FRAMES and e.value is not None]
    assert sum(frame.header.undefined for frame in frames) == 0
    assert not any(frame.header.lost and frame.header.lost[Loss.OCCURRENCES_FULL] for frame in frames)
    rows = b"".join(frame.occurrences for frame in frames)
    assert len(set(memoryview(rows).cast("Q")[3::8].tolist())) == 60000
    assert set(opens(frames, ident)) == {str(tmp_path / f"f.{n}") for n in range(40)}


def test_the_resident_agent_is_small(
    loaded: LoadedPrograms, start_agent: Start, storm: str, cgroup: Path, tmp_path: Path
) -> None:
    watch(loaded, cgroup)
    child = start_agent(tmp_path / "state", tmp_path / "out")
    made = run_storm(storm, cgroup, 30_000, str(tmp_path / "f"), distinct=3000)
    deadline = time.monotonic() + 60
    while not (tmp_path / "out").stat().st_size:
        assert time.monotonic() < deadline, "nothing was published"
        time.sleep(0.01)
    rss, events = stop_agent(child)
    print(f"resident agent: {rss / 1024:.1f} MiB after {events} events of 3000 behaviours")
    assert events == made
    assert rss < 40 * 1024
