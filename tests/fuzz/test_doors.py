# SPDX-License-Identifier: Apache-2.0
"""A short run of `make fuzz` with every `make test`: a few hundred mutated inputs of each door, and every case that once crashed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from doors import DOORS
from fuzz import CASES, case, mutated, shrunk

FEW = {"recordings": 60, "settings": 100, "policies": 60}


@pytest.fixture(scope="module")
def doors() -> Iterator[dict[str, Any]]:
    made = {name: door() for name, door in DOORS.items()}
    yield made
    for door in made.values():
        door.close()


@pytest.mark.parametrize("name", DOORS)
def test_nothing_escapes_the_error_tree(doors: dict[str, Any], name: str) -> None:
    door = doors[name]
    assert any(door.try_one(sample) for sample in door.samples), "true inputs are taken"
    refused = sum(not door.try_one(case(7, name, number, door)) for number in range(FEW.get(name, 250)))
    assert refused > 0, "mutations are felt"


def test_what_crashed_once(doors: dict[str, Any]) -> None:
    """Every case that `make fuzz` kept; none is kept while nothing has crashed."""
    for path in sorted(CASES.glob("*.bin")):
        doors[path.name.split("-")[0]].try_one(path.read_bytes())


def test_a_case_is_found_again_and_cut_down(doors: dict[str, Any]) -> None:
    door = doors["plans"]
    assert case(3, "plans", 41, door) == case(3, "plans", 41, door) != case(3, "plans", 42, door)
    assert shrunk(b"a" * 500 + b"!" + b"b" * 500, lambda data: b"!" in data) == b"!"
    import random

    assert len({mutated(random.Random(number), door.samples) for number in range(50)}) > 40
