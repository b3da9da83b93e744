# SPDX-License-Identifier: Apache-2.0
"""Loading, reuse, replacement and removal of pins, and the sentences said when it cannot be done."""

from __future__ import annotations

import errno
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from waiting import eventually

from kernel import bpf, loading
from kernel.catalogue import GUARDS, LISTENERS, PROBES, TABLES
from kernel.compiled import store, stored
from kernel.loader import Halt
from kernel.loading import LoadSettings, existing, is_bpffs, layout_hash, load, unload
from kernel.maps import Map
from schemas.errors import KernelError, MissingDependency, PermissionMissing, Unavailable
from schemas.kernel import Config
from schemas.operations import Operation

pytestmark = pytest.mark.kernel
SMALL = LoadSettings(
    new_visibility=("none",), occurrence_pages=4, definition_pages=4, rules=64, net_rules=64, timeout=900.0, calls_by="tracepoint"
)  # fmt: skip


LISTING = str(Path(__file__).parents[1] / "deploy" / "pinned.py")
"""What `deploy/docker/try.sh` asks about the pins of a stack."""


def left(listed: str) -> int:
    """Exit code: 1 while the kernel has any of what was listed; it lets go of programs a little after their pins."""
    return subprocess.run(
        [sys.executable, LISTING, "--left"], input=listed, text=True, stdout=subprocess.DEVNULL, check=False
    ).returncode


def links_alive(pin_dir: str) -> list[str]:
    """Probes whose pinned link can be opened."""
    alive = []
    for probe in PROBES:
        fd = bpf.pinned(f"{pin_dir}/links/{probe.name}")
        alive.append(probe.name)
        os.close(fd)
    return alive


def test_pins_outlive_the_loader_and_are_reused(bpffs: str) -> None:
    pins = f"{bpffs}/reuse"
    steps: list[tuple[str, bool]] = []
    first = load(SMALL, pins, progress=lambda step, _: steps.append((step, os.path.exists(f"{pins}/maps"))))
    try:
        assert [step for step, _ in steps] in (
            ["headers", "import", "compile", "verify", "attach"],
            ["read", "verify", "attach"],
        )
        assert not steps[0][1], "told while it happens: nothing is installed before anything is compiled"
        assert not first.reused
        assert sorted(os.listdir(f"{pins}/maps")) == sorted(table.name for table in TABLES)
        assert sorted(os.listdir(f"{pins}/programs")) == sorted(each.name for each in (*PROBES, *GUARDS, *LISTENERS))
        assert links_alive(pins) == [probe.name for probe in PROBES]
        second = load(
            LoadSettings(**{n: getattr(SMALL, n) for n in SMALL.__struct_fields__} | {"host_visibility": ("file",)}),
            pins,
        )
        assert (second.reused, second.key) == (True, first.key)
        with second.map("config") as config:
            assert config.sum_u64(struct.pack("=I", Config.HOST_VISIBILITY)) == 4
        assert existing(pins, layout_hash(SMALL)) is not None
        assert existing(pins, 1) is None
        listed = subprocess.run([sys.executable, LISTING, pins], capture_output=True, text=True, check=True).stdout
        assert len(listed.splitlines()) == sum(len(os.listdir(f"{pins}/{room}")) for room in ("programs", "links"))
        assert left(listed) == 1
    finally:
        unload(pins)
    assert not os.path.exists(pins)
    assert existing(pins) is None
    unload(pins)
    eventually(lambda: left(listed) == 0)


def test_pins_of_another_layout_are_replaced(bpffs: str) -> None:
    pins = f"{bpffs}/replace"
    try:
        first = load(SMALL, pins)
        other = LoadSettings(**{n: getattr(SMALL, n) for n in SMALL.__struct_fields__} | {"rules": 128})
        second = load(other, pins)
        assert not second.reused
        assert second.key != first.key
        with second.map("rules") as rules:
            assert rules.info.max_entries == 128
    finally:
        unload(pins)


def test_a_load_that_fails_leaves_what_is_in_force(bpffs: str) -> None:
    pins = f"{bpffs}/kept"
    other = msgspec.structs.replace(SMALL, rules=128)
    seen: list[list[str]] = []
    first = load(SMALL, pins)
    try:
        with pytest.raises(Unavailable):
            load(msgspec.structs.replace(other, timeout=0.2), pins)
        assert existing(pins, layout_hash(SMALL)) is not None
        assert links_alive(pins) == [probe.name for probe in PROBES]
        assert not os.path.exists(f"{pins}-new")
        second = load(other, pins, progress=lambda step, _: seen.append(links_alive(pins)), cache="")
        assert len(seen) == 5, "the old ones until the new ones are attached"
        assert second.key != first.key
        assert existing(pins, layout_hash(other)) is not None
        assert not os.path.exists(f"{pins}-new")
    finally:
        unload(pins)


