# SPDX-License-Identifier: Apache-2.0
"""Scopes in a real map that is full: newborns that nobody claimed make room, and the kernel hears that scopes changed."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from enforcers.tables import KernelTables
from kernel import bpf
from kernel.loading import mount_bpffs, unmount
from kernel.maps import Map
from schemas.errors import KernelError
from schemas.kernel import SCOPE, Config, ScopeFlag

pytestmark = pytest.mark.kernel
SCOPES = 4
HASH, ARRAY = 1, 2


@pytest.fixture
def pins(bpffs_home: Callable[[str], str]) -> Iterator[str]:
    """Pins with `scopes` and `config` alone: no program is needed to fill a map."""
    if os.geteuid():
        pytest.skip("needs root")
    where = bpffs_home("tables")
    assert mount_bpffs(where)
    try:
        Path(where, "maps").mkdir()
        for name, kind, key, value, entries in (
            ("scopes", HASH, 8, SCOPE.size, SCOPES),
            ("config", ARRAY, 4, 8, 16),
        ):
            fd = bpf.map_create(kind, key, value, entries, name=f"test_{name}")
            bpf.pin(fd, f"{where}/maps/{name}")
            os.close(fd)
        yield where
    finally:
        unmount(where)


def born(pins: str, number: int) -> None:
    with Map.open(f"{pins}/maps/scopes") as scopes:
        scopes.put(struct.pack("=Q", number), SCOPE.struct.pack(0, 0, ScopeFlag.FRESH, 2))


def generation(pins: str) -> int:
    with Map.open(f"{pins}/maps/config") as config:
        return config.sum_u64(struct.pack("=I", Config.GENERATION))


def test_newborns_make_room_for_a_rule(pins: str) -> None:
    tables = KernelTables(pins, (), 0.0)
    try:
        for number in range(100, 100 + SCOPES):
            born(pins, number)
        assert tables.switch(1, 77, ScopeFlag.ENFORCE_SIGNAL)
        assert tables.enforced() == {1: (77, ScopeFlag.ENFORCE_SIGNAL)}
    finally:
        tables.close()


def test_claims_make_no_room_for_another(pins: str) -> None:
    tables = KernelTables(pins, (), 0.0)
    try:
        for number in range(1, 1 + SCOPES):
            tables.switch(number, 77, ScopeFlag.ENFORCE_SIGNAL, 2)
        with pytest.raises(KernelError):
            tables.switch(9, 77, ScopeFlag.ENFORCE_SIGNAL, 2)
        assert tables.claimed() == set(range(1, 1 + SCOPES))
    finally:
        tables.close()


def test_what_is_remembered_of_ancestors_ends_with_every_change(pins: str) -> None:
    tables = KernelTables(pins, (), 0.0)
    try:
        before = generation(pins)
        assert tables.switch(1, 77, ScopeFlag.ENFORCE_SIGNAL, 2)
        switched = generation(pins)
        assert switched > before
        assert not tables.switch(1, 77, ScopeFlag.ENFORCE_SIGNAL, 2)
        assert generation(pins) == switched
        tables.release(1)
        assert generation(pins) > switched
    finally:
        tables.close()
