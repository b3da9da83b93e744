# SPDX-License-Identifier: Apache-2.0
"""The process that learns for the page: `python -m hauberk.learner_worker`, a `Task` on its standard input, frames on its output.

The same learner and the same reading of the store as `hauberk discover` with its usual options, so that both give the same policies:
those of containers, then those of the services of nodes. It writes nothing but its output. Neighbour: `hauberk.learner_process`.
"""

from __future__ import annotations

import contextlib
import os
import resource
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

import msgspec

from hauberk.evidence_pods import EvidencePods
from hauberk.learner_process import Task
from hauberk.selected_unseen import CONSEQUENCE, joined, selected
from hauberk.written_policies import selects
from kernel.confinement import end_with_parent, give_up_capabilities
from schemas import socket_names
from schemas.errors import HauberkError
from schemas.operations import Operation
from sinks.web import learnt
from sinks.web.learnt import (
    ApartLine,
    Done,
    Far,
    FoundWorkload,
    LearnFailure,
    LearntLine,
    LearntSheet,
    Peers,
    Remark,
    RuleLine,
    Told,
)

if TYPE_CHECKING:
    from policy.cluster_peers import ClusterPeers
    from policy.learn.learner import LearntPolicy
    from policy.learn.review import ReviewItem
    from policy.learn.rules import LearntRule
    from policy.learn.sightings import Sighting
    from policy.learn.workloads import LearntWorkload
    from policy.ruleset import Ruleset
    from sinks.store.store import Query

S = TypeVar("S")
T = TypeVar("T")

TOLD_EACH: Final = 0.3
"""Seconds between two words on how far it is."""
WORKLOADS_MOST: Final = 2000
_PEERS_OF_ONE: Final = 3
_PEERS_OF_FRAME: Final = 1000
_TALK: Final = frozenset({Operation.CONNECT, Operation.SEND, Operation.ACCEPT})
_INTERNET: Final = frozenset({socket_names.INET, socket_names.INET6})


