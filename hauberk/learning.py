# SPDX-License-Identifier: Apache-2.0
"""The summary store to learnt policies, a part of its workloads at a time and on every processor: what `hauberk discover` waits for.

A part is as many workloads as have `ROWS` stored behaviours, and more only where one workload has more or policies must be judged together
(`policy.learn.together`), so that memory is bounded by the parts that are learnt at once and not by the store. Where there are several
parts each processor has a child that takes the next one whenever it is free and sends the policies back; a child that fails or dies is no loss, for its parts are
learnt here then, and what went wrong is raised here.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Final

import msgspec

from hauberk.output import printable
from hauberk.progress_line import ProgressLine
from policy.learn.components import forget_names
from policy.learn.documents import namespace_of
from policy.learn.evidence import NOBODY
from policy.learn.learner import Done, LearnSettings, LearntPolicy, learn
from policy.learn.together import together
from policy.text.values import label_name
from schemas.cell import shortened
from schemas.identity import Identity, Kind

if TYPE_CHECKING:
    from policy.learn.sightings import Sighting
    from policy.text.codes import Code

ROWS: Final = 50_000
"""Of a part: about 100 MB while it is learnt."""

_TURNS: Final = 1024
"""Numbers of four bytes that any pipe holds: the least is one page."""

Instances = frozenset[tuple[str, str]]
"""(node, uid) of each."""
Read = Callable[[Instances], Iterator["Sighting"]]


def learn_store(
    sizes: Iterable[tuple[Identity, int]], read: Read, settings: LearnSettings, *, evidence: bool, looks: bool = True
) -> list[LearntPolicy]:
    """The policies of everybody in `sizes`, each with how many rows it has stored, in order of workload. `read` gives the sightings of some.
    `evidence`: the policies keep what they were learnt from, for which they are all learnt here. `looks`: their rules keep which
    instances needed them, which of thousands of instances is most of what an answer weighs."""
    parts = parts_of(sizes)
    learning = ProgressLine(
        lambda number, seconds: f"{number:,} workloads learnt in {seconds:.0f} s", "hauberk discover"
    )
    workers = 1 if evidence else min(len(parts), len(os.sched_getaffinity(0)))
    found: dict[int, list[LearntPolicy]] = {}
    try:
        if workers > 1:
            for number, policies in _children(parts, workers, read, settings, looks):
                found[number] = policies
                learning.tell(sum(map(len, found.values())))
        for number, part in enumerate(parts):
            if number not in found:
                done = sum(map(len, found.values()))
                found[number] = _learnt(part, _told(read), settings, _after(learning, done), evidence, looks)
    finally:
        learning.clear()
    every = [one for policies in found.values() for one in policies]
    return sorted(every, key=lambda one: one.workload)


def _told(read: Read) -> Read:
    def told(some: Instances) -> Iterator[Sighting]:
        line = ProgressLine(
            lambda rows, seconds: f"{rows:,} stored behaviours read in {seconds:.0f} s", "hauberk discover"
        )
        return line.of(read(some))

    return told


def _after(learning: ProgressLine, before: int) -> Done:
    return lambda number, of: learning.tell(before + number)


def selectable(sizes: Iterable[tuple[Identity, int]]) -> tuple[list[tuple[Identity, int]], str]:
    """Those that a policy can be for, and a sentence on the others: a container in a namespace that Kubernetes refuses. Whoever starts one by
    hand chooses its labels, and with them that; it must not stop the learning of all others. Or one without a namespace, as a cgroup that is
    named like a container's has while no runtime tells of it."""
    kept: list[tuple[Identity, int]] = []
    out: list[str] = []
    nowhere = 0
    fits: dict[str, bool] = {}
    for identity, rows in sizes:
        if identity.kind is Kind.CONTAINER and not fits.setdefault(identity.namespace, _fits(identity.namespace)):
            if identity.namespace:
                out.append(identity.namespace)
            else:
                nowhere += 1
        else:
            kept.append((identity, rows))
    said = []
    if nowhere:
        has = "container has" if nowhere == 1 else "containers have"
        said.append(f"{nowhere} {has} no namespace that is known, and no policy")
    if out:
        are = "container is in a namespace" if len(out) == 1 else "containers are in namespaces"
        have = "has" if len(out) == 1 else "have"
        name = printable(shortened(min(out)))
        said.append(f"{len(out)} {are} that Kubernetes refuses (`{name}`), and {have} no policy")
    return kept, "; ".join(said)


