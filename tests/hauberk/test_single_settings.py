# SPDX-License-Identifier: Apache-2.0
"""`node` and `postures` are one setting each: what sensor, inventory, judge and planner have comes from there. Old places are accepted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hauberk.configuration import configuration, node_configuration
from hauberk.sections import Configuration
from hauberk.verbs.settings import reference, settable
from schemas.errors import SettingsError
from schemas.operations import Class
from schemas.visibility import EVERYTHING, bits, bits_of, words_of


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hauberk.settings._reported", set())


def given(tmp_path: Path, *sets: str, config: str | None = None) -> Configuration:
    return configuration(argparse.Namespace(config=config, set=list(sets), state=str(tmp_path)))[0]


def host(found: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    assert found.processor.postures == found.planner.postures == found.postures
    return found.sensor.load.host_visibility, found.planner.postures.host_visibility


def test_by_default_the_host_is_watched(tmp_path: Path) -> None:
    assert host(given(tmp_path)) == (EVERYTHING, EVERYTHING)


@pytest.mark.parametrize("words", [("file",), ("none",), EVERYTHING])
def test_the_sensor_begins_with_what_judge_and_planner_have(tmp_path: Path, words: tuple[str, ...]) -> None:
    setting = f"postures.host_visibility={msgspec.json.encode(words).decode()}"
    assert host(given(tmp_path, setting, "postures.file=block")) == (words, words)
    assert given(tmp_path, setting, "postures.file=block").planner.postures.file == "block"
    node = node_configuration(argparse.Namespace(config=None, set=[setting], state=str(tmp_path)))[0]
    assert node.sensor.load.host_visibility == words


def test_hooks_are_loaded_where_they_are_asked_for_alone(tmp_path: Path) -> None:
    assert not given(tmp_path).sensor.load.hooks
    asked = given(tmp_path, 'enforcement.backends=["bpf-lsm", "cgroup"]')
    assert asked.sensor.load.hooks
    assert asked.enforcement.backends == ("bpf-lsm", "cgroup")


@pytest.mark.parametrize("name", ["idle", "coalesce"])
def test_nobody_sleeps_past_the_end_of_observation(name: str, tmp_path: Path) -> None:
    """The kernel reports nothing once the rings were not drained for a minute."""
    with pytest.raises(SettingsError, match=name):
        given(tmp_path, f"sensor.agent.{name}=61")


def test_one_name_of_the_node(tmp_path: Path) -> None:
    found = given(tmp_path, "node=n1")
    assert (found.node, found.sensor.node, found.inventory.node) == ("n1", "n1", "n1")


@pytest.mark.parametrize(
    ("old", "new", "value"),
    [
        ("sensor.node", "node", "n1"), ("inventory.node", "node", "n1"),
        ("processor.postures.file", "postures.file", "block"), ("planner.postures", "postures", '{"file":"block"}'),
        ("enforcer.postures.file", "postures.file", "block"), ('sensor={"node":"n1"}', "node", "n1"),
        ("sensor.load.host_visibility", "postures.host_visibility", '["file"]'),
    ],
)  # fmt: skip
def test_an_old_place_is_accepted_and_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, value: str
) -> None:
    text = old if "=" in old else f"{old}={value}"
    expected = given(tmp_path, f"{new}={value}")
    assert capsys.readouterr().err == ""
    assert given(tmp_path, text) == given(tmp_path, text) == expected
    said = capsys.readouterr().err
    assert all(line.endswith("the old name ends with version 0.3") for line in said.splitlines())
    assert len(said.splitlines()) == (2 if old.startswith("enforcer") else 1)


def test_numbers_of_older_files_are_words(tmp_path: Path) -> None:
    assert host(given(tmp_path, "sensor.load.host_visibility=0")) == (("none",), ("none",))
    assert host(given(tmp_path, f"sensor.load.host_visibility={bits(Class)}")) == (EVERYTHING, EVERYTHING)
    for word in ("process", "file", "network"):
        assert words_of(bits_of((word,))) == (word,)


def test_two_places_of_a_file_that_differ_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        "[sensor]\nnode = 'a'\n[inventory]\nnode = 'a'\n[postures]\nfile = 'block'\n[sensor.load]\nhost_visibility = 0\n"
    )
    found = given(tmp_path, config=str(path))
    assert (found.node, found.postures.file, found.postures.host_visibility) == ("a", "block", ("none",))
    path.write_text("[sensor]\nnode = 'a'\n[inventory]\nnode = 'b'\n")
    with pytest.raises(SettingsError, match="`node` stands twice with different values"):
        given(tmp_path, config=str(path))


def test_an_error_names_the_place_that_was_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"`postures\.file`: .*--set"):
        given(tmp_path, "processor.group=g", "postures.file=maybe")
    with pytest.raises(SettingsError, match=r"`sensor\.load\.new_visibility"):
        given(tmp_path, 'sensor.load.new_visibility=["files"]')
    # A slip of the pen made everything dark without a word.
    for key in ("visibility", "host_visibility"):
        with pytest.raises(
            SettingsError, match=rf"`postures\.{key}\[0\]`: .*expected one of process.*did you mean `process`"
        ):
            given(tmp_path, f'postures.{key}=["proces"]')
    with pytest.raises(
        SettingsError, match=r"`(postures|sensor\.load)\.host_visibility\[0\]`: .*did you mean `process`"
    ):
        node_configuration(
            argparse.Namespace(config=None, set=['postures.host_visibility=["proces"]'], state=str(tmp_path))
        )


def test_what_is_derived_is_not_listed_and_settings_can_be_read_back(tmp_path: Path) -> None:
    keys = {key for key, *_ in reference(Configuration)}
    assert {"node", "postures.file", "sensor.load.new_visibility"} <= keys
    derived = {"sensor.node", "inventory.node", "processor.postures", "planner.postures", "sensor.load.host_visibility"}
    assert not derived & keys
    found = given(tmp_path, "node=n1", "postures.file=block", 'postures.host_visibility=["file"]')
    path = tmp_path / "s.json"
    path.write_bytes(msgspec.json.encode(settable(found)))
    assert given(tmp_path, config=str(path)) == found
