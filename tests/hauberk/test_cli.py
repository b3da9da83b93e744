# SPDX-License-Identifier: Apache-2.0
"""The front door: help, wrong verbs, completion, start-up time."""

import contextlib
import os
import resource
import signal
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


def test_the_old_name_of_a_verb_is_accepted_and_reported(capsys: pytest.CaptureFixture[str]) -> None:
    assert "enforcer" not in usage()
    with pytest.raises(SystemExit) as caught:
        main(["enforcer", "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr()
    assert "usage: hauberk planner" in shown.out
    assert shown.err == "hauberk: the verb `enforcer` is now `planner`; the old name ends with version 0.3\n"


def test_help_costs_at_most_as_much_again_as_a_start_of_python() -> None:
    """Processor time beside that of the interpreter alone, on whatever machine; `make bench` measures the clock's."""

    def taken(*command: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert b"Usage: hauberk VERB" in subprocess.run([PROGRAM, "--help"], capture_output=True, check=True).stdout
    python, program = [], []
    # Once is enough to show that it can: a cold page cache and a shared core only ever add to it.
    while len(program) < 5 or (min(program) >= 2 * min(python) and len(program) < 50):
        python.append(taken(sys.executable, "-c", "pass"))
        program.append(taken(str(PROGRAM), "--help"))
    assert min(program) < 2 * min(python)


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


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a process namespace: needs root")
def test_a_stop_of_the_first_process_of_a_container_can_be_swallowed_by_no_import() -> None:
    # An import may catch what is raised in its midst, as those of optional packages do.
    program = """
import os, signal, sys
from hauberk import cli

def run(words):
    try:
        os.kill(1, signal.SIGTERM)
        for _ in range(1000):
            pass
    except BaseException:
        pass
    return 0

cli._run = run
sys.exit(cli.main([]))
"""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-c", program], check=False, timeout=60
    )
    assert done.returncode == 128 + signal.SIGTERM


@pytest.mark.skipif(os.geteuid() != 0, reason="makes a process namespace: needs root")
def test_the_first_process_of_a_container_can_be_stopped_before_a_verb_listens() -> None:
    # `policy check` of a pipe that says nothing stands for any verb that has not got so far.
    words = [
        sys.executable,
        "-c",
        "from hauberk.cli import main; import sys; sys.exit(main(['policy', 'check', '-f', '-']))",
    ]
    with subprocess.Popen(
        ["unshare", "--pid", "--fork", "--kill-child", *words], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as outside:  # fmt: skip
        children = Path(f"/proc/{outside.pid}/task/{outside.pid}/children")
        try:
            deadline = time.monotonic() + 60
            while outside.poll() is None and time.monotonic() < deadline:
                for child in children.read_text().split():
                    # Before the interpreter runs our first line nothing can be heard: asked again until it is.
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(child), signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    outside.wait(0.2)
            assert outside.poll() == 128 + signal.SIGTERM
        finally:
            outside.kill()
