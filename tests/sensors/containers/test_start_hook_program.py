# SPDX-License-Identifier: Apache-2.0
"""The program of the OCI hook as a runtime runs it, beside agents that are away, hang, lie or are bombarded; bounded, and one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sensors.containers import start_hook

STATE = {
    "ociVersion": "1.0.2",
    "id": "c1",
    "pid": 7,
    "bundle": "/b",
    "annotations": {"io.kubernetes.cri.sandbox-namespace": "shop"},
}


def hook(
    path: Path, *words: str, given: bytes | None = None, seconds: str = "0.5"
) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-I", "-S", start_hook.__file__, "--socket", str(path), "--seconds", seconds, *words]
    return subprocess.run(
        command,
        input=json.dumps(STATE).encode() if given is None else given,
        capture_output=True,
        timeout=60,
        check=False,
    )


@contextlib.contextmanager
def agent(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[list[bytes]]:
    """Something that listens at `path`; the requests that it got."""
    got: list[bytes] = []

    def serve() -> None:
        while True:
            try:
                asking, _ = listening.accept()
            except OSError:
                return
            with asking:
                size = int.from_bytes(asking.recv(4), "big")
                data = b""
                while len(data) < size:
                    data += asking.recv(1 << 16)
                got.append(data)
                answer(asking)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield got
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(60)


def says(text: bytes) -> Callable[[socket.socket], None]:
    return lambda asking: asking.sendall(text)


def test_a_container_whose_rules_are_in_force_starts_and_nothing_is_said(tmp_path: Path) -> None:
    with agent(tmp_path / "s", says(b"held\n")) as got:
        done = hook(tmp_path / "s")
    assert (done.returncode, done.stderr, done.stdout) == (0, b"", b"")
    assert json.loads(got[0]) == STATE
    assert not (tmp_path / "unheld").exists()


def hangs(asking: socket.socket) -> None:
    asking.recv(1)


ANSWERS = {
    "away": (None, "is `hauberk node` or `up` running?"),
    "hangs": (hangs, "did not say so"),
    "ends": (says(b""), "ended meanwhile"),
    "refuses": (says(b"no rule can be held\n"), "no rule can be held"),
    "lies": (says(b"\xff" * 100_000), "\ufffd"),
}


@pytest.mark.parametrize("which", ANSWERS)
@pytest.mark.parametrize(
    ("words", "code"), [([], 0), (["--unanswered", "refuse"], 1), (["--unanswered", "refuse", "--exempt", "shop"], 0)]
)
def test_without_an_answer_it_does_as_it_was_told_and_says_so(
    tmp_path: Path, which: str, words: list[str], code: int
) -> None:
    answer, why = ANSWERS[which]
    with contextlib.nullcontext() if answer is None else agent(tmp_path / "s", answer):
        began = time.monotonic()
        done = hook(tmp_path / "s", *words)
        assert time.monotonic() - began < 20
    assert done.returncode == code
    (said,) = done.stderr.decode().splitlines()
    assert said.startswith(f"hauberk: container c1 {'starts without its rules' if code == 0 else 'is not started'}: ")
    assert why in said
    (line,) = (tmp_path / "unheld").read_text().splitlines()
    assert line.startswith("started c1: " if code == 0 else "refused c1: ")


@pytest.mark.parametrize("given", [b"", b"{", b"[]", b"\xff\xfe", b'{"annotations": 7}', b"[" * 200_000, b"null"])
def test_a_state_that_is_none_is_one_sentence(tmp_path: Path, given: bytes) -> None:
    for words, code in (([], 0), (["--unanswered", "refuse", "--exempt", "shop"], 1)):
        done = hook(tmp_path / "s", *words, given=given)
        assert done.returncode == code
        assert len(done.stderr.decode().splitlines()) == 1
        assert b"Traceback" not in done.stderr


def test_annotations_do_not_choose_who_is_held(tmp_path: Path) -> None:
    """Megabytes of them are cut down to what the agent reads, whose bound is beyond that."""
    annotations: dict[str, Any] = STATE["annotations"]  # type: ignore[assignment]
    hostile = (
        annotations
        | {f"a{number}": "\n\u2028\x00" * 3000 for number in range(200)}
        | {"io.kubernetes.pod.name": "x" * 300_000}
    )
    with agent(tmp_path / "s", says(b"held\n")) as got:
        done = hook(tmp_path / "s", given=json.dumps(STATE | {"annotations": hostile}).encode(), seconds="20")
    assert done.returncode == 0, done.stderr
    assert len(got[0]) < start_hook.SHORT
    found = json.loads(got[0])
    assert (found["id"], found["pid"], found["bundle"]) == ("c1", 7, "/b")
    assert found["annotations"] == annotations | {"io.kubernetes.pod.name": "x" * 1024}


def test_a_state_that_does_not_end_is_not_waited_for(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"id": "c1"')
    command = [
        sys.executable,
        "-I",
        "-S",
        start_hook.__file__,
        "--socket",
        str(tmp_path / "s"),
        "--seconds",
        "0.3",
        "--unanswered",
        "refuse",
    ]
    done = subprocess.run(command, stdin=reading, capture_output=True, timeout=60, check=False)
    os.close(reading)
    os.close(writing)
    assert done.returncode == 1
    assert b"did not come in time" in done.stderr


@pytest.mark.parametrize("words", [
    ["--unanswered", "perhaps"], ["--seconds", "0"], ["--seconds", "nan"], ["--seconds", "x"], ["--what", "x"], ["--exempt"],
])  # fmt: skip
def test_wrong_options_start_nothing(tmp_path: Path, words: list[str]) -> None:
    done = hook(tmp_path / "s", *words)
    assert done.returncode == 1
    (said,) = done.stderr.decode().splitlines()
    assert "the hook of the container has wrong options" in said


@pytest.mark.parametrize("kind", ["link", "fifo", "hard link", "directory", "large"])
def test_the_record_is_written_into_nothing_of_anybody_else(tmp_path: Path, kind: str) -> None:
    other, record = tmp_path / "other", tmp_path / "unheld"
    other.write_text("precious")
    if kind == "link":
        record.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(record)
    elif kind == "hard link":
        record.hardlink_to(other)
    elif kind == "directory":
        record.mkdir()
    else:
        record.write_bytes(b"x" * start_hook.MOST_UNHELD)
    done = hook(tmp_path / "s")
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert other.read_text() == "precious"
    if kind == "large":
        assert record.stat().st_size == start_hook.MOST_UNHELD
