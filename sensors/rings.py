# SPDX-License-Identifier: Apache-2.0
"""The live source: the two rings and the maps that the loader has pinned, drained into frames.

Occurrences are taken first and definitions second, so every id in a chunk is defined, but for two races: a CPU may use
an id another has not finished announcing, and a full definitions ring. Rows of such ids wait a moment (`PATIENCE`) for
their definition; after that they go out counted as undefined, and the kernel is told to announce those ids again.
Space is given back to the kernel only when the frames are safe (`release`). Must never wait and never load anything.
Neighbours: `kernel.ring`, `definitions`, `frames`, `definition_log`, `agent`.
"""

from __future__ import annotations

import os
import platform
import struct
import time
from collections.abc import Callable
from itertools import compress
from typing import Annotated, Final, Literal

import msgspec

from kernel import bpf
from kernel.maps import Map
from kernel.ring import TAKE_BYTES, Ring
from schemas.errors import KernelError
from schemas.frame import Frame, FrameHeader
from schemas.kernel import STRIDE, Config, DefinitionKind, Loss
from sensors.definition_log import DefinitionLog
from sensors.definitions import Closure, Definitions
from sensors.frames import ID, PID, PPID, WORDS, Fold, FrameSettings, columns, frames
from sensors.missing import AT_MOST, Elsewhere
from sensors.source import Batch

PATIENCE: Final = 0.05
"""Seconds rows wait for a late definition: five ticks of the drain timer, far above any preemption of a program."""
_PARKED_BYTES: Final = 1 << 20
_LOSSES_EVERY: Final = 0.1
_CGROUPS_SEEN: Final = 1 << 16
_MAPS: Final = ("behaviours", "strings", "processes", "losses", "excluded")
_TOLD: Final = struct.Struct("=16Q")
_U64: Final = struct.Struct("=Q").pack
_U32: Final = struct.Struct("=I").pack

OnCgroup = Callable[[int, str | None, bool], None]
"""(cgroup id, path or None when it was only seen in use, whether it is gone). Called inside `drain`; must not wait."""


class RingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the rings are drained."""

    frames: Annotated[FrameSettings, msgspec.Meta(description="How chunks become frames.", examples=[{}])] = (
        FrameSettings()
    )
    definitions_bytes: Annotated[
        int,
        msgspec.Meta(description="Memory for definitions, in bytes.", examples=[4194304], ge=65536),
    ] = 4 << 20
    drain_bytes: Annotated[
        int,
        msgspec.Meta(description="Rows taken per drain without folding, in bytes.", examples=[1048576], ge=65536),
    ] = 1 << 20
    fold: Annotated[
        Literal["never", "pressure", "always"],
        msgspec.Meta(description="When repeats are counted instead of sent one by one.", examples=["pressure"]),
    ] = "pressure"
    pressure: Annotated[
        float,
        msgspec.Meta(description="Share of the ring that is full from which `pressure` folds, 0..1.", examples=[0.5]),
    ] = 0.5
    state_dir: Annotated[
        str,
        msgspec.Meta(
            description="Directory where definitions survive a kill of the agent; empty: they do not.",
            examples=["/var/lib/hauberk/sensor"],
        ),
    ] = ""


class RingSource:
    """A `Source` over pins. KernelError when a pin is missing or of another build; SettingsError for `state_dir`.

    Plain counters, read by the agent's stats: `events rows folded undefined lost parked`. `run` names this agent's run.
    """

    finished = False

    def __init__(
        self, pin_dir: str, node: str, run: str, settings: RingSettings, on_cgroup: OnCgroup | None = None
    ) -> None:
        self.settings = settings
        self.events = self.rows = self.folded = self.undefined = self.unlogged = 0
        self.lost: list[int] = [0] * len(Loss)
        self._node, self._run = node, run
        self._boot = boot_id()
        self._architecture = platform.machine()
        self._on_cgroup = on_cgroup
        self._cgroups: set[int] = set()
        self._number = 0
        self._untold: tuple[int, ...] = ()
        self._losses_at = 0.0
        self._parked, self._parked_at, self._parked_from = b"", 0.0, 0
        self._patience = PATIENCE
        self._told_written = [0] * len(Loss)
        maps = os.path.join(pin_dir, "maps")
        self._occurrences = Ring.open(f"{maps}/occurrences")
        self._ring = Ring.open(f"{maps}/definitions")
        self._maps = {name: Map.open(f"{maps}/{name}") for name in _MAPS}
        config = Map.open(f"{maps}/config")
        key = (config.sum_u64(_U32(Config.HASH_K0)), config.sum_u64(_U32(Config.HASH_K1)))
        config.close()
        self._elsewhere = Elsewhere(self._maps["processes"], key)
        self._told_map = self._open_told(f"{maps}/told")
        self._definitions = Definitions(settings.definitions_bytes, self._forget, self._saw, self._cgroup)
        self._log = self._open_log(settings.state_dir) if settings.state_dir else None
        if self._log is None:
            self._announce_all()
        self._told = self._read_told()
        self._pids: list[int] = []
        self.exclude(os.getpid())

    @property
    def fill(self) -> float:
        """0..1: how much of the occurrences ring the kernel cannot reuse."""
        return self._occurrences.held / self._occurrences.size

    @property
    def definitions_held(self) -> int:
        """Definitions in memory."""
        return len(self._definitions)

    def exclude(self, pid: int) -> None:
        """Have the kernel ignore what process `pid` (host tgid) does, until `close`."""
        self._maps["excluded"].put(_U32(pid), _U32(1))
        self._pids.append(pid)

    def drain(self) -> Batch:
        """Frames of what lies in the ring, at most `drain_bytes` of rows (all of it when folding)."""
        settings = self.settings
        fill = self.fill
        folding = settings.fold == "always" or (settings.fold == "pressure" and fill >= settings.pressure)
        now = time.monotonic()
        if fill >= 0.25 or now - self._losses_at >= _LOSSES_EVERY:
            self._losses_at = now
            self._read_losses()
        made: list[Frame] = []
        more = self._drain_folding(made) if folding else self._drain_rows(made)
        if self._untold and not made:
            made = [Frame(header=self._stamp(events=0, undefined=0), occurrences=b"", definitions=b"")]
        return Batch(frames=tuple(made), more=more, fill=fill)

    def release(self) -> None:
        """Give the drained space back to the kernel and remember which losses were told."""
        # Parked rows are in nobody's hands yet: their space, and all after it, stays.
        self._occurrences.release(self._parked_from if self._parked else None)
        if self._told_map is not None and self._told != self._told_written:
            self._told_map.put(_U32(0), _TOLD.pack(self._maps["losses"].info.id, *self._told, *[0] * (15 - len(Loss))))
            self._told_written = list(self._told)

    def finish(self) -> Batch:
        """The last drain: also what was waiting for definitions goes out."""
        self._patience = 0.0
        self._losses_at = 0.0
        return self.drain()

    def close(self) -> None:
        """Give fds and mappings back; pins and what lies in the rings stay."""
        for pid in self._pids:
            self._maps["excluded"].delete(_U32(pid))
        self._pids.clear()
        self._occurrences.close()
        self._ring.close()
        for found in self._maps.values():
            found.close()
        if self._told_map is not None:
            self._told_map.close()
        if self._log is not None:
            self._log.close()

    def _drain_rows(self, made: list[Frame]) -> bool:
        left = self.settings.drain_bytes
        limit = self.settings.frames.limit_bytes
        # A quarter is left for definitions; more of them than that, and the frame is split.
        room = limit * 3 // 4
        parked, self._parked = self._parked, b""
        while left > 0:
            if not parked:
                self._parked_from = self._occurrences.position
            wanted = min(room, left, TAKE_BYTES)
            chunk = self._occurrences.take_table(wanted)
            self._learn()
            if not chunk and not parked:
                return False
            # A short chunk emptied the ring. Producers go on, but chasing them would make frames of a few rows.
            left = left - len(chunk) if len(chunk) > wanted - STRIDE else 0
            rows = parked + chunk
            parked = b""
            closure = self._definitions.closure(*columns(rows))
            if closure.missing.total:
                rows, closure = self._recover(rows, closure)
            if rows:
                made += frames(rows, closure, self._definitions, self._stamp, limit)
                self.rows += len(rows) // STRIDE
        return len(chunk) > wanted - STRIDE

    def _drain_folding(self, made: list[Frame]) -> bool:
        left = self._occurrences.size
        limit = self.settings.frames.limit_bytes
        fold = Fold(self.settings.frames)
        if self._parked:
            fold.add(self._parked)
            self._parked = b""
        while left > 0:
            chunk = self._occurrences.take_table(TAKE_BYTES)
            self._learn()
            if chunk:
                fold.add(chunk)
            if len(chunk) <= TAKE_BYTES - STRIDE:
                break
            left -= len(chunk)
            if fold.size >= limit // 2:
                self._close_fold(fold, made)
                fold = Fold(self.settings.frames)
        if fold.events:
            self._close_fold(fold, made)
        return left <= 0

    def _close_fold(self, fold: Fold, made: list[Frame]) -> None:
        rows, folded = fold.rows, fold.folded
        behaviours, processes = fold.behaviours, fold.processes
        if rows:
            processes |= columns(rows)[1]
        closure = self._definitions.closure(behaviours, processes)
        if closure.missing.total:
            self._learn()
            self._seek(rows, closure)
            closure = self._definitions.closure(behaviours, processes)
            self._give_up(rows, closure)
        count = len(rows) // STRIDE
        counted = fold.events - count
        made += frames(
            rows, closure, self._definitions, self._stamp, self.settings.frames.limit_bytes, folded, counted
        )  # fmt: skip
        self.rows += count
        self.folded += counted

    def _learn(self) -> None:
        while records := self._ring.take_records(TAKE_BYTES):
            self._take_in(records)

    def _take_in(self, records: list[bytes]) -> None:
        rotations = self._definitions.rotations
        self._definitions.learn(records)
        if self._log is not None:
            # Strictly before the release: what the ring no longer holds must be on file.
            try:
                if self._definitions.rotations != rotations:
                    self._log.rewrite(self._definitions.records())
                else:
                    self._log.append(records)
            except OSError:
                self.unlogged += len(records)
        self._ring.release()

    def _cgroup(self, kind: DefinitionKind, ident: int, body: bytes) -> None:
        gone = kind is DefinitionKind.CGROUP_GONE
        if gone:
            self._cgroups.discard(ident)
        else:
            self._cgroups.add(ident)
        if self._on_cgroup is not None:
            self._on_cgroup(ident, os.fsdecode(body) if body else None, gone)

    def _recover(self, rows: bytes, closure: Closure) -> tuple[bytes, Closure]:
        # Rows that can go out now and their closure; the others are parked, or given up when they have waited enough.
        self._learn()
        self._seek(rows, closure)
        closure = self._definitions.closure(*columns(rows))
        missing = closure.missing
        if not missing.total:
            self._parked_at = 0.0
            return rows, closure
        now = time.monotonic()
        strings = set(missing.strings)
        late = set(missing.behaviours)
        words = memoryview(rows).cast("Q")
        ids = words[ID::WORDS].tolist()
        late |= {ident for ident in set(ids) if strings.intersection(self._definitions.references(ident))}
        if late and self._parked_at == 0.0:
            self._parked_at = now
        kept = list(compress(range(len(ids)), [ident not in late for ident in ids]))
        waits = (len(ids) - len(kept)) * STRIDE
        if not late or now - self._parked_at >= self._patience or waits > _PARKED_BYTES:
            self._parked_at = 0.0
            self._give_up(rows, closure)
            return rows, closure
        keep = set(kept)
        self._parked = b"".join([rows[i * STRIDE : (i + 1) * STRIDE] for i in range(len(ids)) if i not in keep])
        rows = b"".join([rows[i * STRIDE : (i + 1) * STRIDE] for i in kept])
        return rows, self._definitions.closure(*columns(rows)) if rows else closure

    def _seek(self, rows: bytes, closure: Closure) -> None:
        missing = closure.missing
        found = self._elsewhere.processes(missing.processes) if missing.processes else []
        if missing.strings:
            found += self._elsewhere.strings(self._tasks(rows, closure), set(missing.strings))
        for kind, ident, body in found:
            self._definitions.define(kind, ident, body)

    def _give_up(self, rows: bytes, closure: Closure) -> None:
        missing = closure.missing
        self._forget(DefinitionKind.BEHAVIOUR, list(missing.behaviours))
        self._forget(DefinitionKind.STRING, list(missing.strings))
        # The kernel keeps the path's id in its process map and would not say the path again by itself.
        self._elsewhere.adopt_again(self._tasks(rows, closure))

    def _tasks(self, rows: bytes, closure: Closure) -> set[int]:
        # Host tgids of the tasks, and their parents, whose rows use a string that is missing.
        strings = set(closure.missing.strings)
        words, halves = memoryview(rows).cast("Q"), memoryview(rows).cast("I")
        ids = words[ID::WORDS].tolist()
        tasks: set[int] = set()
        for ident in set(ids):
            if strings.intersection(self._definitions.references(ident)):
                at = ids.index(ident) * WORDS * 2
                tasks |= {halves[at + PID], halves[at + PPID]}
                if len(tasks) >= AT_MOST:
                    break
        return tasks - {0}

    def _forget(self, kind: DefinitionKind, idents: list[int]) -> None:
        if idents:
            name = "behaviours" if kind is DefinitionKind.BEHAVIOUR else "strings"
            self._maps[name].delete_many([_U64(ident) for ident in idents])

    def _saw(self, cgroup: int) -> None:
        if cgroup in self._cgroups:
            return
        if len(self._cgroups) >= _CGROUPS_SEEN:
            self._cgroups.clear()
        self._cgroups.add(cgroup)
        if self._on_cgroup is not None:
            self._on_cgroup(cgroup, None, False)

    def _stamp(self, *, events: int, undefined: int) -> FrameHeader:
        header = FrameHeader(
            node=self._node, boot=self._boot, run=self._run, number=self._number,
            clock_offset_ns=clock_offset_ns(), events=events, lost=self._untold, undefined=undefined,
            architecture=self._architecture,
        )  # fmt: skip
        self._untold = ()
        self._number += 1
        self.events += events
        self.undefined += undefined
        return header

    def _read_losses(self) -> None:
        losses = self._maps["losses"]
        now = [losses.sum_u64(_U32(index)) for index in Loss]
        fresh = tuple(max(0, a - b) for a, b in zip(now, self._told, strict=True))
        if any(fresh):
            self._untold = tuple(
                a + b for a, b in zip(fresh, self._untold or (0,) * len(fresh), strict=True)
            )  # fmt: skip
            self.lost = [a + b for a, b in zip(self.lost, fresh, strict=True)]
            self._told = now

    def _read_told(self) -> list[int]:
        if self._told_map is not None:
            value = self._told_map.get(_U32(0))
            found = _TOLD.unpack(value) if value else (0,) * 16
            if found[0] == self._maps["losses"].info.id:
                self._told_written = list(found[1 : 1 + len(Loss)])
        return list(self._told_written)

    def _open_told(self, path: str) -> Map | None:
        # How far losses were told, kept beside the pins so that the next agent neither repeats nor hides any.
        try:
            return Map.open(path)
        except KernelError:
            array = 2
            fd = bpf.map_create(array, 4, _TOLD.size, 1, name="told")
            bpf.pin(fd, path)
            return Map(fd, path)

    def _open_log(self, state_dir: str) -> DefinitionLog:
        identity = f"{self._boot} {self._maps['behaviours'].info.id} {self._maps['strings'].info.id}"
        log = DefinitionLog(os.path.join(state_dir, "definitions"), identity)
        if log.known:
            self._definitions.learn(log.read())
        else:
            self._announce_all()
        return log

    def _announce_all(self) -> None:
        # Nothing is known of what was announced before. Processes last: a task adopted in between says its strings.
        for name in ("behaviours", "strings", "processes"):
            self._maps[name].clear()


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def clock_offset_ns() -> int:
    """CLOCK_REALTIME - CLOCK_BOOTTIME: add to a row's time for Unix ns. Read between two readings of the other clock."""
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    real = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return real - (before + after) // 2
