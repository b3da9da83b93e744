# SPDX-License-Identifier: Apache-2.0
"""The children that learn parts of a store: they end with whoever waits for them, and one that dies while it answers is no loss."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hauberk.learning
from policy.learn.learner import LearnSettings
from schemas.identity import Identity, Kind

LARGE = 1 << 20
"""Bytes of an answer: more than a pipe takes, so that who writes it waits for who reads it."""

PARENT = f"""
import multiprocessing, sys
import hauberk.learning
hauberk.learning._learnt = lambda *_: [bytes({LARGE})]
going = hauberk.learning._children([frozenset({{("n", str(number))}}) for number in range(6)], 2, None, None, False)
next(going)
print(*[one.pid for one in multiprocessing.active_children()], flush=True)
sys.stdin.read()
"""


def state(pid: int) -> str:
    """R, S, Z, ...; "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def soon(what: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 30
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def test_they_end_when_the_parent_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        children = [int(word) for word in parent.stdout.readline().split()]
        assert len(children) == 2
        parent.kill()
        parent.wait()
    try:
        assert soon(lambda: not any(state(one) not in ("", "Z") for one in children)), [state(one) for one in children]
    finally:
        for one in children:
            if state(one) not in ("", "Z"):
                os.kill(one, signal.SIGKILL)


def test_those_that_die_within_an_answer_are_no_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Any = [bytes(LARGE)]
    monkeypatch.setattr("hauberk.learning._learnt", lambda *_: found)
    parts = [frozenset({("n", str(number))}) for number in range(6)]
    going = hauberk.learning._children(parts, 2, lambda _: iter(()), LearnSettings(), False)
    first, _ = next(going)
    children = [one.pid or 0 for one in multiprocessing.active_children()]
    assert soon(lambda: [state(one) for one in children] == ["S", "S"]), "each waits with half an answer written"
    for one in children:
        os.kill(one, signal.SIGKILL)
    assert first not in [number for number, _ in going]


def test_where_no_process_can_be_started_nothing_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    start = multiprocessing.context.ForkProcess.start

    def full(child: Any) -> None:
        if started:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        started.append(child)
        start(child)

    monkeypatch.setattr("hauberk.learning._learnt", lambda *_: [])
    monkeypatch.setattr("multiprocessing.context.ForkProcess.start", full)
    parts = [frozenset({("n", str(number))}) for number in range(6)]
    answers = dict(hauberk.learning._children(parts, 2, lambda _: iter(()), LearnSettings(), False))
    assert sorted(answers) == [0, 1, 2, 3, 4, 5], "the one that was started takes all"
    assert multiprocessing.active_children() == []


def test_who_is_free_takes_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_first(part: frozenset[tuple[str, str]], *_: Any) -> Any:
        if ("n", "0") in part:
            signal.sigwait({signal.SIGUSR1})
        return [os.getpid()]

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        monkeypatch.setattr("hauberk.learning._learnt", slow_first)
        parts = [frozenset({("n", str(number))}) for number in range(7)]
        by: dict[int, Any] = {}
        for number, (pid,) in hauberk.learning._children(parts, 2, lambda _: iter(()), LearnSettings(), False):
            by[number] = pid
            if len(by) == 6:
                assert 0 not in by, "the other has done all that was left"
                for child in multiprocessing.active_children():
                    os.kill(child.pid or 0, signal.SIGUSR1)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    assert len(by) == 7
    assert len(set(by.values())) == 2


def test_more_parts_than_a_pipe_holds_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hauberk.learning._TURNS", 3)
    monkeypatch.setattr("hauberk.learning._learnt", lambda *_: [])
    parts = [frozenset({("n", str(number))}) for number in range(10)]
    answers = dict(hauberk.learning._children(parts, 2, lambda _: iter(()), LearnSettings(), False))
    assert sorted(answers) == list(range(10))


def test_containers_without_a_namespace_are_told_as_that() -> None:
    """A cgroup named like a container's that no runtime knew; its namespace is not one that Kubernetes refuses."""
    named, unknown, refused = (
        (Identity(kind=Kind.CONTAINER, node="n1", uid=name, container_name=name, namespace=name), 1)
        for name in ("shop", "", "<")
    )
    assert hauberk.learning.selectable([named, unknown, refused]) == (
        [named],
        "1 container has no namespace that is known, and no policy; "
        "1 container is in a namespace that Kubernetes refuses (`<`), and has no policy",
    )
