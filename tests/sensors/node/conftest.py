# SPDX-License-Identifier: Apache-2.0
"""A stand-in for the kernel programs that uses the kernel's own rings and maps: rows go in through a tiny BPF program."""

from __future__ import annotations

import ctypes
import itertools
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kernel import bpf
from kernel.maps import Map
from schemas.errors import KernelError
from schemas.frame import definition
from schemas.kernel import BEHAVIOUR, BUDGET, IMAGE, OCCURRENCE, PROCESS, QUIET_KEY, DefinitionKind


def run_program(program: int) -> int:
    """The 32-bit result of one run of a program without context (BPF_PROG_TEST_RUN)."""
    attributes = bytearray(80)
    struct.pack_into("=I", attributes, 0, program)
    bpf.check(10, (ctypes.c_char * 80).from_buffer(attributes), "program")
    return int(struct.unpack_from("=I", attributes, 4)[0])


def bpf_missing() -> str:
    """Why no BPF map can be made here; empty when one can."""
    try:
        os.close(bpf.map_create(2, 4, 8, 1))
    except KernelError as error:
        return str(error)
    return ""


@pytest.fixture(scope="session")
def bpffs(bpffs_home: Callable[[str], str]) -> Iterator[Path]:
    """A bpffs of our own, unmounted at the end."""
    if why := bpf_missing():
        pytest.skip(f"no BPF here: {why}")
    path = bpffs_home("rings")
    subprocess.run(["mount", "-t", "bpf", "bpf", path], check=True)
    try:
        yield Path(path)
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def emitter(ring: int, source: int, flags: int = 1) -> int:
    """A program that writes what lies in the array `source` (u64 size, bytes) into `ring`, without waking anybody unless
    `flags` is BPF_RB_FORCE_WAKEUP."""

    def ins(code: int, regs: int = 0, off: int = 0, imm: int = 0) -> bytes:
        return struct.pack("=BBhi", code, regs, off, imm)

    code = b"".join(
        [
            ins(0x18, 0x26, 0, source), ins(0x00),  # r6 = &source[0]
            ins(0x79, 0x63, 0),  # r3 = *(u64 *)(r6 + 0)
            ins(0x57, 0x03, 0, 0x1FFF),  # r3 &= 0x1fff
            ins(0x18, 0x11, 0, ring), ins(0x00),  # r1 = map
            ins(0xBF, 0x62),  # r2 = r6
            ins(0x07, 0x02, 0, 8),  # r2 += 8
            ins(0xB7, 0x04, 0, flags),  # r4: 1 BPF_RB_NO_WAKEUP, 2 BPF_RB_FORCE_WAKEUP
            ins(0x85, 0, 0, 130),  # call bpf_ringbuf_output
            ins(0x95),  # exit, r0 = the helper's answer
        ]
    )  # fmt: skip
    return bpf.program_load(31, code, name="emit", flags=1 << 4)


def taker_back(ring: int, size: int) -> int:
    """A program that reserves `size` bytes in `ring` and discards them."""

    def ins(code: int, regs: int = 0, off: int = 0, imm: int = 0) -> bytes:
        return struct.pack("=BBhi", code, regs, off, imm)

    code = b"".join(
        [
            ins(0x18, 0x11, 0, ring), ins(0x00),  # r1 = map
            ins(0xB7, 0x02, 0, size),  # r2: bytes
            ins(0xB7, 0x03),  # r3: no flags
            ins(0x85, 0, 0, 131),  # call bpf_ringbuf_reserve
            ins(0x15, 0x00, 4),  # a full ring
            ins(0xBF, 0x01),  # r1 = r0
            ins(0xB7, 0x02, 0, 1),  # r2: BPF_RB_NO_WAKEUP
            ins(0x85, 0, 0, 133),  # call bpf_ringbuf_discard
            ins(0x05, 0, 2),  # to r0 = 0
            ins(0xB7, 0x00, 0, 1),  # r0 = 1
            ins(0x95),
            ins(0xB7, 0x00),  # r0 = 0
            ins(0x95),
        ]
    )  # fmt: skip
    return bpf.program_load(31, code, name="take_back", flags=1 << 4)


