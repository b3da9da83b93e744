# SPDX-License-Identifier: Apache-2.0
"""A look at the newest records is cheap, leaves nothing behind and never fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.embedded.read_only import peek
from schemas.topics import POLICIES


async def filled(directory: Path) -> EmbeddedBus:
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(directory)))
    await bus.publish(POLICIES, [Record(b"a", b"1"), Record(b"b", b"2"), Record(b"c", b"3"), Record(b"a", b"4")])
    await bus.publish(POLICIES, [Record(b"b", None)])
    return bus


async def test_the_newest_of_each_key_of_a_running_and_of_an_ended_bus(tmp_path: Path) -> None:
    bus = await filled(tmp_path / "bus 100%?")
    assert list(peek(bus._settings.directory, POLICIES)) == [(b"a", b"4"), (b"c", b"3")]
    assert list(peek(bus._settings.directory, POLICIES, 1)) == [(b"a", b"4")]
    await bus.close()
    before = sorted(path for path in tmp_path.rglob("*"))
    assert list(peek(bus._settings.directory, POLICIES)) == [(b"a", b"4"), (b"c", b"3")]
    assert sorted(path for path in tmp_path.rglob("*")) == before


async def test_nothing_where_there_is_nothing_to_read(tmp_path: Path) -> None:
    assert list(peek(str(tmp_path / "none"), POLICIES)) == []
    assert list(tmp_path.iterdir()) == []
    bus = await filled(tmp_path / "bus")
    await bus.close()
    file = tmp_path / "bus" / "topics" / f"{POLICIES.name}.v{POLICIES.version}" / "compacted.db"
    file.write_bytes(b"no database" * 1000)
    assert list(peek(str(tmp_path / "bus"), POLICIES)) == []
    assert file.exists()


async def test_nothing_for_those_who_may_not_read(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give rights up")
    bus = await filled(tmp_path / "bus")
    await bus.close()
    (tmp_path / "bus").chmod(0o700)
    os.seteuid(65534)
    try:
        assert list(peek(str(tmp_path / "bus"), POLICIES)) == []
    finally:
        os.seteuid(0)