def test_a_load_that_was_killed_while_it_replaced_others_is_finished_by_the_next(bpffs: str) -> None:
    pins, beside = f"{bpffs}/killed", f"{bpffs}/killed-new"
    other = msgspec.structs.replace(SMALL, rules=128)
    try:
        first = load(SMALL, pins)
        os.rename(pins, beside)
        os.makedirs(f"{pins}/maps")
        seen: list[list[str]] = []
        second = load(other, pins, progress=lambda step, _: seen.append(links_alive(pins)))
        assert seen, "what was left is in force until the new ones are attached"
        assert second.key != first.key
        os.rename(pins, beside)
        third = load(other, pins)
        assert (third.reused, third.key) == (True, second.key)
        assert not os.path.exists(beside)
        os.rename(pins, f"{bpffs}/aside")
        fourth = load(SMALL, pins)
        os.rename(f"{bpffs}/aside", beside)
        assert load(SMALL, pins).key == fourth.key
        assert not os.path.exists(beside), "two sets of programs would report each event twice"
    finally:
        for place in (pins, beside, f"{bpffs}/aside"):
            unload(place)


@pytest.mark.parametrize("entries", [len(Config), Config.IN_HAND])
def test_what_a_killed_agent_had_in_hand_is_told_by_the_programs_after_it(bpffs: str, entries: int) -> None:
    """An upgrade after a kill: the events were told by nobody. The version before may have no such word."""
    key = struct.pack("=I", Config.IN_HAND)
    places = [f"{bpffs}/{name}" for name in ("hand-old", "hand-new")]
    try:
        for place, many in zip(places, (entries, len(Config)), strict=True):
            os.makedirs(f"{place}/maps")
            fd = bpf.map_create(2, 4, 8, many, name="config")
            bpf.pin(fd, f"{place}/maps/config")
            os.close(fd)
        if entries > Config.IN_HAND:
            with Map.open(f"{places[0]}/maps/config") as old:
                old.put(key, struct.pack("=Q", 41))
        loading._hand_on(*places)
        with Map.open(f"{places[1]}/maps/config") as new:
            assert new.sum_u64(key) == (41 if entries > Config.IN_HAND else 0)
    finally:
        for place in places:
            unload(place)
    loading._hand_on(*places)


def test_programs_that_cannot_take_the_place_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def attached(request: dict[str, Any], *_: Any) -> dict[str, Any]:
        Path(request["pin_dir"], "links").mkdir(parents=True)
        return {"refused": {}}

    def busy(old: str, new: str) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(loading, "_require_bpffs", lambda directory: None)
    monkeypatch.setattr(loading, "run_child", attached)
    monkeypatch.setattr(os, "rename", busy)
    with pytest.raises(KernelError, match="remove what else lies there"):
        load(SMALL, str(tmp_path / "pins"))
    assert (tmp_path / "pins-new" / "links").exists(), "the rules are on these alone"


