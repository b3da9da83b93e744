# SPDX-License-Identifier: Apache-2.0
"""One setting says what is seen of the host: to the sensor, the judge and the planner alike."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from hauberk.configuration import configuration
from policy.rules.visibility import EVERYTHING, bits, visibility, words_of
from schemas.errors import SettingsError
from schemas.operations import Class

ALL = bits(Class)


def said(tmp_path: Path, *sets: str) -> tuple[int, tuple[str, ...]]:
    found, _, _ = configuration(argparse.Namespace(config=None, set=list(sets), state=str(tmp_path)))
    assert found.processor.postures == found.planner.postures
    return found.sensor.load.host_visibility, found.planner.postures.host_visibility


def test_nobody_said_anything_and_the_host_is_watched(tmp_path: Path) -> None:
    assert said(tmp_path) == (ALL, EVERYTHING)


def test_either_rules_both(tmp_path: Path) -> None:
    assert said(tmp_path, 'postures.host_visibility=["file"]') == (1 << Class.FILE, ("file",))
    assert said(tmp_path, 'postures.host_visibility=["none"]') == (0, ("none",))
    assert said(tmp_path, "sensor.load.host_visibility=0") == (0, ("none",))
    assert said(tmp_path, f"sensor.load.host_visibility={ALL}", 'postures.file="block"') == (ALL, EVERYTHING)
    both = ('postures.host_visibility=["file"]', f"sensor.load.host_visibility={1 << Class.FILE}")
    assert said(tmp_path, *both) == (1 << Class.FILE, ("file",))


def test_two_words_that_disagree_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="leave the second out"):
        said(tmp_path, 'postures.host_visibility=["file"]', "sensor.load.host_visibility=0")


@pytest.mark.parametrize("word", ["process", "file", "network"])
def test_words_and_numbers_mean_the_same(word: str) -> None:
    number = bits(visibility((word,), ()).classes)
    assert words_of(number) == (word,)
