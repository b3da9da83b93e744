# SPDX-License-Identifier: Apache-2.0
"""What ids mean: a bounded memory of definitions, and the closure of those a frame uses.

The kernel announces a definition once. This memory forgets too, so that the agent stays small; when it lets an id go it
says so (`forget`), the agent deletes the id from the kernel's map, and the next use is announced again. Nothing is lost
in between: a definition lives through three generations, and the kernel is told one generation before the bytes go, so
occurrences that were in the ring by then still find theirs.

    learn -> young -> old -> leaving (kernel told) -> gone        a use moves the definition back to young

A cgroup's path is said once, when it is made, and never again. So those are kept apart, the ones used last, and each frame
has the paths of the cgroups in it: that is how readers find whose a cgroup is that no identity lists.

Must never decode more of a body than the ids of the strings it refers to. Neighbours: `rings` (who feeds it), `frames`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple, cast

from schemas.kernel import BEHAVIOUR, DEFINITION, PROCESS, DefinitionKind

OVERHEAD: Final = 200
"""Bytes CPython 3.11 adds to a definition: two int and bytes headers and a dict slot, measured over 100,000 entries."""

_HEAD: Final = DEFINITION.struct
_STRING, _BEHAVIOUR, _PROCESS = DefinitionKind.STRING, DefinitionKind.BEHAVIOUR, DefinitionKind.PROCESS
_CGROUPS: Final = (DefinitionKind.CGROUP, DefinitionKind.CGROUP_GONE)
PLACES_MOST: Final = 16_384
"""Paths of cgroups that are kept: as many as `sensor.load.scopes`."""
_PLACES_SHARE: Final = 4
"""And a quarter of the memory at most: a workload may make the longest names there are."""
# Both bodies keep the ids of their strings in four u64 in a row; this fails at import when a layout changes that.
_REFERENCES: Final = struct.Struct("=4Q")
_AT: Final = DEFINITION.size + BEHAVIOUR.offsets["executable"]
_SCRIPT: Final = DEFINITION.size + BEHAVIOUR.offsets["script"]
_CGROUP: Final = DEFINITION.size + BEHAVIOUR.offsets["cgroup"]
if (
    [BEHAVIOUR.offsets[name] for name in ("executable", "parent", "resource", "resource2")] != [8, 16, 24, 32]
    or [PROCESS.offsets[name] for name in ("executable", "parent", "arguments", "cwd")] != [8, 16, 24, 32]
):  # fmt: skip
    raise ImportError(
        "schemas.kernel moved the string ids of BEHAVIOUR or PROCESS; sensors.node.definitions must follow"
    )

_Table = dict[int, bytes]
_Generation = dict[int, _Table]


class Missing(NamedTuple):
    """Ids that are used and not defined, by kind."""

    behaviours: tuple[int, ...]
    strings: tuple[int, ...]
    processes: tuple[int, ...]

    @property
    def total(self) -> int:
        return len(self.behaviours) + len(self.strings) + len(self.processes)


NOTHING_MISSING: Final = Missing((), (), ())


class Closure(NamedTuple):
    """`run`: definition records one after the other, as `schemas.frame` wants them. `missing`: what had to be left out."""

    run: bytes
    missing: Missing


class Definitions:
    """`limit_bytes`: memory to hold, `OVERHEAD` included. `forget(kind, ids)` is called when STRING or BEHAVIOUR ids are
    about to go. In the order of the records, `seen(cgroup)` is called with the cgroup of each behaviour learned and
    `cgroup(kind, id, path)` for each CGROUP and CGROUP_GONE record. `living()` gives (process, executable, parent, script) of every
    image that still runs: they are announced once, and needed at their exit however long they were silent in between."""

    def __init__(
        self,
        limit_bytes: int,
        forget: Callable[[DefinitionKind, list[int]], None] | None = None,
        seen: Callable[[int], None] | None = None,
        cgroup: Callable[[DefinitionKind, int, bytes], None] | None = None,
        living: Callable[[], Iterable[tuple[int, ...]]] | None = None,
    ) -> None:
        self._limit = limit_bytes // 3
        self._places: dict[int, bytes] = {}
        self._places_bytes, self._places_limit = 0, limit_bytes // _PLACES_SHARE
        self._living = living
        self._forget = forget
        self._seen = seen
        self._cgroup = cgroup
        self._young, self._old, self._leaving = _generation(), _generation(), _generation()
        self._bytes = self._old_bytes = self._leaving_bytes = 0
        self.learned = 0
        self.rotations = 0

    def __len__(self) -> int:
        return sum(len(table) for part in (self._young, self._old, self._leaving) for table in part.values())

    @property
    def held_bytes(self) -> int:
        """Held now, `OVERHEAD` included, at most: what came back to the young generation counts in two."""
        return self._bytes + self._old_bytes + self._leaving_bytes + self._places_bytes

    def learn(self, records: Iterable[bytes]) -> None:
        """Take in records of the definitions ring (header and body).

        A record that is shorter than its header says is ignored: the kernel never writes one, a torn recording may.
        """
        young, seen = self._young, self._seen
        unpack, head = _HEAD.unpack_from, _HEAD.size
        for record in records:
            if len(record) < head:
                continue
            ident, kind, size = unpack(record)
            end = head + size
            if len(record) < end:
                continue
            table = young.get(kind)
            if table is None:
                if kind in _CGROUPS:
                    path = record[head:end].rstrip(b"\0")
                    if path and kind == DefinitionKind.CGROUP:
                        self.place(ident, path)
                    if self._cgroup is not None:
                        self._cgroup(DefinitionKind(kind), ident, path)
                continue
            if ident not in table:
                self._bytes += len(record) + OVERHEAD
                self.learned += 1
            padded = end + (-size % 8)
            # The ring may carry more than the record (a fixed reservation); keep what the frame format allows.
            table[ident] = record if len(record) == padded else record[:end] + bytes(padded - end)
            if kind == _BEHAVIOUR and seen is not None and size >= BEHAVIOUR.offsets["script"]:
                seen(int.from_bytes(record[head : head + 8], _ORDER))

    def place(self, cgroup: int, path: bytes) -> None:
        """Where a cgroup lies. What is gone stays until others need the room: rows may still be on their way."""
        record = _HEAD.pack(cgroup, DefinitionKind.CGROUP, len(path)) + path + bytes(-len(path) % 8)
        self._displace(cgroup)
        self._places[cgroup] = record
        self._places_bytes += len(record) + OVERHEAD
        while len(self._places) > PLACES_MOST or self._places_bytes > self._places_limit:
            self._displace(next(iter(self._places)))

    def _displace(self, cgroup: int) -> None:
        if old := self._places.pop(cgroup, None):
            self._places_bytes -= len(old) + OVERHEAD

    def settle(self, *, behind: bool = False) -> None:
        """Forget what is too much. Called between chunks, never while one is being closed.

        `behind`: the ring still holds rows from before the last time the kernel was told to forget, and they may use
        what is about to go; then this waits, until twice the memory is used.
        """
        if self._bytes > self._limit * (2 if behind else 1):
            self._rotate()

    def knows(self, behaviours: set[int]) -> bool:
        """Whether each of these is defined. Strings are announced before the behaviour that uses them."""
        left = behaviours - self._young[_BEHAVIOUR].keys()
        if left:
            left = left - self._old[_BEHAVIOUR].keys() - self._leaving[_BEHAVIOUR].keys()
            left.discard(0)
        return not left

    def define(self, kind: DefinitionKind, ident: int, body: bytes) -> None:
        """Define by other means than the ring (a map lookup, /proc)."""
        self.learn((_HEAD.pack(ident, kind, len(body)) + body,))

    def closure(self, behaviours: set[int], processes: set[int]) -> Closure:
        """The definitions of these ids and of every string they refer to, each once, after the paths of the cgroups they are
        of. 0 means "none" and is skipped."""
        strings: set[int] = set()
        acted, no_behaviours = self._fetch(_BEHAVIOUR, behaviours)
        ran, no_processes = self._fetch(_PROCESS, processes)
        acted_run, ran_run = b"".join(acted), b"".join(ran)
        _refer(strings, acted, acted_run, DEFINITION.size + BEHAVIOUR.size, _SCRIPT)
        _refer(strings, ran, ran_run, DEFINITION.size + PROCESS.size)
        # Most behaviours have fewer than four strings: 0 would send every closure down the slow path.
        strings.discard(0)
        texts, no_strings = self._fetch(_STRING, strings)
        run = b"".join((*self._places_of(acted, acted_run), acted_run, ran_run, *texts))
        if not (no_strings or no_behaviours or no_processes):
            return Closure(run, NOTHING_MISSING)
        return Closure(run, Missing(tuple(no_behaviours), tuple(no_strings), tuple(no_processes)))

    def _places_of(self, records: list[bytes], run: bytes) -> list[bytes]:
        size = DEFINITION.size + BEHAVIOUR.size
        if len(run) == size * len(records):
            cgroups = set(memoryview(run).cast("Q")[_CGROUP // 8 :: size // 8].tolist())
        else:
            cgroups = {int.from_bytes(record[_CGROUP : _CGROUP + 8], _ORDER) for record in records}
        places, found = self._places, []
        for cgroup in cgroups:
            if record := places.pop(cgroup, None):
                places[cgroup] = record
                found.append(record)
        return found

    def _fetch(self, kind: int, idents: set[int]) -> tuple[list[bytes], list[int]]:
        # Records found and ids not found. In the steady state all are young, and this is one pass in C.
        found = list(map(self._young[kind].get, idents))
        if None not in found:
            return cast(list[bytes], found), []
        records, absent = [], []
        for ident, record in zip(idents, found, strict=True):
            known = record or self._revive(kind, ident)
            if known:
                records.append(known)
            elif ident:
                absent.append(ident)
        return records, absent

    def references(self, behaviour: int) -> tuple[int, ...]:
        """String ids of a known behaviour: executable, parent, resource, resource2, script; zeros when it is not known."""
        record = self._young[_BEHAVIOUR].get(behaviour) or self._revive(_BEHAVIOUR, behaviour)
        if not record:
            return 0, 0, 0, 0
        return *_REFERENCES.unpack_from(record, _AT), _script(record)

    def records(self) -> Iterable[bytes]:
        """Everything held, oldest generation first."""
        yield from self._places.values()
        for generation in (self._leaving, self._old, self._young):
            for table in generation.values():
                yield from table.values()

    def _revive(self, kind: int, ident: int) -> bytes | None:
        record = self._old[kind].pop(ident, None) or self._leaving[kind].pop(ident, None)
        if record:
            self._young[kind][ident] = record
            self._bytes += len(record) + OVERHEAD
        return record

    def _rotate(self) -> None:
        self.rotations += 1
        leaving, self._old, self._young = self._old, self._young, _generation()
        self._leaving = leaving
        self._bytes, self._old_bytes, self._leaving_bytes = 0, self._bytes, self._old_bytes
        self._carry()
        if self._forget is not None:
            # Strings first: the kernel looks at them only for a behaviour it has no mark of. A string leaves no earlier than
            # the behaviours that use it, because each closure moves both back to young.
            for kind in (_STRING, _BEHAVIOUR):
                if leaving[kind]:
                    self._forget(kind, list(leaving[kind]))

    def _carry(self) -> None:
        # Back to young before the kernel is told to forget: images that still run, and their strings. Half of a generation
        # at most, or a machine of very many processes would have room for nothing else.
        if self._living is None:
            return
        for process, *strings in self._living():
            if process in self._leaving[_PROCESS] and (record := self._revive(_PROCESS, process)):
                for string in _REFERENCES.unpack_from(record, _AT):
                    self._revive(_STRING, string)
            # The image's parent is not always its record's: that names who called exec, this one who forked.
            for string in strings:
                if string in self._leaving[_STRING]:
                    self._revive(_STRING, string)
            if self._bytes > self._limit // 2:
                return


def _generation() -> _Generation:
    return {_STRING: {}, _BEHAVIOUR: {}, _PROCESS: {}}


def _script(record: bytes) -> int:
    """The script of a behaviour; 0 too for one that was recorded before behaviours had one."""
    return int.from_bytes(record[_SCRIPT : _SCRIPT + 8], _ORDER)


def _refer(strings: set[int], records: list[bytes], run: bytes, size: int, script: int = 0) -> None:
    # Add the string ids of `records`, whose bytes in a row are `run`: by column when all have the size of this build.
    if len(run) == size * len(records):
        words, stride = memoryview(run).cast("Q"), size // 8
        for column in (*range(_AT // 8, _AT // 8 + 4), *([script // 8] if script else ())):
            strings.update(words[column::stride].tolist())
    else:
        for record in records:
            strings.update(_REFERENCES.unpack_from(record, _AT))
            if script:
                strings.add(_script(record))


_ORDER: Final = "little" if struct.pack("=H", 1)[0] else "big"
