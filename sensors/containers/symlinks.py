# SPDX-License-Identifier: Apache-2.0
"""What the paths that policies name really are inside each container: `/bin/sh` is `/usr/bin/dash`, as the kernel will tell it.

Follows `policies` as a broadcast reader and takes every absolute path that stands anywhere in a specification; what it means
there is the policy's business. Resolved in the root of the container's mount namespace, through O_PATH only, so
nothing is opened, read or waited for, and no link leads out. A thread for each look, within a time: a root that hangs costs
its own links and one thread. What a container's links were when it was first looked at stands until it is started
anew, so that its workload cannot move a rule by moving a link; the host's are looked up again every minute. Neighbours:
`roots` (one root), `inventory` (who publishes), `schemas.links` (which keys).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import msgspec

from bus.contract import Bus, Record
from bus.follow import Changes, Follower
from bus.interruptible import Signal
from bus.rest import until_look
from schemas.decoding import decoder
from schemas.errors import DecodeError, Temporary
from schemas.identity import Identity, Kind
from schemas.links import asked
from schemas.policy_set_mark import PolicySetMark
from schemas.topics import POLICIES
from sensors.containers import cgroups
from sensors.containers.roots import Root

log = logging.getLogger(__name__)

MOST: Final = 8192
"""Paths looked up in each root, of all policies together; the rest is left as it is written, and said."""
WITHIN: Final = 0.25
"""Seconds for one root; 8192 lookups take about 0.1 s. What is not done by then is done `LATE_AGAIN` later."""
LATE_AGAIN: Final = 5.0
"""Seconds after which a root that was late is looked at again: the machine was busy, or the root hangs and will be late again."""
HOST_AGAIN: Final = 60.0
"""Seconds after which the host's links are looked up again: packages are installed while it runs."""
EMPTY_AGAIN: Final = 1.0
"""Seconds after which a container without a process, or in our own root, is looked at again."""
EMPTY_LATER: Final = 5.0
"""The same when it has been so for `EMPTY_YOUNG` seconds: it may stay so for ever."""
EMPTY_YOUNG: Final = 15.0
_HOST: Final = ""
DEEPEST: Final = 32
"""Nesting of a specification that is searched; the schema's own is 6."""


_document = decoder(dict[str, Any], "a policy", msgspec.json)


def named(value: bytes) -> frozenset[str]:
    """The keys that a policy record asks for; none for a record that is no JSON object."""
    try:
        spec = _document(value).get("spec")
    except DecodeError:
        return frozenset()
    return frozenset(key for text in _texts(spec, DEEPEST) for key in asked(text))


def _texts(value: Any, deep: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif deep and isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner, deep - 1)


