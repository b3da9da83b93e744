# SPDX-License-Identifier: Apache-2.0
"""Rule tables and visibility in the kernel's maps: tables filled first, switched by one write, deleted after a grace period.

A table is named by the hash of its entries. So equal containers share one, an unchanged plan writes nothing, and an agent
that starts again recognises what is in force. A program that read a scope a moment before the switch may still look into
the old table; it must find it whole, hence the grace. It must never delete a table that a scope names. Neighbours:
`apply` (who decides), `contract` (where entries come from), `schemas.kernel` (layouts).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from enforcers.contract import Entries, TableBackend
from enforcers.regions import Machines, with_base
from kernel.generation import renew
from kernel.maps import Map
from schemas.errors import KernelError
from schemas.kernel import RULE_KEY, SCOPE, Config, RuleKind, ScopeFlag

log = logging.getLogger(__name__)

ENFORCEMENT: Final = ScopeFlag(sum(set(ScopeFlag) - {ScopeFlag.CONTAINER, ScopeFlag.FRESH}))
"""The flags that enforce: all but those that say what a scope is. A scope without them and without a table only says what is
reported."""


def table_id(parts: Mapping[str, Entries], cells: bytes = b"") -> int:
    """Name of a table with these entries (map name -> entries) and this machine; 0 when there are none."""
    if not any(parts.values()):
        return 0
    hashed = hashlib.blake2b(digest_size=8)
    for name in sorted(parts):
        hashed.update(name.encode() + b"\0")
        for key, value in sorted(parts[name]):
            hashed.update(key + value)
    hashed.update(cells)
    return int.from_bytes(hashed.digest(), "little") | 1


class KernelTables:
    """The maps under `pin_dir`, opened. `writes`: entries and scopes written or deleted since start."""

    def __init__(self, pin_dir: str, backends: Iterable[TableBackend], grace: float) -> None:
        self._offsets = {name: offset for one in backends for name, offset in one.maps.items()}
        self._maps = {name: Map.open(f"{pin_dir}/maps/{name}") for name in self._offsets}
        self._scopes = Map.open(f"{pin_dir}/maps/scopes")
        self._config = Map.open(f"{pin_dir}/maps/config")
        self._grace = grace
        self._retired: dict[int, float] = {}
        self._keys: dict[int, dict[str, list[bytes]]] = {}
        self._machines = Machines.open(pin_dir)
        self.writes = 0
        self._adopt()

    def close(self) -> None:
        """Give the maps back. What is in them stays in force."""
        for one in (*self._maps.values(), self._scopes, self._config):
            one.close()
        self._machines.close()

    def _adopt(self) -> None:
        for name, offset in self._offsets.items():
            for key in self._maps[name].keys():  # noqa: SIM118 - a kernel map, not a dict
                table = int.from_bytes(key[offset : offset + 8], "little")
                if name == "rules" and RULE_KEY.struct.unpack(key)[4] == RuleKind.HEADER:
                    self._machines.adopt(table, self._maps[name].get(key))
                self._keys.setdefault(table, {}).setdefault(name, []).append(key)
        # A table that no scope names was being filled when its writer ended: it may have holes.
        for table in self._keys.keys() - {table for table, _ in self.enforced().values()}:
            self._delete(table)

    def enforced(self) -> dict[int, tuple[int, ScopeFlag]]:
        """cgroup id -> table and enforcement flags, for every scope that has any, as the kernel sees it now."""
        found = {}
        for key, value in self._scopes.items():
            table, _, flags, _ = SCOPE.struct.unpack(value)
            if table or flags & ENFORCEMENT:
                found[int.from_bytes(key, "little")] = (table, ScopeFlag(flags) & ENFORCEMENT)
        return found

    def claimed(self) -> set[int]:
        """cgroup ids whose scope a plan wrote: not one made by the kernel at birth."""
        found = set()
        for key, value in self._scopes.items():
            if not SCOPE.struct.unpack(value)[2] & ScopeFlag.FRESH:
                found.add(int.from_bytes(key, "little"))
        return found

    def widen(self, host: int, new: int) -> None:
        """Report of unclaimed cgroups what they are to report (-1: no matter), beside what they do, until `narrow`."""
        for which, bits in ((Config.HOST_VISIBILITY, host), (Config.NEW_VISIBILITY, new)):
            if bits >= 0:
                self._say(which, self._said(which) | bits)

    def narrow(self, host: int, new: int, hosts: Iterable[int]) -> None:
        """Report of unclaimed cgroups exactly this (-1: leave it). `hosts`: known to be the host's; they need no scope."""
        for which, bits in ((Config.HOST_VISIBILITY, host), (Config.NEW_VISIBILITY, new)):
            if bits >= 0:
                self._say(which, bits)
        if new < 0:
            return
        known = set(hosts)
        for key, value in self._scopes.items():
            table, _, flags, visible = SCOPE.struct.unpack(value)
            if table or flags & ENFORCEMENT or not flags & ScopeFlag.FRESH:
                continue
            # Still unclaimed: it was born under an earlier plan's bits, or it is the host's.
            if not new or int.from_bytes(key, "little") in known:
                self._write(key)
            elif visible != new:
                self._write(key, SCOPE.struct.pack(0, 0, flags, new))

    def _said(self, which: Config) -> int:
        return self._config.sum_u64(struct.pack("=I", which))

    def _say(self, which: Config, bits: int) -> None:
        # The sensor writes its settings here at its start: what was said last is read, never remembered.
        if self._said(which) != bits:
            self._config.put(struct.pack("=I", which), struct.pack("=Q", bits))
            self.writes += 1

    def fill(self, table: int, parts: Mapping[str, Entries], cells: bytes = b"") -> None:
        """Write a table that is not there yet, `cells` its machine. Raises KernelError (a full map); what was written then is taken
        back."""
        self._retired.pop(table, None)
        if not table or table in self._keys:
            return
        self._keys[table] = keys = {}
        name_of = struct.pack("<Q", table)
        try:
            base = self._machines.place(table, cells) if cells else 0
            for name, entries in parts.items():
                offset = self._offsets[name]
                pairs = [(key[:offset] + name_of + key[offset + 8 :], value) for key, value in entries]
                if base and name == "rules":
                    pairs = [(key, with_base(key, value, base)) for key, value in pairs]
                keys[name] = [key for key, _ in pairs]
                self.writes += self._maps[name].put_many(pairs)
        except BaseException as error:
            self._delete(table)
            if isinstance(error, KernelError) and error.errno == errno.E2BIG:
                many = sum(len(entries) for entries in parts.values())
                raise KernelError(
                    f"the kernel's tables of rules are full: {many} entries more were asked for; raise `sensor.load.rules` or "
                    "`sensor.load.net_rules` and start the sensor again",
                    operation=error.operation, target=error.target, errno=errno.E2BIG,
                ) from error  # fmt: skip
            raise

    def switch(self, cgroup: int, table: int, flags: ScopeFlag, visible: int = -1) -> bool:
        """Put a cgroup under `table`, reporting `visible` (-1: what it did): one atomic write. Whether anything changed."""
        key = struct.pack("=Q", cgroup)
        value = self._scopes.get(key)
        if value is None:
            if not table and not flags and visible < 0:
                return False
            before = (0, 0, 0, self._said(Config.NEW_VISIBILITY) or self._said(Config.HOST_VISIBILITY))
        else:
            before = SCOPE.struct.unpack(value)
        # CONTAINER: what the workload makes below itself gets no scope of its own at birth, so nobody steps out of this one.
        kept = (ScopeFlag(before[2]) & ~ENFORCEMENT) | ScopeFlag.CONTAINER
        if visible >= 0:
            kept &= ~ScopeFlag.FRESH
        after = SCOPE.struct.pack(table, 0, kept | flags, before[3] if visible < 0 else visible)
        if after == value:
            return False
        self._write(key, after)
        return True

    def _write(self, key: bytes, value: bytes | None = None) -> None:
        """One scope written (None: deleted), and the kernel told that what it remembers of ancestors may be old."""
        if value is None:
            self._scopes.delete(key)
        else:
            try:
                self._scopes.put(key, value)
            except KernelError as error:
                if error.errno != errno.E2BIG or not self._make_room():
                    raise
                self._scopes.put(key, value)
        self.writes += 1
        renew(self._config)

    def _make_room(self) -> int:
        """Drop the scopes of newborns that nobody has claimed: they say what is watched, and a rule goes before that. How many."""
        fresh = [
            key for key, value in self._scopes.items()
            if not SCOPE.struct.unpack(value)[0] and SCOPE.struct.unpack(value)[2] == ScopeFlag.FRESH
        ]  # fmt: skip
        self._scopes.delete_many(fresh)
        if fresh:
            log.warning(
                "the kernel's scopes are full: %d new cgroups that no plan names are watched like the host now; raise `sensor.load.scopes`",
                len(fresh),
            )
        return len(fresh)

    def in_force(self, cgroup: int) -> tuple[int, ScopeFlag] | None:
        """Table and enforcement flags of one cgroup as the kernel sees it now; None when it has no scope."""
        value = self._scopes.get(struct.pack("=Q", cgroup))
        if value is None:
            return None
        table, _, flags, _ = SCOPE.struct.unpack(value)
        return table, ScopeFlag(flags) & ENFORCEMENT

    def release(self, cgroup: int) -> None:
        """Take a cgroup, and what lies in it, from under enforcement and back to the host's visibility; a newborn's stays until it is claimed."""
        key = struct.pack("=Q", cgroup)
        value = self._scopes.get(key)
        if value is None:
            return
        _, _, flags, visible = SCOPE.struct.unpack(value)
        if flags & ScopeFlag.FRESH:
            self._write(key, SCOPE.struct.pack(0, 0, ScopeFlag(flags) & ~ENFORCEMENT, visible))
        else:
            self._write(key)

    def retire(self, used: set[int]) -> None:
        """Tables not in `used` are to go when their grace is over (`sweep`)."""
        for table in self._keys.keys() - used:
            self._retired.setdefault(table, time.monotonic() + self._grace)
        for table in self._retired.keys() & used:
            del self._retired[table]

    def sweep(self, everything: bool = False) -> float | None:
        """Delete retired tables whose grace is over; seconds until the next one, None when none waits."""
        now = math.inf if everything else time.monotonic()
        for table in [table for table, due in self._retired.items() if due <= now]:
            del self._retired[table]
            self._delete(table)
        return max(0.0, min(self._retired.values()) - now) if self._retired else None

    def _delete(self, table: int) -> None:
        for name, keys in self._keys.pop(table, {}).items():
            self._maps[name].delete_many(keys)
            self.writes += len(keys)
        self._machines.free(table)


def scope_exists(mount: str, path: str, cgroup: int) -> bool:
    """Whether the cgroup at `path` is still the one with this id."""
    try:
        return Path(mount + path).stat().st_ino == cgroup
    except OSError:
        return False