def test_the_parent_stays_small(bpffs: str) -> None:
    code = (
        "import sys\nfrom kernel.loading import LoadSettings, load, unload\n"
        f"load(LoadSettings(new_visibility=('none',), occurrence_pages=4, definition_pages=4), {bpffs + '/small-parent'!r})\n"
        f"unload({bpffs + '/small-parent'!r})\n"
        "assert 'bcc' not in sys.modules\n"
        "print(next(l.split()[1] for l in open('/proc/self/status') if l.startswith('VmHWM')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 45_000, "kB at the peak"


def test_a_place_that_is_no_bpffs_is_refused(tmp_path: Path) -> None:
    assert not is_bpffs(str(tmp_path))
    with pytest.raises(KernelError, match="to lie in a bpffs"):
        load(SMALL, str(tmp_path / "pins"))


def test_a_loader_that_takes_too_long_is_ended(bpffs: str) -> None:
    settings = LoadSettings(**{n: getattr(SMALL, n) for n in SMALL.__struct_fields__} | {"timeout": 0.05})
    with pytest.raises(Unavailable, match=r"did not finish in 0\.05 s"):
        load(settings, f"{bpffs}/late")
    assert not os.path.exists(f"{bpffs}/late")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_stop_ends_a_load_at_once_and_leaves_nothing(bpffs: str, when: str) -> None:
    halt, steps = Halt(), []

    def stop(step: str, _: float) -> None:
        steps.append(step)
        halt.now()

    if when == "before":
        halt.now()
    with pytest.raises(Unavailable, match="a stop was asked for"):
        load(SMALL, f"{bpffs}/halted", progress=stop, cache="", halt=halt)
    assert "compile" not in steps
    assert [name for name in os.listdir(bpffs) if name.startswith("halted")] == []


def test_who_cannot_bear_the_news_leaves_no_loader_and_no_pins(bpffs: str) -> None:
    def tired(step: str, seconds: float) -> None:
        raise RuntimeError(step)

    with pytest.raises(RuntimeError, match="headers"):
        load(SMALL, f"{bpffs}/tired", progress=tired, cache="")
    assert not os.path.exists(f"{bpffs}/tired")


def test_a_program_that_does_not_compile_is_told(bpffs: str) -> None:
    settings = LoadSettings(**{n: getattr(SMALL, n) for n in SMALL.__struct_fields__} | {"strings": 0})
    with pytest.raises(KernelError):
        load(settings, f"{bpffs}/broken")
    assert not os.path.exists(f"{bpffs}/broken")


def child(request: dict[str, Any], prelude: str) -> dict[str, Any]:
    """Last line of a loader child that ran `prelude` first."""
    code = f"{prelude}\nimport sys\nfrom kernel import loader_child\nsys.exit(loader_child.main())"
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(request), capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def request(pins: str, directory: Path) -> dict[str, Any]:
    """What the parent would ask for; headers are put into `directory`."""
    asked = SMALL.request()
    return asked | {"pin_dir": pins, "layout": 1, "directory": str(directory)}


def test_a_loader_that_is_ended_leaves_no_headers(bpffs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    steps: list[str] = []
    settings = LoadSettings(**{n: getattr(SMALL, n) for n in SMALL.__struct_fields__} | {"timeout": 1.0})
    with pytest.raises(Unavailable, match="did not finish"):
        load(settings, f"{bpffs}/ended", progress=lambda step, seconds: steps.append(step), cache="")
    assert os.listdir(tmp_path) == []
    assert not os.path.exists(f"{bpffs}/ended")


def test_the_wrong_bcc_is_named(bpffs: str, tmp_path: Path) -> None:
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc" / "__init__.py").write_text("lattice = 1\n")
    answer = child(request(f"{bpffs}/wrong", tmp_path), f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert answer["kind"] == MissingDependency.__name__
    assert "unrelated lattice library" in answer["error"]


def test_a_missing_bcc_is_named(bpffs: str, tmp_path: Path) -> None:
    prelude = "import sys; sys.modules['bcc'] = None"
    answer = child(request(f"{bpffs}/missing", tmp_path), prelude)
    assert "python3-bpfcc" in answer["error"]


def test_without_privileges_the_sentence_says_so(bpffs: str, tmp_path: Path) -> None:
    prelude = "import os, kernel.loader_child; os.setuid(65534)"
    answer = child(request(f"{bpffs}/nobody", tmp_path), prelude)
    assert answer["kind"] == PermissionMissing.__name__
    assert "run as root" in answer["error"]


def test_the_layout_hash_knows_sizes_but_not_visibility() -> None:
    base = layout_hash(LoadSettings())
    assert base == layout_hash(LoadSettings(host_visibility=("process", "file"), timeout=1.0))
    assert base != layout_hash(LoadSettings(rules=5))
    assert loading.LoadSettings.__struct_config__.forbid_unknown_fields


@pytest.mark.parametrize("absent", ["typed_loads", "casts"])
def test_kernels_that_read_otherwise_see_the_same(
    bpffs: str, cgroup: Path, sensor: Any, pick: Any, tmp_path: Path, absent: str
) -> None:
    pins = f"{bpffs}/without-{absent}"
    asked = request(pins, tmp_path) | {"occurrence_pages": 64, "definition_pages": 64, absent: False}
    command = [sys.executable, "-P", "-m", "kernel.loader_child"]
    done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["done"]["refused"] == {}
    try:
        found = existing(pins)
        assert found is not None
        plain = type(sensor)(found, cgroup)
        true = os.path.realpath("/bin/true")
        event = pick(plain.run([true]), Operation.EXEC)
        assert (event.resource, event.ppid, event.uid) == (true, os.getpid(), os.getuid())
        opened = pick(plain.run(lambda: os.open("/etc/hosts", os.O_RDONLY)), Operation.OPEN, resource="/etc/hosts")
        assert opened.executable == os.path.realpath("/proc/self/exe")
        for length in (1, 7, 8, 9, 31, 32, 39, 40, 41, 255):
            path = tmp_path / ("x" * 16) / ("n" * length)
            path.parent.mkdir(exist_ok=True)
            pick(plain.run(path.touch), Operation.CREATE, resource=str(path))
        plain.close()
    finally:
        unload(pins)


def test_the_second_load_compiles_nothing_and_has_a_key_of_its_own(bpffs: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "programs")
    keys = []
    for compiled in (True, False):
        done = load(SMALL, f"{bpffs}/twice", cache=cache)
        try:
            assert (done.compiled, done.not_kept, done.refused) == (compiled, "", {})
            assert links_alive(done.pin_dir) == [probe.name for probe in PROBES]
            keys.append(done.key)
        finally:
            unload(done.pin_dir)
    assert keys[0] != keys[1]
    # What the kernel no longer takes is compiled again, and kept.
    name = next(Path(cache).iterdir()).name
    made = stored(cache, name)
    assert made is not None
    nothing = dict.fromkeys(made.programs, struct.pack("=BBhi", 0x95, 0, 0, 0))
    store(cache, name, msgspec.structs.replace(made, programs=nothing))
    try:
        assert load(SMALL, f"{bpffs}/twice", cache=cache).compiled
        assert stored(cache, name) == made
    finally:
        unload(f"{bpffs}/twice")


def test_a_load_goes_on_where_nothing_can_be_kept(bpffs: str) -> None:
    try:
        done = load(SMALL, f"{bpffs}/unkept", cache="/proc/nothing/programs")
        assert done.compiled
        assert "/proc/nothing/programs` cannot be written" in done.not_kept
    finally:
        unload(f"{bpffs}/unkept")
