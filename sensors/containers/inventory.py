# SPDX-License-Identifier: Apache-2.0
"""The inventory of one node: which identity each cgroup has, published on `inventory` as it changes.

The kernel says that a cgroup was born (`on_cgroup`), its path says which container that is, and the runtime says the rest
a moment later: an identity is published at birth (`complete` False) and again when the runtime has answered. Nothing waits
for a runtime, and an ended container stays known for its late events before its tombstone. `publish` failures keep what
changed for the next attempt. It must never judge, and never block the loop. Neighbours: `containers.contract` (whom it
asks), `containers.cgroups` (what paths mean), the sensor agent (who calls `on_cgroup`).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec

from bus.attempts import Attempts
from bus.backoff import Backoff
from bus.contract import Bus
from bus.rest import until_look
from schemas.errors import HauberkError, Temporary
from schemas.identity import Identity, Kind
from sensors.containers import cgroups, node_identity
from sensors.containers.cgroups import Place
from sensors.containers.changes import IdentityChanges
from sensors.containers.contract import Found, Runtime
from sensors.containers.declared import Declared, WorkloadSettings, stands_for
from sensors.containers.early_answers import EarlyAnswers
from sensors.containers.inner import Inner
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.containers.registry import make
from sensors.containers.starts import Starts
from sensors.containers.stats import InventoryStats
from sensors.containers.symlinks import Symlinks
from sensors.containers.users import Users

FIRST_RETRY = 0.01
"""Seconds until a runtime is asked again about a newborn; doubled up to LAST_RETRY. Docker answers 10-50 ms after mkdir."""
LAST_RETRY = 1.0
MOST_EARLY = (
    16384  # remembered of what was told before the inventory ran; the look at the tree finds what lives of the rest
)
HOST_ANSWER = 1.0  # seconds until an unknown cgroup is the host's: plain runc writes its state after it made the cgroup


class NodeInventory:
    """One node's inventory. `run` until cancelled; everything else belongs to the same event loop."""

    def __init__(
        self, bus: Bus, settings: NodeInventorySettings | None = None, runtimes: Sequence[Runtime] | None = None
    ) -> None:
        self._bus = bus
        self._settings = settings or NodeInventorySettings()
        self.node = self._settings.node or socket.gethostname()
        self._runtimes = [make(one) for one in self._settings.runtimes] if runtimes is None else list(runtimes)
        self._declared = Declared(self._settings.workloads)
        self._mount = cgroups.mount_point()
        self._identities: dict[str, Identity] = {}
        self._uid_of: dict[int, str] = {}
        self._place_of: dict[str, Place] = {}
        self._changes = IdentityChanges(bus, self.node)
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._said = EarlyAnswers()
        self._users = Users()
        self._common: dict[str, Any] = {"node": self.node, "node_id": node_identity.node_id(self.node), "cluster": self._settings.cluster,
                                        "node_labels": self._settings.node_labels}  # fmt: skip
        self._inner = Inner(self._identities.get, self._put)
        self._links = Symlinks(bus)
        self.starts = Starts(self._runtimes, self._links, self._complete, self._started)
        self._looking = False
        self._early: deque[tuple[int, str | None, bool]] | None = deque(maxlen=MOST_EARLY)
        self.ready = asyncio.Event()
        """Set once everything that was running at start has been published."""

    def find(self, cgroup: int) -> Identity | None:
        """The identity of a cgroup id; None for one that nobody told of yet."""
        return self._identities.get(self._uid_of.get(cgroup, ""))

    @property
    def identities(self) -> list[Identity]:
        """Everything known, ended but not yet forgotten included."""
        return list(self._identities.values())

    @property
    def stats(self) -> InventoryStats:
        """The counts as of now."""
        return InventoryStats(
            identities=len(self._identities),
            runtimes_away=sum(bool(runtime.status) for runtime in self._runtimes),
            links_late=self._links.late,
            misread=len(self._changes.misread),
        )

    @property
    def status(self) -> list[str]:
        """One sentence for each runtime that is there and cannot be read."""
        return [runtime.status for runtime in self._runtimes if runtime.status] + self._inner.warnings

    def on_cgroup(self, id_: int, path: str | None, gone: bool) -> None:
        """The kernel made or removed a cgroup. `path`: in the cgroup2 hierarchy, None when the kernel did not say.
        Before `run` it only waits its turn, and may be called from the thread that opens the sensor."""
        if self._early is not None:
            self._early.append((id_, path, gone))
        elif gone:
            self._gone(id_)
        elif path is None:
            # Asked for many at once when the agent starts: one look at the tree answers all.
            if id_ not in self._uid_of and not self._looking:
                self._looking = True
                asyncio.get_running_loop().call_soon(self._look)
        else:
            self._born(id_, "/" + path.strip("/"))

    async def run(self) -> None:
        """Publish who is here, then every change, until cancelled."""
        await self._links.load()
        try:
            before = await node_identity.read_back(self._bus, self.node)
        except Temporary:
            before = None  # `_read_back_late` asks again; who is here is kept for the bus meanwhile
        self._put(self._node_identity())
        early, self._early = self._early or (), None
        for told in early:
            self.on_cgroup(*told)
        tasks = [asyncio.create_task(self._changes.run())]
        try:
            for runtime in self._runtimes:
                await self._listed(runtime)
            self._rescan()
            self._end_left_over(before or [])
            await self._changes.flush()
            self.ready.set()
            tasks += [asyncio.create_task(self._watch(runtime)) for runtime in self._runtimes]
            tasks.append(asyncio.create_task(self._links.follow(lambda: self.identities, self._put)))
            if before is None:
                tasks.append(asyncio.create_task(self._read_back_late()))
            while True:
                ended, _ = await asyncio.wait(
                    tasks, timeout=until_look(self._settings.rescan_seconds), return_when="FIRST_COMPLETED"
                )
                for task in ended:  # one that failed is for whoever runs us
                    task.result()
                    tasks.remove(task)
                self._rescan()
        finally:
            self.starts.close()
            tasks += self._asking.values()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _end_left_over(self, before: list[Identity]) -> None:
        left = node_identity.left_over(before, self._identities)
        self._identities |= {uid: one for uid, one in left.items() if one}
        self._changes.put_first({uid: one for uid, one in left.items() if uid not in self._changes.waiting})

    async def _read_back_late(self) -> None:
        """The bus was away at the start: end those who left once it says who they were."""
        attempts = Attempts("the inventory", Backoff(max_seconds=5.0), drain_seconds=0.0)
        self._end_left_over(await attempts.insist(lambda: node_identity.read_back(self._bus, self.node)))

    def _born(self, id_: int, path: str) -> None:
        if id_ in self._uid_of:
            return
        nested = self._nested_in(path)
        place = nested or cgroups.parse(path)
        if nested is None and (declared := self._declared.find(path)) is not None:
            self._workload(declared, id_, path)
        elif place is not None:
            self._container(place, id_, path)
        elif self._settings.host_cgroups and path != "/" and not cgroups.is_parent(path):
            self._host(id_, path, sure=cgroups.is_host(path) or not self._runtimes)

    def _host(self, id_: int, path: str, *, sure: bool) -> None:
        uid = f"cgroup-{id_}"
        self._uid_of[id_] = uid
        self._put(Identity(kind=Kind.HOST, uid=uid, cgroups=(id_,), cgroup_path=path, complete=sure, started=time.time(),
                           links=self._links.host, **self._common))  # fmt: skip
        if not sure:
            self._ask(uid, Place("", path), HOST_ANSWER)

    def _workload(self, declared: WorkloadSettings, id_: int, path: str) -> None:
        said = stands_for(declared, id_, path, self._node_identity())
        pid_ns, mnt_ns = cgroups.namespaces(cgroups.first_pid(self._mount, path) or 1)
        self._uid_of[id_] = said.uid
        self._place_of[said.uid] = Place(said.uid, path, said.runtime)
        namespace = said.namespace or self._settings.container_namespace
        self._put(msgspec.structs.replace(said, namespace=namespace, pid_ns=pid_ns, mnt_ns=mnt_ns, started=time.time()))
        self._links.ask()

    def _look(self) -> None:
        self._looking = False
        for id_, path in cgroups.scan(self._mount):
            self._born(id_, path)

    def _nested_in(self, path: str) -> Place | None:
        return next((place for place in self._place_of.values() if path.startswith(f"{place.path}/")), None)

    def _container(self, place: Place, id_: int, cgroup_path: str) -> None:
        known = self._identities.get(place.id)
        if known is not None and known.confirmed and not known.ended and place.path != known.cgroup_path:
            # The id of a container that lives elsewhere: a name that anybody may give a cgroup of his own.
            self._host(id_, cgroup_path, sure=True)
            return
        own = cgroups.cgroup_id(self._mount, place.path) or id_
        self._place_of[place.id] = place
        self._uid_of |= {own: place.id, id_: place.id}
        if known is None:
            namespace = "" if place.pod_uid else self._settings.container_namespace
            known = self._said.of(node_identity.newborn(place, namespace, **self._common))
        if known.cgroups[:1] == (own,) and not known.ended:
            self._inner.add(known, id_)
        else:
            ids = tuple(dict.fromkeys((own, *known.cgroups, id_)))
            self._put(msgspec.structs.replace(known, cgroups=ids, cgroup_path=place.path, ended=0.0))
        if not self._identities[place.id].complete or known.ended:
            self._ask(place.id, place, self._settings.answer_seconds)

    def _gone(self, id_: int) -> None:
        known = self.find(id_)
        # An inner cgroup ends nobody; late events may still name it.
        if known and not known.ended and (known.kind is not Kind.CONTAINER or known.cgroups[0] == id_):
            self._end(known)

    def _end(self, known: Identity) -> None:
        said = self._said.forget(known.uid)
        # Nobody said who it was: the question stays, for its runtime may still know.
        if (known.complete or said) and (task := self._asking.pop(known.uid, None)):
            task.cancel()
        # What its runtime said of it before its first process ran is all there will be.
        complete = known.complete or said
        self._put(msgspec.structs.replace(
            known, ended=time.time(), root_pid=0, complete=complete, confirmed=known.confirmed or said, starting=False
        ))  # fmt: skip

    # -- what the runtimes tell

    async def _listed(self, runtime: Runtime) -> None:
        try:
            for found in await runtime.list():
                known = self._identities.get(found.id)
                # The runtimes are asked in order: the first that knows it says it.
                if known is None or not known.complete:
                    self._complete(found, await self._links.of(found.id, found.root_pid))
        except HauberkError:
            return  # `status` says it; cgroup paths still tell the containers

    async def _watch(self, runtime: Runtime) -> None:
        def changed(id_: str, ended: bool) -> None:
            known = self._identities.get(id_)
            if not ended:
                place = self._place_of.get(id_, Place(id_, "", runtime.name))
                self._ask(id_, place, self._settings.answer_seconds, again=True)
            elif known and not known.ended and not cgroups.first_pid(self._mount, known.cgroup_path):
                self._end(known)

        await runtime.watch(changed)

    def _ask(self, uid: str, place: Place, seconds: float, again: bool = False) -> None:
        if not self._runtimes or (uid in self._asking and not again):
            return
        if task := self._asking.pop(uid, None):
            task.cancel()
        self._asking[uid] = asyncio.create_task(self._asked(uid, place, seconds))

    async def _asked(self, uid: str, place: Place, seconds: float) -> None:
        deadline, pause = time.monotonic() + seconds, FIRST_RETRY
        while time.monotonic() < deadline:
            for runtime in self._runtimes:
                try:
                    found = await runtime.describe(place)
                except HauberkError:
                    continue
                if found is None:
                    continue
                found = self.starts.known(found)
                if not (found.root_pid or found.cgroup_path):
                    if self._hear(found):
                        self._asking.pop(uid, None)
                        return
                    continue
                # Its links come first: what it does before they are known would be judged without them.
                if self._complete(found, await self._links.of(found.id, found.root_pid)):
                    self._asking.pop(uid, None)
                    return
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_RETRY)
        self._asking.pop(uid, None)
        known = self._identities.get(uid)
        if known is not None and not known.complete:
            # Nobody answers for it: what the cgroup path says is all there will be, and its events must not wait for more.
            # In doubt it is the host's, whose links then are its own.
            links = known.links or (self._links.host if known.doubtful else {})
            self._put(msgspec.structs.replace(known, complete=True, links=links))

    def _started(self, uid: str) -> None:
        """Its own program runs now, or it ended before that."""
        known = self._identities.get(uid)
        if known is not None and known.starting:
            self._put(msgspec.structs.replace(known, starting=False))
            if not known.ended:
                self._ask(uid, self._place_of[uid], self._settings.answer_seconds, again=True)

    def _hear(self, found: Found) -> bool:
        self._said.hear(found)
        known = self._identities.get(found.id)
        if known is None or known.complete:
            return False
        named = msgspec.structs.replace(self._said.of(known), complete=bool(known.ended), confirmed=bool(known.ended))
        if named != known:
            self._put(named)
        if known.ended:
            self._said.forget(found.id)
        return bool(known.ended)

    def _was_host(self, uid: str, id_: int) -> None:
        """What looked like the host's was a container's: the provisional identity goes, in front of the real one."""
        provisional = self._uid_of.get(id_, uid)
        if provisional == uid or self._identities.pop(provisional, None) is None:
            return
        if (task := self._asking.pop(provisional, None)) and task is not asyncio.current_task():
            task.cancel()
        # It may have been put a moment ago and not be told yet: its end must be what is told.
        self._changes.put_first({provisional: None})

    def _complete(self, found: Found, links: dict[str, str]) -> bool:
        """Take in an answer; False when its process is not in a cgroup of its own yet."""
        path = found.cgroup_path or cgroups.of_pid(found.root_pid)
        place = cgroups.parse(path)
        own = place.path if place is not None and place.id == found.id else path
        id_ = cgroups.cgroup_id(self._mount, own)
        if own in ("", "/") or not id_ or (place is not None and place.id != found.id):
            return False
        before = self._identities.get(found.id)
        self._said.forget(found.id)
        self._place_of[found.id] = place or Place(found.id, own, found.runtime)
        if before is not None and before.doubtful and before.cgroup_path not in ("", own):
            # Who took this name before its owner did is somebody else; the next look at the tree says who.
            for other in before.cgroups:
                self._uid_of.pop(other, None)
            before = None
        cgroup_ids = dict.fromkeys((id_, *(before.cgroups if before else ())))
        for seen in cgroup_ids:
            self._was_host(found.id, seen)
            self._uid_of[seen] = found.id
        namespace = self._settings.container_namespace
        identity = node_identity.described(found, tuple(cgroup_ids), own, namespace, links=links,
                                     pod_cgroup=cgroups.pod_cgroup(self._mount, own), starting=found.id in self.starts, **self._common)  # fmt: skip
        if identity != before:
            self._put(identity)
        return True

    def _node_identity(self) -> Identity:
        settings, users, links = self._settings, self._users.names, self._links.host
        made = node_identity.identity(self.node, self._common["node_id"], self._mount, settings.node_labels, users=users, links=links,
                                cluster=settings.cluster, linked_set=self._links.linked_set)  # fmt: skip
        self._uid_of[made.cgroups[0]] = made.uid
        return made

    def _rescan(self) -> None:
        """What the kernel's records did not tell: cgroups made before us or lost in a full ring; and what may be forgotten."""
        if self._users.changed():
            self._put(self._node_identity())
        seen = dict(cgroups.scan(self._mount))
        for id_, path in seen.items():
            self._born(id_, path)
        for id_ in [id_ for id_ in self._uid_of if id_ not in seen]:
            self._gone(id_)
            self._inner.gone(id_, self.find(id_), self._uid_of)
        old = time.time() - self._settings.linger_seconds
        for uid in [uid for uid, one in self._identities.items() if 0 < one.ended <= old]:
            self._forget(self._identities[uid])
        for identity in [one for one in self._identities.values() if len(one.cgroups) > 1 and not one.ended]:
            if (alive := self._inner.alive(identity, seen, self._uid_of)) != identity.cgroups:
                self._put(msgspec.structs.replace(identity, cgroups=alive))

    def _forget(self, identity: Identity) -> None:
        del self._identities[identity.uid]
        self._links.forget(identity.uid)
        self._place_of.pop(identity.uid, None)
        for id_ in [id_ for id_ in identity.cgroups if self._uid_of.get(id_) == identity.uid]:
            del self._uid_of[id_]
        self._changes.put(identity.uid, None)

    def _put(self, identity: Identity) -> None:
        self._identities[identity.uid] = identity
        self._changes.put(identity.uid, identity)
