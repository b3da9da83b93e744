# SPDX-License-Identifier: Apache-2.0
"""What the bus keeps is its owner's alone, under any umask; a directory that others may write is refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.errors import Refused
from schemas.topics import ALERTS, POLICIES


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


async def test_nothing_is_readable_by_others(tmp_path: Path, loose_umask: None) -> None:
    root = tmp_path / "bus"
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(root)))
    try:
        await bus.publish(ALERTS, [Record(b"k", b"v")])
        await bus.publish(POLICIES, [Record(b"k", b"v")])
        async with bus.subscribe([ALERTS], "group", "earliest") as subscription:
            await subscription.commit(await subscription.take(10, 10.0))
        modes = {path.relative_to(root): stat.S_IMODE(path.lstat().st_mode) for path in [root, *root.rglob("*")]}
    finally:
        await bus.close()
    assert {stat.S_ISSOCK(path.lstat().st_mode) for path in root.rglob("wake/*")} <= {True}
    assert any(str(path).startswith("wake/") for path in modes), modes
    assert any(path.suffix == ".db" for path in modes), modes
    assert not {path: oct(mode) for path, mode in modes.items() if mode & 0o077}


async def test_a_directory_that_others_may_read_is_closed(tmp_path: Path) -> None:
    root = tmp_path / "bus"
    root.mkdir()
    root.chmod(0o755)
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(root)))
    await bus.close()
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720])
async def test_a_directory_that_others_may_write_is_refused(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "bus"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(Refused, match=f"mode {mode:o}.*chmod 700"):
        await EmbeddedBus.open(EmbeddedSettings(directory=str(root)))