class Worker:
    """One run. `put` takes each word."""

    def __init__(self, task: Task, out: BinaryIO) -> None:
        self._task = task
        self._out = out
        self._due = 0.0
        self._read = self._done = self._of = self._told = self._left = 0
        self._names: dict[LearntWorkload, set[str]] = {}
        self._pods = EvidencePods()
        self._peers: dict[str, list[str]] = {}

    def run(self) -> None:
        """Everything. HauberkError when the store or the learner refuses."""
        from hauberk.learning import parts_of, selectable
        from policy.learn.learner import learn
        from policy.learn.workloads import workload
        from schemas.errors import PolicyError
        from sinks.store.queries import SqliteReader
        from sinks.store.store import Query

        self.put(Far())
        shadows, peers = self._shadows(), self._cluster()
        facts, there = joined(self._task.facts, self._task.inventory, _readable)
        for kinds in (("container",), ("host", "node")):
            query = Query(kinds=kinds, since=self._task.since)
            reader = SqliteReader(self._task.store)
            try:
                sizes, left_out = selectable(reader.sizes(query))
            finally:
                reader.close()
            if left_out:
                self.put(Remark(text=left_out))
            self._of += len({workload(identity) for identity, _ in sizes})
            for part in parts_of(sizes):
                before = self._done
                asked = msgspec.structs.replace(query, instances=part)

                def done(number: int, of: int, before: int = before) -> None:
                    self._done = before + number
                    self._far()

                try:
                    learnt_now = learn(self._sightings(asked, shadows, peers), done=done)
                except PolicyError as error:
                    # The others are learnt all the same.
                    self.put(Remark(text=str(error)))
                    continue
                unseen = selected(
                    (one for one in learnt_now if one.rules), (identity for identity, _ in sizes), facts, there
                )
                for one in learnt_now:
                    self._tell(one, unseen.get(one.workload.label, ()))
                self._names.clear()
                self._pods = EvidencePods()
        self.tell_peers(self._peers)
        self.put(Done(more=self._left))

    def _tell(self, one: LearntPolicy, unseen: Sequence[str]) -> None:
        if self._told >= WORKLOADS_MOST:
            self._left += 1
        elif one.rules or one.apart:
            self._told += 1
            self.put(learnt.fitting(self._found(one, unseen)))

    def tell_peers(self, names: Mapping[str, Sequence[str]]) -> None:
        """Some at a time: the longest names that there are, all in one frame, would not fit."""
        told = list(names.items())
        for at in range(0, len(told), _PEERS_OF_FRAME):
            self.put(Peers(names={address: tuple(some) for address, some in told[at : at + _PEERS_OF_FRAME]}))

    def put(self, word: Told) -> None:
        """To whoever listens."""
        self._out.write(learnt.frame(word))
        self._out.flush()

    def _far(self) -> None:
        if (now := time.monotonic()) >= self._due:
            self._due = now + TOLD_EACH
            self.put(Far(read=self._read, learnt=self._done, of=self._of))

    def _shadows(self) -> Ruleset | None:
        from hauberk.discovery import shadows
        from policy.documents import from_json
        from policy.ruleset import PostureSettings
        from schemas.errors import PolicyError

        postures = msgspec.json.decode(self._task.postures, type=PostureSettings)
        documents, bad = [], []
        for raw in self._task.policies:
            try:
                documents.append(from_json(raw))
            except PolicyError as error:
                bad.append(str(error))
        if bad:
            are, it = ("policy cannot", "it") if len(bad) == 1 else ("policies cannot", "they")
            self.put(
                Remark(text=f"{len(bad)} {are} be read, and what {it} may have spoken against is learnt: {bad[0]}")
            )
        return shadows(documents, postures)

    def _cluster(self) -> ClusterPeers:
        from policy.cluster_peers import ClusterPeers

        peers = ClusterPeers()
        for key, value in self._task.facts:
            # One bad fact hides no other; `hauberk summary` counts them.
            with contextlib.suppress(HauberkError):
                peers.fact(key, value)
        return peers

    def _sightings(self, query: Query, shadows: Ruleset | None, peers: ClusterPeers) -> Iterator[Sighting]:
        from hauberk.discovery import stored
        from policy.learn.workloads import workload

        known: set[tuple[str, str]] = set()
        for one in stored(self._task.store, query, shadows):
            self._read += 1
            if not self._read % 1024:
                self._far()
            identity = one.identity
            if (key := (identity.node, identity.uid)) not in known:
                known.add(key)
                self._names.setdefault(workload(identity), set()).add(identity.workload)
                self._pods.add(identity)
            if len(peers) and one.behaviour.family in _INTERNET and one.behaviour.operation in _TALK:
                self._name(one, peers)
            yield one

    def _name(self, one: Sighting, peers: ClusterPeers) -> None:
        address = one.behaviour.address
        for at in (one.first, one.last):
            peer = peers.peer(address, at / 1e9)
            if peer is None:
                continue
            names = self._peers.get(address)
            if names is None:
                if len(self._peers) >= learnt.PEERS_MOST:
                    return
                names = self._peers[address] = []
            said = f"{peer.name} in {peer.namespace}" if peer.namespace else peer.name
            if said not in names and len(names) < _PEERS_OF_ONE:
                names.append(said)

    def _found(self, one: LearntPolicy, unseen: Sequence[str]) -> FoundWorkload:
        from hauberk.discovery import rule_text
        from hauberk.written_policies import comment, yaml_text

        newest = max(one.rules, key=lambda rule: rule.evidence.first, default=None)
        known = one.completeness
        line = LearntLine(
            policy=one.name, label=_cell(one.workload.label), workloads=tuple(sorted(self._names.get(one.workload, ()))),
            state=known.state.value, unseen=known.unseen, clean=known.clean, instances=known.instances,
            newest=_cell(rule_text(newest)) if newest is not None else "", newest_at=newest.evidence.first // 10**9 if newest is not None else 0,
            rules=len(one.rules), apart=len(one.apart), behaviours=one.sightings, events=one.events,
        )  # fmt: skip
        text = yaml_text(one.body, comment(one, unseen)) if one.rules else ""
        sheet = LearntSheet(
            policy=one.name, label=line.label, sentence=known.sentence(), selects_unseen=_selects(unseen),
            rules=tuple(self._rule(rule) for rule in one.rules[: learnt.RULES_MOST]), more_rules=max(0, len(one.rules) - learnt.RULES_MOST),
            apart=tuple(_apart(item) for item in one.apart[: learnt.RULES_MOST]), more_apart=max(0, len(one.apart) - learnt.RULES_MOST),
            yaml=text if len(text.encode()) <= learnt.YAML_MOST else "",
        )  # fmt: skip
        return FoundWorkload(line=line, sheet=sheet)

    def _rule(self, rule: LearntRule) -> RuleLine:
        from hauberk.discovery import rule_text

        found = rule.evidence
        pods = [_cell(name) for name in self._pods.of(found.instances)]
        sources = sorted(found.sources)
        return RuleLine(
            rule=_cell(rule_text(rule)), count=found.count, first=found.first // 10**9, last=found.last // 10**9,
            pods=tuple(pods[: learnt.NAMES_MOST]), more_pods=max(0, len(pods) - learnt.NAMES_MOST),
            sources=tuple(map(_cell, sources[: learnt.NAMES_MOST])), more_sources=max(0, len(sources) - learnt.NAMES_MOST),
        )  # fmt: skip


