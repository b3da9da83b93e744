# SPDX-License-Identifier: Apache-2.0
"""What a running process spends while calls are made at a pace: CPU, wake-ups, bytes written. And who else is on the tracepoint.

Neighbours: `bench_idle`, `bench_rates` (who ask), `live` (the process), `paced.c` (the calls).
"""

from __future__ import annotations

import ctypes
import os
import shutil
import struct
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Final, NamedTuple

from live import Live

from kernel import bpf
from schemas.errors import HauberkError
from schemas.kernel import OCCURRENCE, STRIDE

FILES: Final = 50
_LINK_NEXT, _LINK_FD, _INFO = 31, 30, 15
_RAW_TRACEPOINT: Final = 1
"""BPF_LINK_TYPE_RAW_TRACEPOINT."""
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


def foreign() -> int:
    """Programs that are attached to sys_exit now, before ours are: what they cost is in every figure. Asks the kernel for its links."""
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
            found += _tracepoint(fd) == b"sys_exit"
        finally:
            os.close(fd)
    return found


def _tracepoint(fd: int) -> bytes:
    name = ctypes.create_string_buffer(64)
    info = ctypes.create_string_buffer(64)
    struct.pack_into("=IIIIQI", info, 0, 0, 0, 0, 0, ctypes.addressof(name), len(name))
    attributes = bytearray(struct.pack("=IIQ", fd, len(info), ctypes.addressof(info)))
    bpf.check(_INFO, (ctypes.c_char * len(attributes)).from_buffer(attributes), "link")
    return name.value if struct.unpack_from("=I", info, 0)[0] == _RAW_TRACEPOINT else b""


def company() -> str:
    """A clause for `how`: who else is measured."""
    others = foreign()
    load = f"load average {os.getloadavg()[0]:.1f}"
    return f"{load}; {others} programs of others on sys_exit, which these figures pay for too" if others else load
