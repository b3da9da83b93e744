# SPDX-License-Identifier: Apache-2.0
"""`hauberk doctor` says what a start would run into, once, and leaves nothing behind."""

from __future__ import annotations

import codecs
import json
import os
from pathlib import Path

import pytest

from hauberk.verbs import doctor

Said = list[dict[str, str]]


@pytest.fixture
def said(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> object:
    monkeypatch.delenv("HAUBERK_STATE", raising=False)

    def run(*words: object, state: Path | str = tmp_path / "state") -> Said:
        doctor.main(["-o", "json", "--state", str(state), *map(str, words)])
        return [
            one for one in json.loads(capsys.readouterr().out) if one["what"] not in ("python", "packages", "kernel")
        ]

    return run


def test_wrong_settings_are_told_once(said) -> None:  # type: ignore[no-untyped-def]
    (one,) = said("--set", "sinks=3")
    assert (one["level"], one["what"]) == ("bad", "settings")
    assert "Expected `array`" in one["found"]


def test_a_state_that_is_not_there_yet_is_told_as_that(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    levels = {one["what"]: one for one in said()}
    assert levels["state"]["level"] == "ok"
    assert "is not there yet and can be made" in levels["state"]["found"]
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "state").mkdir()
    assert "not there" not in {one["what"]: one for one in said()}["state"]["found"]
    assert list((tmp_path / "state").iterdir()) == []


def test_a_state_that_cannot_be_made_is_bad(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    for state, why in (
        ("/proc/hauberk/state", "`/proc`"),
        (tmp_path / "file", "is no directory"),
        (tmp_path / "file" / "below", "is no directory"),
        (tmp_path / "nowhere", "is no directory"),
    ):
        (one,) = [one for one in said(state=state) if one["what"] == "state"]
        assert one["level"] == "bad", one
        assert why in one["found"]
        assert "--state" in one["found"]


def test_places_outside_the_state_are_looked_at_too(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    sinks = [{"type": "file", "path": str(tmp_path / "none" / "alerts.jsonl")}, {"type": "store", "path": "/proc/x.db"}]
    found = said("--set", "bus.directory=/proc/hauberk/bus", "--set", f"sinks={json.dumps(sinks)}")
    bad = {one["what"]: one["found"] for one in found if one["level"] == "bad"}
    assert set(bad) == {"bus", "sink file", "sink store"}
    assert "`/proc`" in bad["bus"]
    assert f"`{tmp_path / 'none'}` is not there" in bad["sink file"]
    assert "`/proc`" in bad["sink store"]
    default = said("--set", f'sinks=[{{"type": "file", "path": "{tmp_path}/state/alerts.jsonl"}}]')
    assert [one for one in default if one["level"] == "bad"] == []


def test_somebody_without_rights_is_told_and_not_thrown_out(said, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    if os.geteuid():
        pytest.skip("only root can give rights up")
    (tmp_path / "state" / "bus").mkdir(parents=True)
    for directory in (tmp_path / "state", tmp_path):
        directory.chmod(0o700)
    # Imported on first use, from a place that only root may read.
    codecs.lookup("ascii")
    said()
    os.seteuid(65534)
    try:
        found = said()
    finally:
        os.seteuid(0)
    assert [one["what"] for one in found if one["level"] == "bad"] == ["state"]


def test_it_looks_at_every_package_of_the_wheel() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert set(doctor.ROOMS) == set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["only-include"])
