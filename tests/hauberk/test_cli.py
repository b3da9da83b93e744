# SPDX-License-Identifier: Apache-2.0
"""The front door: help, wrong verbs, completion, start-up time."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from hauberk.cli import VERBS, main, usage
from hauberk.verbs.completion import candidates

ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).parent / "hauberk"


def test_every_verb_has_a_module_with_a_parser_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert {path.stem for path in (ROOT / "hauberk/verbs").glob("*.py")} - {"__init__"} == set(VERBS)
    for verb in VERBS:
        assert verb in usage()
        with pytest.raises(SystemExit) as caught:
            main([verb, "--help"])
        assert caught.value.code == 0
        assert f"usage: hauberk {verb}" in capsys.readouterr().out


def test_wrong_verb_is_told_and_a_near_one_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["summry"]) == 2
    assert "did you mean `summary`?" in capsys.readouterr().err


def test_help_takes_less_than_100_ms() -> None:
    taken = []
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([PROGRAM, "--help"], capture_output=True, check=True)
        taken.append(time.perf_counter() - started)
    assert b"Usage: hauberk VERB" in done.stdout
    # The best of five: the machine may be busy with other tests.
    assert min(taken) < 0.1


def test_completion_knows_verbs_and_options() -> None:
    assert "summary" in candidates([""])
    assert "--namespace" in candidates(["get", "--"])
    assert "wide" in candidates(["get", "-o", ""])
    assert candidates(["nonsense", ""]) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    assert "hauberk completion --words" in script


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("hauberk 0.")


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(f"{PROGRAM} --help | head -1", shell=True, capture_output=True, check=True)
    assert done.stderr == b""
