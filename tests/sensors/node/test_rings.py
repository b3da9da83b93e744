# SPDX-License-Identifier: Apache-2.0
"""The live source on the kernel's own rings, fed by hand: nothing lost, nothing repeated unless asked, misses announced again."""

from __future__ import annotations

import os
import struct
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kernel.features import cgroup2_mount
from kernel.maps import Map
from kernel.siphash import siphash13, string_id
from schemas import frame as words
from schemas.errors import KernelError
from schemas.frame import FOLDED, Frame
from schemas.kernel import BEHAVIOUR, QUIET_KEY, Config, DefinitionKind, Loss
from schemas.wakeup import CALLS, Sleep
from sensors.node.definitions import OVERHEAD, Definitions
from sensors.node.frames import FrameSettings
from sensors.node.rings import RingSettings, RingSource

pytestmark = pytest.mark.kernel


def ids_of(frame: Frame) -> list[int]:
    return list(memoryview(frame.occurrences).cast("Q")[1::8])


def defined(frame: Frame) -> set[tuple[int, int]]:
    return {(kind, ident) for ident, kind, _ in words.definitions(frame.definitions)}


def open_source(stand_in: Any, **settings: Any) -> RingSource:
    return RingSource(str(stand_in.pins), "node", "run", RingSettings(**settings))