def _fits(namespace: str) -> bool:
    faults: list[str] = []

    def say(code: Code, message: str, *, expected: str = "", suggestion: str = "") -> None:
        faults.append(message)

    label_name(namespace_of(namespace), say)
    return not faults


def parts_of(sizes: Iterable[tuple[Identity, int]]) -> list[Instances]:
    """Who is learnt in one go."""
    rows = {(identity.node, identity.uid): (identity, number) for identity, number in sizes}
    parts: list[list[tuple[str, str]]] = []
    held = ROWS
    for some in together(identity for identity, _ in rows.values()):
        keys = [(one.node, one.uid) for one in some]
        size = sum(rows[key][1] for key in keys)
        if held + size > ROWS:
            parts.append([])
            held = 0
        parts[-1] += keys
        held += size
    return [frozenset(part) for part in parts]


def _learnt(
    part: Instances, read: Read, settings: LearnSettings, done: Done, evidence: bool, looks: bool
) -> list[LearntPolicy]:
    with _uncollected():
        found = learn(read(part), settings, done)
    if not looks:
        for one in found:
            for rule in one.rules:
                rule.evidence.instances = NOBODY
    return found if evidence else [msgspec.structs.replace(one, evidence=()) for one in found]


@contextmanager
def _uncollected() -> Iterator[None]:
    """What is learnt from is a million small objects without circles: looking for circles in them again and again took a quarter of the
    time. Those that automata leave are taken at the end."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        forget_names()
        gc.enable()
        gc.collect()


def _children(
    parts: list[Instances], workers: int, read: Read, settings: LearnSettings, looks: bool
) -> Iterator[tuple[int, list[LearntPolicy]]]:
    forking = multiprocessing.get_context("fork")
    running = []
    ends: list[Connection] = []
    # Whoever is free takes the next: parts of one size do not take the same time, and not every processor is as free as another.
    turns, told = os.pipe()
    try:
        # Some at a time where there are more than a pipe holds.
        step = len(parts) // _TURNS + 1
        os.write(told, b"".join(number.to_bytes(4, "little") for number in range(0, len(parts), step)))
        os.close(told)
        for _ in range(workers):
            mine, its = forking.Pipe(duplex=False)
            ends.append(mine)
            child = forking.Process(
                target=_share, args=(its, ends, turns, step, parts, read, settings, looks), daemon=True
            )
            try:
                child.start()
            except OSError:
                # No more processes may be started (pids.max): what they do not answer is learnt by the caller.
                its.close()
                ends.pop().close()
                break
            its.close()
            running.append(child)
        while ends:
            for end in wait(ends):
                assert isinstance(end, Connection)
                try:
                    yield end.recv()
                except (EOFError, OSError):
                    # OSError: it died with half an answer written.
                    ends.remove(end)
                    end.close()
    finally:
        os.close(turns)
        for end in ends:
            end.close()
        for child in running:
            child.terminate()
            child.join()


def _share(
    end: Connection,
    ends: list[Connection],
    turns: int,
    step: int,
    parts: list[Instances],
    read: Read,
    settings: LearnSettings,
    looks: bool,
) -> None:
    """In the child: `step` parts from each number on that it reads of `turns`. It says nothing: what fails here is done again, and told, by
    the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Inherited. Open here too, they would keep it writing for good to a parent that was killed.
    for other in ends:
        other.close()
    try:
        while turn := os.read(turns, 4):
            first = int.from_bytes(turn, "little")
            for number, part in enumerate(parts[first : first + step], first):
                end.send((number, _learnt(part, read, settings, lambda one, of: None, False, looks)))
    except Exception:  # noqa: BLE001 - whatever it is, the parent meets it again
        os._exit(1)
