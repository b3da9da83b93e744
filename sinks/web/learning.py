# SPDX-License-Identifier: Apache-2.0
"""When the learner runs for the page, and what is kept of its answer.

Only while somebody asks; never twice at a time; again when the store has changed, and not before twenty times what it took have
passed. The answer of before stays until the next one is whole. Neighbours: `learnt` (the words), `page` (asks).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import zlib
from collections.abc import AsyncIterator, Callable
from typing import Final, Protocol

import msgspec

from schemas.errors import HauberkError
from sinks.web.learnt import Done, Far, FoundWorkload, LearnFailure, LearntLine, Peers, Remark, Told

AGAIN_SECONDS: Final = 60.0
SHARE: Final = 20.0
"""Learning that took t seconds is not begun again for twenty times t: a twentieth of a core at most, while somebody looks."""
LONGEST_SECONDS: Final = 1800.0
LINES_MOST: Final = 1000


class Learner(Protocol):
    """Who learns. `changed`: a value that differs once the store does, made without reading it. `learn`: the words of one run; closing
    it ends the run."""

    def changed(self) -> object: ...

    def learn(self) -> AsyncIterator[Told]: ...


class LearntStates(msgspec.Struct, frozen=True, kw_only=True):
    """The list. `learning`: a run is under way, and `far` says how far. `at`: when the answer was begun (Unix seconds), 0: there is none
    yet; `took`: its seconds. `same`: it is the one that the asker has, so its lines and peers are left out. `why`: what the last run failed of. `more`: workloads that are not listed. `cut`: workloads whose rules are
    not kept."""

    learning: bool
    far: Far
    at: int
    took: float
    same: bool
    why: str
    lines: tuple[LearntLine, ...]
    peers: dict[str, tuple[str, ...]]
    remarks: tuple[str, ...]
    more: int
    cut: int


class _Answer:
    def __init__(self, at: float) -> None:
        self.at = at
        self.took = 0.0
        self.lines: list[LearntLine] = []
        self.sheets: dict[str, bytes] = {}
        self.peers: dict[str, tuple[str, ...]] = {}
        self.remarks: list[str] = []
        self.more = self.cut = self.kept = 0

    def put(self, found: FoundWorkload, most: int) -> None:
        if len(self.lines) >= LINES_MOST:
            self.more += 1
            return
        self.lines.append(found.line)
        body = zlib.compress(msgspec.json.encode(found.sheet), 6)
        if self.kept + len(body) > most:
            self.cut += 1
            return
        self.kept += len(body)
        self.sheets[found.line.policy] = body


class Learning:
    """`look()` for the list, `sheet(policy)` for one of it, `await close()`. `kept_bytes`: of all sheets, compressed."""

    def __init__(self, learner: Learner, kept_bytes: int, clock: Callable[[], float] = time.time) -> None:
        self._learner = learner
        self._kept_bytes = kept_bytes
        self._clock = clock
        self._running: asyncio.Task[None] | None = None
        self._answer: _Answer | None = None
        self._far = Far()
        self._why = ""
        self._seen: object = None
        self._due = 0.0
        self.runs = 0

    @property
    def kept_bytes(self) -> int:
        """Of the answer that is kept now."""
        return self._answer.kept if self._answer is not None else 0

    def look(self, known: int | None = None) -> LearntStates:
        """What is known now; `known`: the `at` of the answer that the asker has. Begins a run when one is due."""
        if self._running is None and time.monotonic() >= self._due:
            seen = self._learner.changed()
            if seen != self._seen or self._why:
                self._seen = seen
                self._far = Far()
                self._running = asyncio.create_task(self._run(), name="learning")
        answer = self._answer or _Answer(0.0)
        same = int(answer.at) == known
        return LearntStates(
            learning=self._running is not None, far=self._far, at=int(answer.at), took=round(answer.took, 1), same=same, why=self._why,
            lines=() if same else tuple(answer.lines), peers={} if same else answer.peers, remarks=tuple(answer.remarks), more=answer.more, cut=answer.cut,
        )  # fmt: skip

    def sheet(self, policy: str) -> bytes | None:
        """The rules and the text of one policy, as JSON; None when there is none of that name or it is not kept."""
        body = self._answer.sheets.get(policy) if self._answer is not None else None
        return zlib.decompress(body) if body is not None else None

    async def close(self) -> None:
        """End the run that is under way."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running

    async def _run(self) -> None:
        answer = _Answer(self._clock())
        started = time.monotonic()
        self.runs += 1
        why = "expected an answer of the learner, it ended without one"
        words = self._learner.learn()
        try:
            async with asyncio.timeout(LONGEST_SECONDS):
                async for one in words:
                    match one:
                        case Far():
                            self._far = one
                        case FoundWorkload():
                            answer.put(one, self._kept_bytes)
                        case Peers():
                            answer.peers |= one.names
                        case Remark():
                            answer.remarks.append(one.text)
                        case LearnFailure():
                            why = one.why
                        case Done():
                            answer.more += one.more
                            why = ""
        except TimeoutError:
            why = f"expected to learn within {LONGEST_SECONDS:.0f} s, it took longer; `hauberk discover -n NAMESPACE` learns a part"
        except HauberkError as error:
            why = str(error)
        finally:
            closing = getattr(words, "aclose", None)
            if closing is not None:
                await closing()
            answer.took = time.monotonic() - started
            self._due = time.monotonic() + max(AGAIN_SECONDS, SHARE * answer.took)
            self._why = why
            if not why:
                self._answer = answer
            self._running = None
