# SPDX-License-Identifier: Apache-2.0
"""What a running process spends while calls are made at a pace: CPU, wake-ups, bytes written, in all and by topic. And who else is
on the tracepoint.

Neighbours: `bench_idle`, `bench_rates` (who ask), `run` (which warns), `live` (the process), `paced.c` (the calls).
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import sqlite3
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final, NamedTuple

from live import Live

from kernel import bpf
from kernel.btf import Btf
from schemas.errors import HauberkError
from schemas.kernel import OCCURRENCE, STRIDE

FILES: Final = 50
_LINK_NEXT, _LINK_FD, _INFO = 31, 30, 15
_TRACE_RAW_TP: Final = 23
"""BPF_TRACE_RAW_TP, the attach type of tp_btf."""
_LINKS: Final = 4096


class Spent(NamedTuple):
    """`cpu`: seconds of all threads. `opens`: made meanwhile, in `seconds`."""

    seconds: float
    cpu: float
    wakeups: int
    written: int
    opens: int

    @property
    def percent(self) -> float:
        """Of one core."""
        return 100 * self.cpu / self.seconds


def spent(live: Live, paced: str, rate: int, seconds: float) -> Spent:
    """What `live` spends in `seconds` of `rate` calls a second in its box; and what of it comes a little later, as it does all the time."""
    directory = live.state.parent / "paced"
    if not directory.exists():
        directory.mkdir()
        for number in range(FILES):
            (directory / str(number)).touch()
    pid, started = live.process.pid, time.monotonic()
    before, opens = _counters(pid), 0
    if rate:
        command = [paced, str(live.box.path / "cgroup.procs"), str(rate), str(seconds), str(directory), str(FILES)]
        opens = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    else:
        time.sleep(seconds)
    took = time.monotonic() - started
    cpu, wakeups, written = (b - a for a, b in zip(before, _counters(pid), strict=True))
    return Spent(took, cpu / 1e9, wakeups, written, opens)


def _counters(pid: int) -> tuple[int, int, int]:
    # (CPU ns, voluntary context switches, bytes sent to the block layer): of the threads there are, and of the process.
    cpu = wakeups = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            cpu += int((task / "schedstat").read_text().split()[0])
            status = (task / "status").read_text()
        except OSError:
            continue
        wakeups += int(next(line for line in status.splitlines() if line.startswith("voluntary")).split()[1])
    io = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return cpu, wakeups, int(io["write_bytes"])


def compiled(directory: Path) -> str:
    """`paced`, compiled. MissingDependency-like: empty when there is no compiler."""
    if shutil.which("cc") is None:
        return ""
    path = directory / "paced"
    subprocess.run(["cc", "-O2", "-o", str(path), str(Path(__file__).parent / "paced.c")], check=True)
    return str(path)


def plain_reader(events: int = 200_000) -> float:
    """CPU seconds per event of the least that a reader in this language can do: copy rows and count their ids."""
    row = bytes(STRIDE - OCCURRENCE.size)
    ring = b"".join(
        row + struct.pack("=Q", 1000 + number % FILES).ljust(OCCURRENCE.size, b"\0") for number in range(events)
    )
    best = float("inf")
    for _ in range(5):
        started = time.thread_time()
        Counter(memoryview(bytes(bytearray(ring))).cast("Q")[1 :: STRIDE // 8].tolist())
        best = min(best, time.thread_time() - started)
    return best / events


def ends(live: Live) -> dict[str, int]:
    """Topic -> offset of the next record of its log."""
    return {topic: _sum(live, topic, "SELECT coalesce(max(offset) + 1, 0) FROM record", max) for topic in _topics(live)}


def published(live: Live, since: dict[str, int]) -> dict[str, int]:
    """Topic -> bytes of the records of its log from offset `since` on. Of a compacted topic those that stand now."""
    sizes = (
        "SELECT coalesce(sum(length(key) + coalesce(length(value), 0) + coalesce(length(headers), 0)), 0) FROM record"
    )
    return {topic: _sum(live, topic, f"{sizes} WHERE offset >= {since.get(topic, 0)}", sum) for topic in _topics(live)}


def _topics(live: Live) -> list[str]:
    return sorted(path.name.rpartition(".v")[0] for path in (live.state / "bus" / "topics").iterdir())


def _sum(live: Live, topic: str, question: str, together: Callable[[list[int]], int]) -> int:
    answers = [0]
    for path in (live.state / "bus" / "topics").glob(f"{topic}.v*/*.db"):
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as reader:
            answers += reader.execute(question).fetchone()
    return together(answers)


def foreign() -> int:
    """Programs that are attached to the ends of system calls now, before ours are: what they cost is in every figure. Asks the kernel
    for its links; 0 for who may not ask."""
    found, ident = 0, 0
    for _ in range(_LINKS):
        attributes = bytearray(struct.pack("=III", ident, 0, 0))
        try:
            bpf.check(_LINK_NEXT, (ctypes.c_char * len(attributes)).from_buffer(attributes), "links")
            ident = struct.unpack_from("=I", attributes, 4)[0]
            fd = bpf.check(
                _LINK_FD, (ctypes.c_char * 12).from_buffer(bytearray(struct.pack("=III", ident, 0, 0))), "link"
            )
        except HauberkError:
            break
        try:
            found += _on_sys_exit(fd)
        finally:
            os.close(fd)
    return found


def _on_sys_exit(fd: int) -> bool:
    match struct.unpack_from("=I", _info(fd))[0]:
        case 1:
            return _named(fd, 16) == b"sys_exit"
        case 2:
            attach_type, _, btf_id = struct.unpack_from("=III", _info(fd), 16)
            return attach_type == _TRACE_RAW_TP and btf_id == _sys_exit_id()
        case 7:
            # One for each system call, as in bpftrace's `tracepoint:syscalls:sys_exit_openat`.
            return _named(fd, 24).startswith(b"sys_exit")
        case _:
            return False


def _named(fd: int, at: int) -> bytes:
    """The name that the kernel writes where the u64 at offset `at` of the link's information points."""
    name = ctypes.create_string_buffer(64)
    _info(fd, struct.pack("=QI", ctypes.addressof(name), len(name)), at)
    return name.value


def _info(fd: int, ask: bytes = b"", at: int = 0) -> bytes:
    info = ctypes.create_string_buffer(bytes(at) + ask, 80)
    attributes = bytearray(struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    bpf.check(_INFO, (ctypes.c_char * len(attributes)).from_buffer(attributes), "link")
    return info.raw


@functools.cache
def _sys_exit_id() -> int | None:
    return Btf.of_kernel().type_id("btf_trace_sys_exit")


def company() -> str:
    """A clause for `how`: how busy the machine is. Whose programs are on the tracepoint is said by `run` of every figure."""
    return f"load average {os.getloadavg()[0]:.1f}"