def test_rows_arrive_with_everything_they_refer_to(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.string(11, "/usr/bin/cat")
    stand_in.string(12, "/etc/shadow")
    stand_in.process(77, executable=11)
    stand_in.behaviour(5, executable=11, resource=12)
    for _ in range(10):
        stand_in.happen(5, process=77)
    (frame,) = source.drain().frames
    assert ids_of(frame) == [5] * 10
    assert defined(frame) == {(1, 11), (1, 12), (2, 5), (3, 77)}
    assert frame.header.events == 10
    assert frame.header.undefined == 0
    source.release()
    assert source.drain().frames == ()
    stand_in.happen(5, process=77)
    (again,) = source.drain().frames
    assert defined(again) == defined(frame)
    assert again.header.number == 1
    source.close()


def test_every_frame_says_where_its_cgroups_lie(stand_in: Any, tmp_path: Path) -> None:
    """A cgroup's path is announced once, before anything happens in it; readers of any later frame need it."""
    source = open_source(stand_in, state_dir=str(tmp_path), fold="never", frames=FrameSettings(limit_bytes=4096))
    stand_in.say(DefinitionKind.CGROUP, 70, b"/docker/made")
    stand_in.say(DefinitionKind.CGROUP, 71, b"/docker/other")
    stand_in.behaviour(5, cgroup=70)
    stand_in.behaviour(6, cgroup=7)
    for _ in range(100):
        stand_in.happen(5)
    stand_in.happen(6)
    frames = list(source.drain().frames)
    assert len(frames) > 1
    source.release()
    stand_in.say(DefinitionKind.CGROUP_GONE, 70, b"")
    stand_in.happen(5)
    frames += source.drain().frames
    source.release()
    for frame in frames:
        first = words.definitions(frame.definitions)[0]
        if 5 in ids_of(frame):
            assert first == (70, DefinitionKind.CGROUP, b"/docker/made"), "strictly first, for readers look no further"
        assert (DefinitionKind.CGROUP, 71) not in defined(frame)
    source.close()
    after = open_source(stand_in, state_dir=str(tmp_path))
    stand_in.happen(5)
    assert (DefinitionKind.CGROUP, 70) in defined(after.drain().frames[0]), "nobody announces it to the next agent"
    after.close()


def test_cgroups_older_than_the_programs_are_looked_for(stand_in: Any) -> None:
    mount = cgroup2_mount()
    assert mount is not None
    where = Path(f"{mount}/hauberk-test-older-{os.getpid()}/inner")
    where.mkdir(parents=True)
    try:
        source = open_source(stand_in)
        stand_in.behaviour(5, cgroup=where.stat().st_ino)
        stand_in.happen(5)
        (frame,) = source.drain().frames
        source.close()
    finally:
        where.rmdir()
        where.parent.rmdir()
    assert words.definitions(frame.definitions)[0][2] == os.fsencode(where)[len(mount) :]


def test_paths_of_cgroups_are_bounded_and_those_in_use_stay() -> None:
    definitions = Definitions(1 << 20)
    behaviour = BEHAVIOUR.struct.pack(1, *[0] * 21, b"", 0)
    definitions.define(DefinitionKind.BEHAVIOUR, 5, behaviour)
    for cgroup in range(1, 50_000):
        definitions.place(cgroup, b"/docker/" + b"x" * 100)
        if cgroup % 100 == 0:
            assert b"/docker/" in definitions.closure({5}, set()).run
    held = sum(len(record) + OVERHEAD for record in definitions.records())
    assert 200_000 < held < (1 << 18) + 1000


def test_what_was_not_released_is_handed_out_again(stand_in: Any, tmp_path: Path) -> None:
    source = open_source(stand_in, state_dir=str(tmp_path))
    stand_in.string(12, "/etc/shadow")
    stand_in.behaviour(5, resource=12)
    stand_in.happen(5)
    assert ids_of(source.drain().frames[0]) == [5]
    source.close()
    after = open_source(stand_in, state_dir=str(tmp_path))
    (frame,) = after.drain().frames
    assert ids_of(frame) == [5]
    assert defined(frame) == {(1, 12), (2, 5)}
    assert stand_in.announced(5)
    after.close()


def test_without_a_state_directory_everything_is_announced_again(stand_in: Any) -> None:
    stand_in.string(12, "/etc/shadow")
    stand_in.behaviour(5, resource=12)
    source = open_source(stand_in)
    assert not stand_in.announced(5)
    source.close()


def test_a_late_definition_is_waited_for(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.behaviour(6)
    stand_in.happen(5)
    stand_in.happen(6)
    (frame,) = source.drain().frames
    assert ids_of(frame) == [6]
    source.release()
    stand_in.behaviour(5)
    (late,) = source.drain().frames
    assert ids_of(late) == [5]
    assert source.undefined == 0
    source.close()


@pytest.mark.parametrize("stand_in", [64], indirect=True)
def test_late_rows_of_many_chunks_all_come_once(stand_in: Any) -> None:
    source = open_source(stand_in, frames=FrameSettings(limit_bytes=16 * 1024), fold="never")
    stand_in.behaviour(6)
    for number in range(1000):
        stand_in.happen(5 if number % 3 else 6)
    early = source.drain().frames
    source.release()
    assert sum(frame.header.events for frame in early) == 334
    assert source.fill > 0.2, "rows that wait keep their space"
    stand_in.behaviour(5)
    late = source.drain().frames
    source.release()
    assert source.fill == 0
    rows = b"".join(frame.occurrences for frame in (*early, *late))
    assert sorted(memoryview(rows).cast("Q")[3::8].tolist()) == list(range(1000))
    assert source.undefined == 0
    source.close()


def test_an_unknown_id_goes_out_counted_and_is_announced_again(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.behaviours.put(struct.pack("=Q", 5), struct.pack("=Q", 1))
    stand_in.happen(5)
    assert source.drain().frames == ()
    (frame,) = source.finish().frames
    assert ids_of(frame) == [5]
    assert frame.header.undefined == 1
    assert not stand_in.announced(5)
    source.close()


def test_a_process_nobody_announced_comes_from_the_kernels_map_and_proc(stand_in: Any) -> None:
    source = open_source(stand_in)
    pid = os.getpid()
    process = 99 << 22 | pid
    path = os.fsencode(os.readlink("/proc/self/exe"))
    executable = siphash13((0, 0), path)
    stand_in.image(pid, process, executable)
    stand_in.behaviour(5, executable=executable)
    stand_in.happen(5, process=process, pid=pid)
    (frame,) = source.drain().frames
    found = {(kind, ident): body for ident, kind, body in words.definitions(frame.definitions)}
    assert frame.header.undefined == 0
    assert found[DefinitionKind.STRING, executable] == path
    arguments = int.from_bytes(found[DefinitionKind.PROCESS, process][24:32], "little")
    said = found[DefinitionKind.STRING, arguments]
    assert said
    assert Path("/proc/self/cmdline").read_bytes().startswith(said)
    source.close()


def test_proc_is_not_believed_when_the_hash_differs(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.image(os.getpid(), 99 << 22 | os.getpid(), 1234)
    stand_in.behaviour(5, executable=1234)
    stand_in.happen(5, pid=os.getpid())
    (frame,) = source.finish().frames
    assert frame.header.undefined == 1
    assert stand_in.images.get(struct.pack("=I", os.getpid())) is None, "the task is to be adopted again"
    source.close()


def test_losses_are_told_once_even_across_a_restart(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.lose(Loss.OCCURRENCES_FULL, 3)
    batch = source.finish()
    assert batch.frames[0].header.lost[Loss.OCCURRENCES_FULL] == 3
    source.release()
    assert source.finish().frames == ()
    source.close()
    stand_in.lose(Loss.PATH_TRUNCATED, 2)
    after = open_source(stand_in)
    (frame,) = after.finish().frames
    assert sum(frame.header.lost) == frame.header.lost[Loss.PATH_TRUNCATED] == 2
    after.release()
    after.close()


def test_losses_not_released_are_told_again(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.lose(Loss.OCCURRENCES_FULL, 3)
    assert source.finish().frames[0].header.lost[0] == 3
    source.close()
    after = open_source(stand_in)
    assert after.finish().frames[0].header.lost[0] == 3
    after.close()


@pytest.mark.parametrize("stand_in", [1], indirect=True)
def test_a_full_ring_loses_exactly_what_it_says(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.behaviour(5)
    kept = sum(stand_in.happen(5) for _ in range(200))
    batch = source.finish()
    assert sum(frame.header.events for frame in batch.frames) == kept == 63
    assert sum(frame.header.lost[0] for frame in batch.frames if frame.header.lost) == 200 - kept
    source.close()


@pytest.mark.parametrize("stand_in", [512], indirect=True)
def test_rows_stay_in_order_across_windows_and_wraps(stand_in: Any) -> None:
    source = open_source(stand_in, fold="never")
    stand_in.behaviour(5)
    expected, seen = 0, []
    for burst in (1, 9000, 20_000, 3, 25_000, 8191, 8193):
        for _ in range(burst):
            assert stand_in.happen(5)
        expected += burst
        while batch := source.drain():
            for frame in batch.frames:
                seen += memoryview(frame.occurrences).cast("Q")[3::8].tolist()
            source.release()
    assert seen == list(range(expected))
    source.close()


@pytest.mark.parametrize("fold", ["never", "always"])
@pytest.mark.parametrize("stand_in", [512], indirect=True)
def test_a_row_that_was_taken_back_does_not_end_the_last_drain(stand_in: Any, fold: str) -> None:
    """A program that calls a sleeping reader leaves a discarded row: the chunk with it was taken for the last one, and what lay behind
    went with the ring at a stop."""
    source = open_source(stand_in, fold=fold)
    stand_in.behaviour(5)
    for number in range(20_000):
        if number in (100, 9000, 9001):
            stand_in.take_back()
        assert stand_in.happen(5)
    told, more = 0, True
    while more:
        batch = source.finish()
        told += sum(frame.header.events for frame in batch.frames)
        source.release()
        more = batch.more
    assert told == 20_000
    assert source.fill == 0
    source.close()


def test_definitions_behind_what_was_taken_back_are_found(stand_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(stand_in)
    monkeypatch.setattr("sensors.node.rings._PIECE", 4096)
    for _ in range(20):
        stand_in.take_back("definitions", 8 << 10)
    stand_in.behaviour(5)
    assert stand_in.happen(5)
    (frame,) = source.finish().frames
    assert frame.header.undefined == 0
    source.close()


def test_pressure_folds_and_counts_exactly(stand_in: Any) -> None:
    source = open_source(stand_in, frames=FrameSettings(fold_from=8, keep=4), fold="pressure", pressure=0.5)
    for ident in (5, 6, 7):
        stand_in.behaviour(ident)
    sent: Counter[int] = Counter()
    for n in range(900):
        ident = 5 if n % 3 else (6 if n % 2 else 7)
        if n == 450:
            ident = 7
        assert stand_in.happen(ident, process=0)
        sent[ident] += 1
    (frame,) = source.drain().frames
    got = Counter(ids_of(frame))
    assert all(count == 4 for count in got.values())
    for ident, count, first, last, _, _ in FOLDED.iter_unpack(frame.folded):
        got[ident] += count
        assert first < last
    assert got == sent
    assert frame.header.events == 900
    source.close()


def test_cgroups_are_told_once_and_when_they_go(stand_in: Any) -> None:
    told: list[tuple[int, str | None, bool]] = []
    source = RingSource(str(stand_in.pins), "node", "run", RingSettings(), lambda *seen: told.append(seen))
    stand_in.say(DefinitionKind.CGROUP, 40, b"/docker/abc")
    stand_in.behaviour(5, cgroup=40)
    stand_in.behaviour(6, cgroup=41)
    stand_in.behaviour(7, cgroup=41)
    stand_in.say(DefinitionKind.CGROUP_GONE, 40, b"")
    source.drain()
    assert told == [(40, "/docker/abc", False), (41, None, False), (40, None, True)]
    source.close()


def test_a_fork_runs_the_image_of_a_process_that_is_gone(stand_in: Any) -> None:
    daemon = (77 << 22) | 4001
    source = open_source(stand_in)
    stand_in.image(4002, daemon, 5)  # 4001 called exec, forked and ended, as daemons do
    assert source._pins.living() == {(daemon, 5, 0, 0)}
    source.close()


def test_the_agent_itself_is_excluded_while_it_runs(stand_in: Any) -> None:
    source = open_source(stand_in)
    with Map.open(str(stand_in.pins / "maps" / "excluded")) as excluded:
        assert excluded.get(struct.pack("=I", os.getpid())) is not None
        source.close()
        assert excluded.get(struct.pack("=I", os.getpid())) is None


def test_a_second_agent_is_refused_and_a_dead_ones_exclusion_ends(stand_in: Any) -> None:
    source = open_source(stand_in)
    source.exclude(123456)
    with pytest.raises(KernelError, match="only agent"):
        open_source(stand_in)
    # As a kill leaves it: nothing taken back.
    source._pins._pids.clear()
    source.close()
    again = open_source(stand_in)
    with Map.open(str(stand_in.pins / "maps" / "excluded")) as excluded:
        assert list(excluded.keys()) == [struct.pack("=I", os.getpid())]
    again.close()


def test_missing_pins_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"OBJ_GET.*ENOENT.*load the sensor first"):
        RingSource(str(tmp_path), "node", "run", RingSettings())


def test_who_is_about_to_sleep_finds_what_came_before(stand_in: Any) -> None:
    source = open_source(stand_in)
    config = Map.open(f"{stand_in.pins}/maps/config")

    def asleep() -> int:
        return config.sum_u64(struct.pack("=I", Config.ASLEEP))

    source.drain()
    assert source.rest(Sleep.ASLEEP)
    assert asleep() == Sleep.ASLEEP
    stand_in.behaviour(5)
    stand_in.happen(5)
    assert not source.rest(Sleep.ASLEEP)
    # Dozing waits for what is noted as haste, not for what lies in the ring.
    assert source.rest(Sleep.DOZING)
    config.put(struct.pack("=I", Config.HASTE), struct.pack("=Q", 3))
    assert not source.rest(Sleep.DOZING)
    assert len(source.drain().frames) == 1
    assert asleep() == Sleep.AWAKE
    assert source.rest(Sleep.DOZING)
    config.close()
    source.close()


def test_a_drain_says_whether_something_in_it_cannot_wait(stand_in: Any) -> None:
    source = open_source(stand_in)
    config = Map.open(f"{stand_in.pins}/maps/config")
    source.drain()
    stand_in.behaviour(5)
    stand_in.happen(5)
    assert not source.drain().hasty
    stand_in.happen(5)
    config.put(struct.pack("=I", Config.HASTE), struct.pack("=Q", 1))
    assert source.drain().hasty
    stand_in.happen(5)
    assert not source.drain().hasty
    # A row without its definition goes out later, when what made haste is forgotten.
    stand_in.happen(6)
    source.drain()
    assert source.drain().hasty
    config.close()
    source.close()


def test_rows_that_wait_keep_the_reader_awake(stand_in: Any) -> None:
    source = RingSource(str(stand_in.pins), "n", "run", RingSettings())
    stand_in.happen(5)
    source.drain()
    assert not source.rest(Sleep.ASLEEP)
    assert not source.rest(Sleep.DOZING)
    source.close()


def test_only_behaviours_that_are_announced_are_marked(stand_in: Any) -> None:
    source = RingSource(str(stand_in.pins), "n", "run", RingSettings())
    stand_in.behaviour(5)
    source.wanted.call_for([5, 6])
    assert stand_in.behaviours.get(struct.pack("=Q", 5)) == struct.pack("=Q", CALLS)
    assert not stand_in.announced(6)
    source.close()


def test_what_a_killed_agent_had_in_hand_is_told_once(stand_in: Any) -> None:
    killed = open_source(stand_in)
    killed.in_hand(9)
    killed.in_hand(7)
    killed.close()
    source = open_source(stand_in)
    assert source.take_over() == 7
    (told,) = source.drain().frames
    assert told.header.lost[Loss.HANDED_OVER] == 7
    source.release()
    # Opened anew in the same process, it has its own in hand.
    source.in_hand(3)
    source.close()
    source = open_source(stand_in)
    assert source.drain().frames == ()
    source.in_hand(0)
    source.close()
    source = open_source(stand_in)
    assert source.take_over() == 0
    assert source.drain().frames == ()
    source.close()


def test_directories_whose_names_nobody_needs_are_taken_back(stand_in: Any) -> None:
    source = open_source(stand_in)
    with Map.open(str(stand_in.pins / "maps" / "quiet")) as quiet:
        source.wanted.name_by_directory([(7, "/data/"), (7, "/caf\udce9/")])
        key = source._pins.key
        assert quiet.get(QUIET_KEY.struct.pack(7, string_id(key, "/data/"))) is not None
        assert quiet.get(QUIET_KEY.struct.pack(7, string_id(source._pins.key, b"/caf\xe9/"))) is not None
        source.wanted.name_by_file()
        assert list(quiet.keys()) == []
        source.wanted.name_by_directory([(7, "/data/")])
        source.wanted.count_none()
        assert list(quiet.keys()) == []
        source.wanted.name_by_directory([(7, "/data/")])
        source.close()
        assert list(quiet.keys()) == [], "programs that stay have nobody who takes it back"
        quiet.put(QUIET_KEY.struct.pack(7, string_id(key, "/data/")), struct.pack("=Q", 1))
        open_source(stand_in).close()
        assert list(quiet.keys()) == [], "an agent does not know what the one before it was told"


def test_what_could_not_be_taken_back_is_taken_back_the_next_time(
    stand_in: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(stand_in)
    source.wanted.name_by_directory([(7, "/data/")])
    with monkeypatch.context() as patch:

        def fails() -> None:
            raise KernelError("expected room, got none", operation="MAP_DELETE_BATCH", target="quiet", errno=12)

        patch.setattr(source._pins._quiet, "clear", fails)
        with pytest.raises(KernelError):
            source.wanted.name_by_file()
    source.wanted.name_by_file()
    with Map.open(str(stand_in.pins / "maps" / "quiet")) as quiet:
        assert list(quiet.keys()) == []
    source.close()


def test_what_nobody_needs_one_by_one_is_counted(stand_in: Any) -> None:
    source = open_source(stand_in)
    for ident in (5, 6):
        stand_in.behaviour(ident)
    source.wanted.count_only([5, 6])
    source.wanted.call_for([6])
    for _ in range(100):
        stand_in.happen(5)
        stand_in.happen(6)
    (frame,) = source.drain().frames
    assert Counter(ids_of(frame)) == {5: 8, 6: 100}
    ((ident, count, first, last, *_),) = FOLDED.iter_unpack(frame.folded)
    assert (ident, count) == (5, 92)
    assert first < last
    assert frame.header.events == 200
    assert defined(frame) >= {(DefinitionKind.BEHAVIOUR, 5), (DefinitionKind.BEHAVIOUR, 6)}
    source.release()
    source.wanted.count_none()
    for _ in range(100):
        stand_in.happen(5)
    assert Counter(ids_of(source.drain().frames[0])) == {5: 100}
    source.close()


def test_counting_waits_for_what_is_not_defined_yet(stand_in: Any) -> None:
    source = open_source(stand_in)
    stand_in.behaviour(5)
    source.wanted.count_only([5])
    for _ in range(100):
        stand_in.happen(5)
    stand_in.happen(9)
    (frame,) = source.drain().frames
    assert Counter(ids_of(frame)) == {5: 100}
    source.close()
