# SPDX-License-Identifier: Apache-2.0
"""Rule tables in the kernel's maps: filled first, switched by one write, the old one deleted after a grace period.

A table is named by the hash of its entries. So equal containers share one, an unchanged plan writes nothing, and an agent
that starts again recognises what is in force. A program that read a scope a moment before the switch may still look into
the old table; it must find it whole, hence the grace. It must never delete a table that a scope names. Neighbours:
`apply` (who decides), `contract` (where entries come from), `schemas.kernel` (layouts).
"""

from __future__ import annotations

import hashlib
import math
import os
import struct
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from enforcers.contract import Enforcer, Entries
from kernel.maps import Map
from schemas.kernel import SCOPE, Config, ScopeFlag

ENFORCEMENT: Final = (
    ScopeFlag.ENFORCE_SIGNAL | ScopeFlag.ENFORCE_CGROUP | ScopeFlag.WHITELIST_PROCESS | ScopeFlag.WHITELIST_FILE
    | ScopeFlag.WHITELIST_NETWORK
)  # fmt: skip
"""The flags that are the enforcer's; the others and the visibility are the agent's."""


def table_id(parts: Mapping[str, Entries]) -> int:
    """Name of a table with these entries (map name -> entries); 0 when there are none."""
    if not any(parts.values()):
        return 0
    hashed = hashlib.blake2b(digest_size=8)
    for name in sorted(parts):
        hashed.update(name.encode() + b"\0")
        for key, value in sorted(parts[name]):
            hashed.update(key + value)
    return int.from_bytes(hashed.digest(), "little") | 1


class Tables:
    """The maps under `pin_dir`, opened. `writes`: entries and scopes written or deleted since start."""

    def __init__(self, pin_dir: str, enforcers: Iterable[Enforcer], grace: float) -> None:
        self._offsets = {one.map_name: one.table_offset for one in enforcers}
        self._maps = {name: Map.open(f"{pin_dir}/maps/{name}") for name in self._offsets}
        self._scopes = Map.open(f"{pin_dir}/maps/scopes")
        with Map.open(f"{pin_dir}/maps/config") as config:
            self._visibility = [
                config.sum_u64(struct.pack("=I", which)) for which in (Config.HOST_VISIBILITY, Config.NEW_VISIBILITY)
            ]
        self._grace = grace
        self._retired: dict[int, float] = {}
        self._keys: dict[int, dict[str, list[bytes]]] = {}
        self.writes = 0
        self._adopt()

    def close(self) -> None:
        """Give the maps back. What is in them stays in force."""
        for one in (*self._maps.values(), self._scopes):
            one.close()

    def _adopt(self) -> None:
        for name, offset in self._offsets.items():
            for key in self._maps[name].keys():  # noqa: SIM118 - a kernel map, not a dict
                table = int.from_bytes(key[offset : offset + 8], "little")
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

    def fill(self, table: int, parts: Mapping[str, Entries]) -> None:
        """Write a table that is not there yet. Raises KernelError (a full map); what was written then is taken back."""
        self._retired.pop(table, None)
        if not table or table in self._keys:
            return
        self._keys[table] = keys = {}
        name_of = struct.pack("<Q", table)
        try:
            for name, entries in parts.items():
                offset = self._offsets[name]
                pairs = [(key[:offset] + name_of + key[offset + 8 :], value) for key, value in entries]
                keys[name] = [key for key, _ in pairs]
                self.writes += self._maps[name].put_many(pairs)
        except BaseException:
            self._delete(table)
            raise

    def switch(self, cgroup: int, table: int, flags: ScopeFlag) -> bool:
        """Put a cgroup under `table`: one atomic write. Whether anything changed."""
        key = struct.pack("=Q", cgroup)
        value = self._scopes.get(key)
        if value is None:
            if not table and not flags:
                return False
            before = (0, 0, 0, self._visibility[1] or self._visibility[0])
        else:
            before = SCOPE.struct.unpack(value)
        # CONTAINER: what the workload makes below itself is born under the same scope, so nobody steps out of it.
        kept = (ScopeFlag(before[2]) & ~ENFORCEMENT) | ScopeFlag.CONTAINER
        after = SCOPE.struct.pack(table, 0, kept | flags, before[3])
        if after == value:
            return False
        self._scopes.put(key, after)
        self.writes += 1
        return True

    def adopt_below(self, cgroup: int, directory: str) -> None:
        """Put the cgroups that lie below `directory`, the one of `cgroup`, under its scope."""
        for inner, _, _ in os.walk(directory):
            try:
                child = os.stat(inner).st_ino
            except OSError:
                continue
            key = struct.pack("=Q", child)
            value = self._scopes.get(key) if child != cgroup else None
            if child == cgroup or (value is not None and SCOPE.struct.unpack(value)[1] == cgroup):
                continue
            self._scopes.put(key, SCOPE.struct.pack(0, cgroup, ScopeFlag.FRESH, 0))
            self.writes += 1

    def release(self, cgroup: int) -> None:
        """Take a cgroup from under enforcement. Its visibility stays."""
        key = struct.pack("=Q", cgroup)
        value = self._scopes.get(key)
        if value is None:
            return
        _, owner, flags, visibility = SCOPE.struct.unpack(value)
        kept = ScopeFlag(flags) & ~ENFORCEMENT
        if not kept & ~ScopeFlag.CONTAINER and not owner and visibility == self._visibility[0]:
            self._scopes.delete(key)  # a scope that says nothing is no scope
        else:
            self._scopes.put(key, SCOPE.struct.pack(0, owner, kept, visibility))
        self.writes += 1

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


def scope_exists(mount: str, path: str, cgroup: int) -> bool:
    """Whether the cgroup at `path` is still the one with this id."""
    try:
        return Path(mount + path).stat().st_ino == cgroup
    except OSError:
        return False
