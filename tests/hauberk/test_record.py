# SPDX-License-Identifier: Apache-2.0
"""`hauberk record`: every option counts wherever it stands, a wrong output is refused at once, a running agent is attached to."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from sensors.recordings.recording import BlockKind, RecordingReader, RecordingWriter


@pytest.fixture(scope="module")
def replayed(make_hauberk: Any) -> Any:
    """A state directory with a bus and nobody who writes to it."""
    made = make_hauberk()
    done = made.replay()
    assert done.returncode == 0, done.stderr
    return made


def test_options_after_the_file_count(replayed: Any) -> None:
    # Without `--for` it would go on until the command is given up.
    done = replayed("record", "after.hbrk", "--attach", "--for", "0.2s")
    assert done.returncode == 0, done.stderr
    assert "0 frames" in done.stderr
    assert "is --state that of the running agent?" in done.stderr


def test_a_command_needs_its_dashes(replayed: Any) -> None:
    done = replayed("record", "x.hbrk", "ls", "-l")
    assert done.returncode == 2
    assert "write `-- ls -l`" in done.stderr
    done = replayed("record", "x.hbrk", "--fro", "5s")
    assert done.returncode == 2
    assert "`--fro`" in done.stderr
    done = replayed("record", "x.hbrk", "--attach", "--")
    assert done.returncode == 2
    assert not (replayed.home / "x.hbrk").exists()
    done = replayed("record", "code.hbrk", "--attach", "--", "sh", "-c", "exit 7")
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize(
    ("file", "said"),
    [("none/x.hbrk", "expected a directory at"), (".", "got a directory"), ("text", "expected a recording")],
)
@pytest.mark.parametrize("attach", [(), ("--attach",)])
def test_a_wrong_output_is_refused_before_anything_else(
    replayed: Any, file: str, said: str, attach: tuple[str, ...]
) -> None:
    (replayed.home / "text").write_text("# Hauberk is no recording\n")
    # A day is longer than the command is waited for.
    done = replayed("record", file, *attach, "--for", "1d")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "b'" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert (replayed.home / "text").read_text().startswith("# Hauberk")


def test_a_file_that_fails_later_does_not_hang(replayed: Any) -> None:
    done = replayed("record", "/dev/full", "--attach", "--for", "1d")
    assert done.returncode == 3, done.stderr
    assert "did not finish" not in done.stderr


def test_pins_in_use_are_attached_to_or_the_sentence_says_how(replayed: Any, tmp_path: Path) -> None:
    pins = tmp_path / "pins"
    pins.mkdir()
    fd = os.open(pins, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        here = {"HAUBERK__SENSOR__PIN_DIR": str(pins)}
        done = replayed("record", "held.hbrk", "--for", "0.2s", **here)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("an agent is running on") == 1
        done = replayed("record", "held2.hbrk", "--for", "0.2s", "--state", str(tmp_path / "elsewhere"), **here)
        assert done.returncode == 2, done.stderr
        assert "--attach" in done.stderr
        assert not (tmp_path / "elsewhere").exists()
    finally:
        os.close(fd)
    with RecordingReader(str(replayed.home / "held.hbrk")) as reader:
        assert {entry.kind for entry in reader} == {BlockKind.INVENTORY}


def test_recordings_are_their_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        RecordingWriter(str(tmp_path / "r")).close()
    finally:
        os.umask(before)
    assert (tmp_path / "r").stat().st_mode & 0o777 == 0o600
