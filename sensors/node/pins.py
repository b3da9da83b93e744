# SPDX-License-Identifier: Apache-2.0
"""Everything under the pin directory that the agent holds open: one lock, two rings, the maps it writes and reads.

The lock is on the directory itself: a ring has one consumer, and two would each free what the other has not read. It ends with
the process, however it ends. Must never load or attach; `kernel.loading` did. Neighbours: `rings`, `losses`, `recovery`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Final

from kernel import bpf
from kernel.generation import renew
from kernel.maps import Map
from kernel.ring import Ring
from kernel.siphash import siphash13
from schemas.errors import KernelError
from schemas.kernel import IMAGE, QUIET_KEY, Config, DefinitionKind, Loss
from schemas.wakeup import CALLS, Sleep

TOLD: Final = struct.Struct("=16Q")
_ARRAY: Final = 2
_U64: Final = struct.Struct("=Q").pack
_U32: Final = struct.Struct("=I").pack
_RUNS: Final = struct.Struct(f"=3Q{IMAGE.offsets['script'] - 24}xQ").unpack_from
if [IMAGE.offsets[name] for name in ("process", "executable", "parent")] != [0, 8, 16]:
    raise ImportError("schemas.kernel moved the first members of IMAGE; sensors.node.pins must follow")
OBSERVED_SECONDS: Final = 60
"""How long the kernel goes on reporting to a reader that does not drain: an agent that is started again in time loses nothing."""
TGID: Final = (1 << 22) - 1
"""The low bits of a process id are its host tgid (schemas.kernel, IMAGE.process)."""


class Pins:
    """Opens all or nothing. KernelError when a pin is missing, of another build, or held by another agent.

    `key`: the two u64 of string ids. `load`: names this load of the programs; ids of another load mean nothing here.
    `told`: one value of 16 u64 that outlives the agent (`losses`), made here when it is not there.
    """

    def __init__(self, pin_dir: str) -> None:
        maps = os.path.join(pin_dir, "maps")
        with ExitStack() as stack:
            stack.callback(os.close, _lock(pin_dir))
            self.occurrences = stack.enter_context(Ring.open(f"{maps}/occurrences"))
            self.definitions = stack.enter_context(Ring.open(f"{maps}/definitions"))
            self.behaviours = stack.enter_context(Map.open(f"{maps}/behaviours"))
            self.strings = stack.enter_context(Map.open(f"{maps}/strings"))
            self.processes = stack.enter_context(Map.open(f"{maps}/processes"))
            self.budgets = stack.enter_context(Map.open(f"{maps}/budgets"))
            self._quiet = stack.enter_context(Map.open(f"{maps}/quiet"))
            self.losses = stack.enter_context(Map.open(f"{maps}/losses"))
            self.reported = stack.enter_context(_open_reported(f"{maps}/told"))
            self._excluded = stack.enter_context(Map.open(f"{maps}/excluded"))
            # Edge-triggered: a ring counts as readable as long as anything lies in it, and only a call is of interest.
            self.calls = select.epoll()
            stack.callback(self.calls.close)
            for ring in (self.occurrences, self.definitions):
                self.calls.register(ring.fd, select.EPOLLIN | select.EPOLLET)
            self._config = stack.enter_context(Map.open(f"{maps}/config"))
            self.key = (self._config.sum_u64(_U32(Config.HASH_K0)), self._config.sum_u64(_U32(Config.HASH_K1)))
            # Of an agent that was killed: another process may have its pid by now, and must not go unseen.
            self._excluded.clear()
            # What an agent before this one knew of policies and readers, this one does not.
            self._quiet.clear()
            self._pids: list[int] = []
            self._stack = stack.pop_all()
        self.load = f"{self.behaviours.info.id} {self.strings.info.id}"

    def exclude(self, pid: int) -> None:
        """Have the kernel neither report nor stop the process with host tgid `pid`, until `close`."""
        self._excluded.put(_U32(pid), _U32(1))
        renew(self._config)
        self._pids.append(pid)

    def observe(self) -> bool:
        """Have events reported for the next OBSERVED_SECONDS. Whoever drains calls it again before they are over; whether
        somebody did not, and the programs stopped."""
        stopped = self._config.sum_u64(_U32(Config.OBSERVED_UNTIL)) == 1
        until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + OBSERVED_SECONDS * 1_000_000_000
        self._config.put(_U32(Config.OBSERVED_UNTIL), _U64(until))
        return stopped

    def spare(self, step: int) -> None:
        """Have the budget of new names halved `step` times."""
        self._config.put(_U32(Config.SPARED), _U64(step))

    def sleep(self, how: Sleep) -> None:
        """What is to call this reader from now on. Ask the rings afterwards whether something came before."""
        self._config.put(_U32(Config.ASLEEP), _U64(how))

    def haste(self) -> bool:
        """Whether something that cannot wait came since `calm`."""
        return self._config.sum_u64(_U32(Config.HASTE)) != 0

    def calm(self) -> None:
        """From here on `haste` counts. Call it strictly before taking from the rings."""
        self._config.put(_U32(Config.HASTE), _U64(0))

    def in_hand(self, events: int) -> None:
        """Leave word that so many events are lost if this process is killed now."""
        self._config.put(_U32(Config.IN_HAND), _U64(events))

    def take_over(self) -> int:
        """Have what an agent before this one had in hand counted as lost: how many. Strictly in this order: a kill in between has
        it told twice, and never not at all."""
        events = self._config.sum_u64(_U32(Config.IN_HAND))
        if events:
            key = _U32(Loss.HANDED_OVER)
            counts = list(memoryview(self.losses.get(key) or b"").cast("Q"))
            counts[0] += events
            self.losses.put(key, struct.pack(f"={len(counts)}Q", *counts))
            self.in_hand(0)
        return events

    def call_for(self, idents: Iterable[int]) -> None:
        """Have the events of these BEHAVIOUR ids call a reader that dozes. Those that are not announced now do so anyway."""
        marked = False
        for ident in idents:
            try:
                self.behaviours.put(_U64(ident), _U64(CALLS), bpf.EXIST)
                marked = True
            except KernelError as error:
                if error.errno != errno.ENOENT:
                    raise
        if marked:
            renew(self._config)

    def name_by_directory(self, places: Iterable[tuple[int, str]]) -> None:
        """Have new files in these (cgroup id, directory with its trailing slash) told as the directory, once their container has
        its share of new names."""
        for cgroup, directory in places:
            body = directory.encode("utf-8", "surrogateescape")
            self._quiet.put(QUIET_KEY.struct.pack(cgroup, siphash13(self.key, body)), _U64(1))

    def name_by_file(self) -> None:
        """Take all of that back."""
        self._quiet.clear()

    def living(self) -> set[tuple[int, ...]]:
        """(process, executable, parent, script) of every image that runs, as the kernel's map says.

        The whole map, not a look under each id's tgid: a fork has the id of the image it runs, whose first process may be gone.
        """
        return {_RUNS(value) for _, value in self.processes.items()}

    def forget(self, kind: DefinitionKind, idents: list[int]) -> None:
        """Have these BEHAVIOUR or STRING ids announced again at their next use."""
        if idents:
            table = self.behaviours if kind is DefinitionKind.BEHAVIOUR else self.strings
            table.delete_many([_U64(ident) for ident in idents])
            renew(self._config)

    def forget_all(self) -> None:
        """The same for everything. Strings before behaviours: a text is looked at only for a behaviour that is not marked.
        Processes last: a task adopted again in between says its strings anew."""
        for table in (self.strings, self.behaviours, self.processes):
            table.clear()
        renew(self._config)

    def close(self) -> None:
        """Take exclusions and quiet directories back and close; pins, and what lies in the rings, stay. Twice is once."""
        if self._quiet.fd >= 0:
            # Programs that stay go on for a minute, and nobody takes it back when policies change.
            self._quiet.clear()
        for pid in self._pids:
            self._excluded.delete(_U32(pid))
        self._pids.clear()
        self._stack.close()


def require_free(pin_dir: str) -> None:
    """KernelError when an agent drains these pins: whoever is about to replace them asks first."""
    if os.path.isdir(pin_dir):
        os.close(_lock(pin_dir))


def _lock(pin_dir: str) -> int:
    try:
        fd = os.open(pin_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise bpf.refused("OBJ_GET", pin_dir, error.errno or 0) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        raise KernelError(
            f"expected to be the only agent on `{pin_dir}`, got another that drains it; stop it or name another pin directory",
            operation="flock",
            target=pin_dir,
            errno=error.errno or 0,
        ) from error
    return fd


def _open_reported(path: str) -> Map:
    if os.path.exists(path):
        return Map.open(path)
    fd = bpf.map_create(_ARRAY, 4, TOLD.size, 1, name="told")
    bpf.pin(fd, path)
    return Map(fd, path)
