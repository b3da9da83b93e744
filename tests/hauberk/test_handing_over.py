# SPDX-License-Identifier: Apache-2.0
"""What the processor says about another node's frames never reaches this node's kernel."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from bus.handover import HandoverBus
from hauberk.handing_over import needless_of, needs_of


class Wanted:
    """What the kernel of this node was told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *words: self.told.append((name, *words))


@pytest.fixture
def wanted() -> Wanted:
    return Wanted()


@pytest.fixture
def node(wanted: Wanted) -> Any:
    return SimpleNamespace(source=SimpleNamespace(wanted=wanted))


@pytest.fixture
async def bus(tmp_path: Path) -> AsyncIterator[HandoverBus]:
    made = HandoverBus(await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus"))), 1 << 20)
    yield made
    await made.close()


async def test_directories_of_another_node_keep_their_names(bus: HandoverBus, node: Any, wanted: Wanted) -> None:
    needless = needless_of(bus, node, "here")
    assert needless is not None
    needless([("there", 7, "/data/"), ("here", 7, "/srv/")])
    assert wanted.told == [("name_by_directory", [(7, "/srv/")])]


async def test_behaviours_of_another_node_are_not_counted_early(bus: HandoverBus, node: Any, wanted: Wanted) -> None:
    needs = needs_of(bus, node, "here")
    needs(SimpleNamespace(node="there"), [1], [2])
    assert not wanted.told
    needs(SimpleNamespace(node="here"), [1], [2])
    assert wanted.told == [("count_only", [2]), ("call_for", [1])]