class Symlinks:
    """`of` for a container that was just described, `follow` for everybody when policies change. `host`: links of the host's root.

    `late`: roots that did not answer in time, since start. `linked_set`: mark of the policies whose paths were looked up
    everywhere; `hauberk apply --wait` waits for it. Everything but the lookups belongs to the event loop.
    """

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._named: dict[bytes, frozenset[str]] = {}
        self._keys: tuple[str, ...] = ()
        self._known: dict[str, tuple[int, dict[str, str]]] = {}
        self._stuck: dict[int, threading.Thread] = {}
        self._unsettled: dict[str, float] = {}
        self._wake = Signal()
        self._host_at = self._due = 0.0
        self._missed = math.inf
        self._set = PolicySetMark()
        self.host: dict[str, str] = {}
        self.late = 0
        self.linked_set = ""

    async def load(self) -> None:
        """Read the policies there are. Before the first identity is published, so that it is whole."""
        try:
            newest = await self._bus.latest(POLICIES)
        except Temporary:
            return  # `follow` reads them again
        self._named = {key: named(record.value or b"") for key, record in newest.items()}
        self._mark(newest.values(), whole=True)
        self._count()

    def ask(self) -> None:
        """Somebody new came without links: look at everybody again soon. What is known costs nothing."""
        self._wake.set()

    async def of(self, uid: str, pid: int, below: str = "") -> dict[str, str]:
        """The links of the root that host process `pid` lives in, or of the one at `below` that it will change to; those that were found
        first for `uid` stand."""
        found, settled = await self._of(uid, pid, below)
        if pid and not settled:
            self.ask()  # a runtime may tell of a process before it has changed its root
        return found

    async def _of(self, uid: str, pid: int, below: str = "") -> tuple[dict[str, str], bool]:
        if not pid or not self._keys:
            # Without paths to look for, who is there does not matter.
            return {}, not self._keys
        before, known = self._known.get(uid, (pid, {}))
        if before != pid:
            known = {}
        missing = [key for key in self._keys if key not in known]
        settled = True
        if missing:
            fresh, own = await self._look(pid, missing, below)
            known = known | fresh
            settled = own or uid == _HOST
            if settled:
                self._known[uid] = (pid, known)
                if len(fresh) < len(missing):
                    self.late += 1
                    self._missed = min(self._missed, time.monotonic() + LATE_AGAIN)
        return {key: real for key in self._keys if (real := known.get(key, key)) != key}, settled

    def forget(self, uid: str) -> None:
        """`uid` has ended."""
        self._known.pop(uid, None)
        self._unsettled.pop(uid, None)

    async def follow(self, identities: Callable[[], Iterable[Identity]], put: Callable[[Identity], None]) -> None:
        """Keep the links of all `identities` as the policies need them; `put` those that changed. Ends by cancelling only.

        Names of a policy that vanished without a deletion are looked up on: plans made of it stay in force too."""

        async def apply(changes: Changes) -> None:
            moved = self._take([record for _, record in changes.records], changes.whole)
            due = time.monotonic() > min(self._due, self._missed)
            if moved or due or changes.whole or self._wake.is_set():
                await self._all(identities, put)
            elif changes.records:
                self._linked(self._set.text, identities, put)

        await Follower(self._bus, (POLICIES,), retry_permanent=False).run(apply, wait=self._wait, wake=self._wake)

    def _wait(self) -> float:
        """Seconds until a look is due."""
        return min(until_look(), max(0.2, min(self._due, self._missed) - time.monotonic()))

    def _take(self, records: list[Record], whole: bool) -> bool:
        """Whether other paths are named now."""
        for record in records:
            if record.value is None:
                self._named.pop(record.key, None)
            else:
                self._named[record.key] = named(record.value)
        self._mark(records, whole)
        return bool(records) and self._count()

    def _mark(self, records: Iterable[Record], whole: bool) -> None:
        if whole:
            self._set = PolicySetMark()
        for record in records:
            self._set.take(record.key.decode("utf-8", "replace"), record.value)

    def _linked(
        self, policy_set: str, identities: Callable[[], Iterable[Identity]], put: Callable[[Identity], None]
    ) -> None:
        """Say, after everything else, that the paths of the policies of this mark were looked up."""
        self.linked_set = policy_set
        for one in list(identities()):
            if one.kind is Kind.NODE and one.linked_set != self.linked_set:
                put(msgspec.structs.replace(one, linked_set=self.linked_set))

    def _count(self) -> bool:
        keys = sorted(frozenset().union(*self._named.values()))
        if len(keys) > MOST:
            log.warning("policies name %d paths, links of the first %d are followed; the others are matched as written",
                        len(keys), MOST)  # fmt: skip
        before, self._keys = self._keys, tuple(keys[:MOST])
        return self._keys != before

    async def _all(self, identities: Callable[[], Iterable[Identity]], put: Callable[[Identity], None]) -> None:
        self._wake.clear()
        policy_set = self._set.text
        self._missed = math.inf
        now = time.monotonic()
        if now >= self._host_at + HOST_AGAIN or not self._host_at:
            self._host_at = now
            self._known.pop(_HOST, None)
        self.host, _ = await self._of(_HOST, 1)
        self._due = self._host_at + HOST_AGAIN
        mount = cgroups.mount_point()
        found: dict[str, dict[str, str]] = {}
        for one in list(identities()):
            if one.kind is not Kind.CONTAINER:
                found[one.uid] = self.host
            elif one.complete and not one.ended:
                pid = one.root_pid or cgroups.first_pid(mount, one.cgroup_path)
                found[one.uid], settled = await self._of(one.uid, pid)
                if settled:
                    self._unsettled.pop(one.uid, None)
                else:
                    young = now - self._unsettled.setdefault(one.uid, now) < EMPTY_YOUNG
                    self._due = min(self._due, now + (EMPTY_AGAIN if young else EMPTY_LATER))
        for one in list(identities()):
            # As it is by now: it may have ended or been described anew while its root was looked at.
            if not one.ended and one.links != (links := found.get(one.uid, one.links)):
                put(msgspec.structs.replace(one, links=links))
        self._linked(policy_set, identities, put)

    async def _look(self, pid: int, keys: list[str], below: str) -> tuple[dict[str, str], bool]:
        before = self._stuck.get(pid)
        if before is not None and before.is_alive():
            return {}, True
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[tuple[dict[str, str], bool]] = loop.create_future()
        deadline = time.monotonic() + WITHIN

        def tell(found: tuple[dict[str, str], bool]) -> None:
            if not answer.done():
                answer.set_result(found)

        def work() -> None:
            found = _look(pid, keys, deadline, below)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found)

        # A daemon, and no executor's: a root that hangs must not hold up the end of this process.
        thread = threading.Thread(target=work, name="links", daemon=True)
        thread.start()
        try:
            async with asyncio.timeout(WITHIN * 2):
                return await answer
        except TimeoutError:
            # One thread for each root that hangs, at most.
            self._stuck = {one: other for one, other in self._stuck.items() if other.is_alive()} | {pid: thread}
            return {}, True


def _look(pid: int, keys: list[str], deadline: float, below: str) -> tuple[dict[str, str], bool]:
    """What was found in time, and whether the root is another than ours."""
    found: dict[str, str] = {}
    own = False
    try:
        with Root(pid, below) as root:
            own = root.other()
            for key in keys:
                if time.monotonic() > deadline:
                    break
                found[key] = root.real(key)
    except OSError:
        return {}, False  # it ended
    return found, own
