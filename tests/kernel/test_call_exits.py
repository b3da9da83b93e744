# SPDX-License-Identifier: Apache-2.0
"""Calls seen at the kernel's functions: nothing runs for others, one run for each, the tracepoint as soon as one function cannot be had.

Runs in a guest with `make test-vm`, so it loads twice and no more; that events are the same is asked by every test of
this directory that takes `loaded` or `sensor`, once for each way.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kernel import bpf, call_exits
from kernel.catalogue import LISTENERS, PROBES
from kernel.entry_points import PREFIXES
from kernel.loading import LoadedPrograms, LoadSettings, existing, layout_hash, load, unload
from schemas.operations import Operation
from schemas.syscalls import number

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1800)]
SETTINGS = LoadSettings(
    new_visibility=("none",), occurrence_pages=256, definition_pages=256, timeout=900.0, calls_by="auto"
)
CALLS = 10_000
_NEXT_ID, _FD_BY_ID, _LINK_FD = 11, 13, 30
"""BPF_PROG_GET_NEXT_ID, BPF_PROG_GET_FD_BY_ID, BPF_LINK_GET_FD_BY_ID."""
libc = ctypes.CDLL(None, use_errno=True)


def syscalls(many: int, name: str, *arguments: Any) -> None:
    """`many` calls of `name`."""
    call, which = libc.syscall, ctypes.c_long(number(name) or 0)
    for _ in range(many):
        call(which, *arguments)


def creats(watching: Any, many: int = 3) -> int:
    """How many of `many` calls of creat(2) are told. No libc makes it any more, so nobody else is counted."""
    events = watching.run(lambda: syscalls(many, "creat", b"/no/such/file", 0))
    return sum(event.operation is Operation.OPEN and event.syscall == number("creat") for event in events)


def pinned_links(pin_dir: str) -> dict[str, int]:
    """Pin of a link -> id of its program."""
    found = {}
    for name in os.listdir(f"{pin_dir}/links"):
        link = bpf.pinned(f"{pin_dir}/links/{name}")
        # struct bpf_link_info: type, id, prog_id
        found[name] = struct.unpack_from("=III", bpf.object_info(link, 64, name))[2]
        os.close(link)
    return found


class Runs:
    """How often the programs that are attached by the pins of a load have run, as the kernel counts it."""

    def __init__(self, loaded: LoadedPrograms) -> None:
        self._stack = [bpf.enable_stats()]
        self._programs = {}
        for name, ident in pinned_links(loaded.pin_dir).items():
            self._programs[name] = bpf.check(_FD_BY_ID, struct.pack("=III", ident, 0, 0), name)
        self._before = self._now()

    def _now(self) -> dict[str, int]:
        return {name: bpf.program_time(fd, name)[1] for name, fd in self._programs.items()}

    def take(self) -> dict[str, int]:
        """Since the last look, of those that ran."""
        now = self._now()
        found = {name: now[name] - self._before[name] for name in now if now[name] != self._before[name]}
        self._before = now
        return found

    def close(self) -> None:
        """Give everything back."""
        for fd in (*self._programs.values(), *self._stack):
            os.close(fd)


def runs_of(loaded: LoadedPrograms, act: Callable[[], object]) -> dict[str, int]:
    """Program -> its runs while `act` did its work in this process."""
    runs = Runs(loaded)
    try:
        act()
        return runs.take()
    finally:
        runs.close()


@pytest.fixture(scope="module")
def needed() -> set[str]:
    """The functions; skips where calls cannot be seen at them."""
    found, why = call_exits.functions()
    if why:
        pytest.skip(f"calls cannot be seen at functions: {why}")
    return set(found)


class Swapped:
    """The programs as `auto` loads them, in the place of those at the tracepoint. `before`: what ran of these for unwatched calls."""

    def __init__(self, pins: str) -> None:
        by_tracepoint = load(msgspec.structs.replace(SETTINGS, calls_by="tracepoint"), pins)
        assert by_tracepoint.functions == 0
        assert "calls_by" in by_tracepoint.tracepoint
        self.before = runs_of(by_tracepoint, lambda: syscalls(CALLS, "getppid"))
        self.links = set(os.listdir(f"{pins}/links"))
        self.loaded = load(SETTINGS, pins)


@pytest.fixture(scope="module")
def swapped(bpffs: str, needed: set[str]) -> Iterator[Swapped]:
    try:
        yield Swapped(f"{bpffs}/swapped")
    finally:
        unload(f"{bpffs}/swapped")


def test_auto_takes_the_place_of_the_tracepoint(swapped: Swapped, needed: set[str]) -> None:
    loaded = swapped.loaded
    assert (loaded.reused, loaded.tracepoint, loaded.refused) == (False, "", {})
    assert "on_sys_exit" in swapped.links
    found = set(os.listdir(f"{loaded.pin_dir}/links"))
    functions = {name for name in found if name.startswith(PREFIXES)}
    assert functions == needed
    assert len(functions) == loaded.functions
    assert found - functions == {one.name for one in (*PROBES, *LISTENERS)} - {"on_sys_exit"}
    assert not os.path.exists(f"{loaded.pin_dir}/programs/on_sys_exit")
    again = load(SETTINGS, loaded.pin_dir)
    assert (again.reused, again.functions) == (True, loaded.functions)


def test_a_call_that_nobody_watches_runs_nothing(swapped: Swapped) -> None:
    assert swapped.before["on_sys_exit"] >= CALLS
    ran = runs_of(swapped.loaded, lambda: syscalls(CALLS, "getppid"))
    # By which this test asks how often each has run.
    ran.pop("__x64_sys_bpf", None)
    # What others of this machine do meanwhile.
    assert sum(ran.values()) < CALLS / 100, ran


def test_a_watched_call_runs_one_program_once(swapped: Swapped, sensor_of: Callable[..., Any]) -> None:
    watching = sensor_of(swapped.loaded)
    runs = Runs(swapped.loaded)
    try:
        told = creats(watching, 100)
        ran = runs.take()
    finally:
        runs.close()
    assert (ran["__x64_sys_creat"], told) == (100, 100)


def test_functions_that_are_disarmed_do_nothing_at_once(swapped: Swapped, sensor_of: Callable[..., Any]) -> None:
    """As `unload` does first: to detach them takes the kernel seconds."""
    watching = sensor_of(swapped.loaded)
    assert creats(watching) == 3
    call_exits.disarm(swapped.loaded.pin_dir)
    try:
        assert creats(watching) == 0
    finally:
        with swapped.loaded.map(call_exits.ARMED) as armed:
            armed.put(bytes(4), struct.pack("=Q", 1))
    assert creats(watching) == 3


@pytest.mark.parametrize("what", ["attach", "load"])
def test_one_function_that_cannot_be_had_leaves_all_to_the_tracepoint(
    bpffs: str, needed: set[str], sensor_of: Callable[..., Any], tmp_path: Path, what: str
) -> None:
    pins = f"{bpffs}/fallen-{what}"
    prelude = f"""