class StandIn:
    """Pins like the loader's, fed by hand. `say` announces, `happen` writes rows; both answer False when the ring is full."""

    def __init__(self, directory: Path, *, pages: int = 16) -> None:
        self.pins = directory
        maps = directory / "maps"
        maps.mkdir(parents=True)
        self.fds: dict[str, int] = {
            "occurrences": bpf.map_create(27, 0, 0, pages * 4096, name="occurrences"),
            "definitions": bpf.map_create(27, 0, 0, 64 * 4096, name="definitions"),
            "behaviours": bpf.map_create(9, 8, 8, 65536, name="behaviours"),
            "strings": bpf.map_create(9, 8, 8, 65536, name="strings"),
            "processes": bpf.map_create(1, 4, IMAGE.size, 1024, name="processes"),
            "budgets": bpf.map_create(9, 8, BUDGET.size, 1024, name="budgets"),
            "quiet": bpf.map_create(9, QUIET_KEY.size, 8, 1024, name="quiet"),
            "losses": bpf.map_create(6, 4, 8, 16, name="losses"),
            "config": bpf.map_create(2, 4, 8, 16, name="config"),
            "excluded": bpf.map_create(1, 4, 4, 1024, name="excluded"),
        }
        for name, fd in self.fds.items():
            bpf.pin(fd, str(maps / name))
        self._source = Map(bpf.map_create(2, 4, 8200, 1, name="source"))
        self._emit = {name: emitter(self.fds[name], self._source.fd) for name in ("occurrences", "definitions")}
        self.behaviours = Map(self.fds["behaviours"])
        self.strings = Map(self.fds["strings"])
        self.images = Map(self.fds["processes"])
        self._losses = Map(self.fds["losses"])
        self._sequence = itertools.count()

    def _write(self, ring: str, data: bytes) -> bool:
        self._source.put(bytes(4), struct.pack("=Q", len(data)) + data.ljust(8192, b"\0"))
        return run_program(self._emit[ring]) == 0

    def lose(self, what: int, count: int = 1) -> None:
        """Count losses as a program would."""
        key = struct.pack("=I", what)
        values = list(memoryview(self._losses.get(key) or b"").cast("Q"))
        values[0] += count
        self._losses.put(key, struct.pack(f"={len(values)}Q", *values))

    def say(self, kind: int, ident: int, body: bytes) -> bool:
        """One definition, marked as announced in the kernel's map as the programs do."""
        if kind in (DefinitionKind.BEHAVIOUR, DefinitionKind.STRING):
            table = self.behaviours if kind == DefinitionKind.BEHAVIOUR else self.strings
            table.put(struct.pack("=Q", ident), struct.pack("=Q", 1))
        return self._write("definitions", definition(kind, ident, body))

    def string(self, ident: int, text: str) -> bool:
        return self.say(DefinitionKind.STRING, ident, text.encode())

    def behaviour(self, ident: int, *, cgroup: int = 7, executable: int = 0, resource: int = 0) -> bool:
        return self.say(DefinitionKind.BEHAVIOUR, ident, behaviour(cgroup, executable, resource))

    def process(self, ident: int, executable: int = 0) -> bool:
        body = struct.pack("=QQ", ident, executable) + bytes(PROCESS.size - 16)
        return self.say(DefinitionKind.PROCESS, ident, body)

    def happen(self, ident: int, *, process: int = 0, pid: int = 1) -> bool:
        """One occurrence; counted as lost when the ring is full."""
        row = occurrence(ident, next(self._sequence), process, pid)
        if self._write("occurrences", row):
            return True
        self.lose(0)
        return False

    def call(self, ident: int) -> None:
        """One occurrence that calls the reader, as the programs do when a ring is half full."""
        row = occurrence(ident, next(self._sequence), 0, 1)
        self._source.put(bytes(4), struct.pack("=Q", len(row)) + row.ljust(8192, b"\0"))
        program = emitter(self.fds["occurrences"], self._source.fd, 2)
        try:
            assert run_program(program) == 0
        finally:
            os.close(program)

    def take_back(self, ring: str = "occurrences", size: int = OCCURRENCE.size) -> None:
        """A record that is reserved and discarded: what is left of a program that called the reader, or of no answer of a name server."""
        program = taker_back(self.fds[ring], size)
        try:
            assert run_program(program) == 0
        finally:
            os.close(program)

    def image(self, pid: int, process: int, executable: int) -> None:
        """An entry of the process map."""
        self.images.put(struct.pack("=I", pid), IMAGE.struct.pack(process, executable, 0, 0, 5, pid, 1, pid, *[0] * 7))

    def announced(self, ident: int) -> bool:
        """Whether the kernel thinks the behaviour is known."""
        return self.behaviours.get(struct.pack("=Q", ident)) is not None

    def close(self) -> None:
        self._source.close()
        for fd in (*self.fds.values(), *self._emit.values()):
            os.close(fd)
        for pinned in (self.pins / "maps").iterdir():
            pinned.unlink()


def behaviour(cgroup: int, executable: int, resource: int) -> bytes:
    """The body of a behaviour definition with these references."""
    return struct.pack("=5Q", cgroup, executable, 0, resource, 0) + bytes(BEHAVIOUR.size - 40)


def occurrence(ident: int, sequence: int, process: int = 0, pid: int = 1) -> bytes:
    """A row without its ring header."""
    return OCCURRENCE.struct.pack(ident, 1_000_000 + sequence, sequence, process, pid, 0, pid, 0, 0, 0)


@pytest.fixture
def stand_in(bpffs: Path, request: pytest.FixtureRequest) -> Iterator[StandIn]:
    """A fresh set of pins; `@pytest.mark.parametrize("stand_in", [pages], indirect=True)` sets the ring's size."""
    pages = getattr(request, "param", 16)
    directory = bpffs / f"t{time.monotonic_ns()}"
    directory.mkdir()
    stand = StandIn(directory, pages=pages)
    yield stand
    stand.close()
