# SPDX-License-Identifier: Apache-2.0
"""`-` in the place of a policy file, as into a pod by `kubectl exec -i`: in every verb that takes files, once, and never for nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
POLICY = ROOT / "examples/policies/host-audit-shadow.yaml"
PAST = ("--since", "9999d")
TESTS = """\
- name: the host reads it
  event: {Operation: File, Resource: /etc/shadow, Data: "syscall=SYS_OPENAT", HostName: x, Result: Passed}
  expect: {action: Audit}
"""


@pytest.fixture(scope="module")
def kept(make_hauberk: Callable[..., Any]) -> Any:
    """A state with behaviours of a recording, and one policy on the bus."""
    made = make_hauberk()
    made.sinks = [{"type": "store", "path": str(made.state / "summary.db")}]
    done = made.replay("-f", str(POLICY))
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize(
    "words",
    [
        "check",
        "check -f",
        "test -f",
        "explain -f",
        "lint -f",
        f"backtest {' '.join(PAST)} -f",
        f"diff {' '.join(PAST)} bus:",
    ],
)
def test_every_policy_verb_reads_it_as_it_reads_the_file(kept: Any, words: str) -> None:
    file = kept("policy", *words.split(), str(POLICY))
    piped = kept("policy", *words.split(), "-", stdin=POLICY.read_text())
    assert (piped.returncode, piped.stdout.replace("<stdin>", str(POLICY))) == (file.returncode, file.stdout)
    assert file.returncode == 0, file.stderr


def test_beside_a_policy_file_it_is_tests_or_an_event(kept: Any) -> None:
    done = kept("policy", "test", "-f", str(POLICY), "--tests", "-", stdin=TESTS)
    assert (done.returncode, "the host reads it" in done.stdout) == (0, True), done.stderr
    event = '{"Operation": "File", "Resource": "/etc/shadow", "Data": "syscall=SYS_OPENAT", "HostName": "x", "Result": "Passed"}'
    for given in ("-", "@-"):
        done = kept("policy", "explain", "-f", str(POLICY), "--event", given, stdin=event)
        assert (done.returncode, "Audit" in done.stdout) == (0, True), done.stderr


@pytest.mark.parametrize(
    "words",
    ["check - -", "test -f - --tests -", "test -f - --events -", "explain -f - --event -", "explain -f - --event @-", "diff - -", "diff bus:- -",
     "backtest bus:- -f -"],
)  # fmt: skip
def test_given_twice_it_is_refused(kept: Any, words: str) -> None:
    """The second would find nothing: tests that were never run would have passed."""
    done = kept("policy", *words.split(), stdin=POLICY.read_text())
    assert (done.returncode, done.stdout) == (2, "")
    assert "expected `-` once, for what is on standard input, got it 2 times; name a file for the others" in done.stderr


@pytest.mark.parametrize(
    "words",
    ["policy check -", "policy backtest -f -", "policy diff bus: bus:-", "policy backtest bus:-", "apply -f -", "delete -f -", "discover --merge -"],
)  # fmt: skip
def test_nothing_on_it_is_no_answer(kept: Any, words: str) -> None:
    """`kubectl exec` without `-i` gives none of it to the command: `diff` would say that nothing changes."""
    done = kept(*words.split(), stdin="\n")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "expected policies on standard input, got nothing; " in done.stderr
    assert "`kubectl exec -i`" in done.stderr


def test_closed_it_is_one_sentence(kept: Any) -> None:
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" policy check - <&-', kept.program], env=kept.environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "hauberk policy: expected policies on standard input, it is closed; give it with `< FILE`\n"