import itertools, sys
from kernel import bpf
real = bpf.{"target_attach" if what == "attach" else "program_load"}
numbers = itertools.count(1)  # programs are loaded by several threads
def refusing(*arguments, **named):
    if {"True" if what == "attach" else 'named.get("target", 0)'} and next(numbers) == 150:
        raise bpf.refused("PROG_LOAD", "__x64_sys_last", 16)
    return real(*arguments, **named)
bpf.{"target_attach" if what == "attach" else "program_load"} = refusing
from kernel import loader_child
sys.exit(loader_child.main())
"""
    asked = SETTINGS.request() | {
        "pin_dir": pins,
        "layout": layout_hash(SETTINGS),
        "directory": str(tmp_path),
        "cache": "/var/cache/hauberk/programs",
    }
    try:
        done = subprocess.run(
            [sys.executable, "-c", prelude], input=json.dumps(asked), capture_output=True, text=True, check=True
        )
        answer = json.loads(done.stdout.splitlines()[-1])["done"]
        assert (answer["functions"], answer["fell_back"], answer["refused"]) == (0, what == "attach", {})
        assert "__x64_sys_last" in answer["tracepoint"]
        assert set(os.listdir(f"{pins}/links")) == {one.name for one in (*PROBES, *LISTENERS)}
        found = existing(pins, layout_hash(SETTINGS))
        assert found is not None
        assert creats(sensor_of(found)) == 3
    finally:
        unload(pins)