def _apart(item: ReviewItem) -> ApartLine:
    return ApartLine(
        ident=item.ident, reason=item.reason, operation=item.operation, resource=_cell(item.resource), count=item.count,
        first=item.first // 10**9,
    )  # fmt: skip


def _selects(unseen: Sequence[str]) -> str:
    if not unseen:
        return ""
    names = ", ".join(map(_cell, unseen[: learnt.NAMES_MOST]))
    more = len(unseen) - learnt.NAMES_MOST
    return f"{selects(f'{names} and {more} more' if more > 0 else names)}: {CONSEQUENCE}."


def _readable(values: Iterable[S], decode: Callable[[S], T], what: str) -> list[T]:
    """One that cannot be read hides no other; `hauberk discover` counts them."""
    found = []
    for value in values:
        with contextlib.suppress(HauberkError):
            found.append(decode(value))
    return found


def _cell(text: str) -> str:
    from hauberk.output import plain
    from schemas.cell import shortened

    return shortened(str(plain(text)), learnt.TEXT_MOST)


def main() -> int:
    """Exit 0 also when it could not learn: that is said in a frame."""
    task = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Task)
    # Before it reads names that workloads chose.
    end_with_parent(task.parent)
    give_up_capabilities()
    # Made now: later there is no memory for it.
    short = learnt.frame(LearnFailure(
        why=f"expected to learn within {task.memory_bytes} bytes (`page.learn_bytes`, half of the machine's or container's memory at most), it "
        "takes more; raise it, or `hauberk discover -n NAMESPACE` learns a part"
    ))  # fmt: skip
    # Before anything large is made: what learns for a page is the first to go when memory is short, and the last to get the processor.
    resource.setrlimit(resource.RLIMIT_DATA, (task.memory_bytes, task.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):
        os.nice(19)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
    try:
        worker = Worker(task, sys.stdout.buffer)
        try:
            worker.run()
        except HauberkError as error:
            worker.put(LearnFailure(why=str(error)))
    except (MemoryError, SystemError):
        # SystemError: an extension that had no memory, and did not say so.
        os.write(sys.stdout.fileno(), short)
    return 0


if __name__ == "__main__":
    # Whoever listened is gone: nobody is left to be told.
    with contextlib.suppress(BrokenPipeError):
        sys.exit(main())
    os._exit(1)
