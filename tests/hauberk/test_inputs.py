# SPDX-License-Identifier: Apache-2.0
"""Whatever lies at a path that a person names is read to its end or refused: no hang, no memory without end."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from hauberk import inputs
from schemas.errors import DecodeError, SettingsError
from sensors.recordings.recording import RecordingReader


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "fifo.yaml"
    os.mkfifo(path)
    return path


def test_a_fifo_that_nobody_writes(fifo: Path) -> None:
    started = time.monotonic()
    with pytest.raises(SettingsError, match="pipe"):
        inputs.read(str(fifo), "a policy file", 1 << 20)
    assert time.monotonic() - started < 30
    with pytest.raises(DecodeError, match="pipe"):
        RecordingReader(str(fifo))


def test_a_writer_that_says_nothing_more(fifo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PATIENCE", 0.2)
    keeping = os.open(fifo, os.O_RDWR)
    os.write(keeping, b"half")
    with pytest.raises(SettingsError, match="no data from its writer"):
        inputs.read(str(fifo), "a policy file", 1 << 20)
    os.close(keeping)


def test_a_pipe_is_read_to_its_end(fifo: Path) -> None:
    data = b"x" * 300_000

    def write() -> None:
        with fifo.open("wb") as file:
            for start in range(0, len(data), 1000):
                file.write(data[start : start + 1000])
                file.flush()

    writing = threading.Thread(target=write)
    writing.start()
    assert inputs.read(str(fifo), "a policy file", 1 << 20) == data
    writing.join(60)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/urandom", "/proc/self/mem", "/"])
def test_what_has_no_end(path: str, tmp_path: Path) -> None:
    link = tmp_path / "x.toml"
    link.symlink_to(path)
    with pytest.raises(SettingsError, match="a settings file"):
        inputs.read(str(link), "a settings file", 1 << 20)
    with pytest.raises((DecodeError, OSError)):
        RecordingReader(str(link))


def test_a_socket_and_a_name_with_nul(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(SettingsError):
            inputs.read(str(tmp_path / "s"), "a file", 10)
    with pytest.raises(SettingsError):
        inputs.read("a\0b", "a file", 10)


def test_more_than_the_most(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x" * 11)
    assert inputs.read(str(tmp_path / "x"), "a file", 11) == b"x" * 11
    with pytest.raises(SettingsError, match="at most"):
        inputs.read(str(tmp_path / "x"), "a file", 10)
