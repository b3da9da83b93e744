# SPDX-License-Identifier: Apache-2.0
"""Whose a behaviour is: the inventory as a table from cgroup (or namespace pair) to identity, per node.

A container's cgroup answers first: it holds with shared pid namespaces and host-pid pods. Without cgroup v2 (cgroup 0) the
namespace pair answers. `find` says None when the answer may still come; it never guesses host for what may be a container.
Ended containers stay for late events. Neighbours: `processors.parking` (waits for a None), `schemas.identity`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Annotated, Final

import msgspec

from policy.cluster_facts import ClusterFacts
from policy.cluster_peers import ClusterPeers
from processors.called import Called, CalledSettings
from schemas.behaviour import Behaviour
from schemas.expand import PEERS
from schemas.identity import Identity, Kind, decode
from schemas.telemetry import FROM_DNS, NOBODY, RemotePeer

ROOT_CGROUP: Final = 1
"""Inode of the cgroup2 root directory (kernfs root id)."""

_CONTAINER_PATH: Final = re.compile(r"[0-9a-f]{64}|libpod|kubepods|docker|containerd|crio|lxc|garden")
"""By feel: a cgroup path that looks like a container runtime made it; only such a cgroup is waited for on a known node."""

_CONTAINER_ID: Final = re.compile(r"[0-9a-f]{64}")

_PATHS: Final = 65536
"""Cgroups of a node whose paths are remembered, and asked for."""

Place = tuple[int, int, int]
"""cgroup, pid namespace, mount namespace: where a behaviour happened, as far as identity goes."""


class InventorySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long the inventory remembers."""

    keep_ended: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=315_360_000, description="Seconds an ended container is kept after its tombstone.", examples=[60.0]
        ),
    ] = 60.0


class _Node:
    """What is known of one node."""

    __slots__ = ("asked", "by_cgroup", "by_namespaces", "by_path", "host", "paths", "unknown")

    def __init__(self) -> None:
        self.host: Identity | None = None
        self.by_cgroup: dict[int, Identity] = {}
        self.by_namespaces: dict[tuple[int, int], Identity] = {}
        self.by_path: dict[str, Identity] = {}
        self.paths: dict[int, str] = {}
        # Cgroups whose path was not known when somebody asked whose they are, the oldest question first.
        self.asked: dict[int, None] = {}
        self.unknown: dict[Place, Identity] = {}


class Inventory:
    """The table. `epoch` grows with every change, so that a cache can tell whether its answers may be old."""

    def __init__(
        self,
        settings: InventorySettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        called: CalledSettings | None = None,
    ) -> None:
        self._settings = settings or InventorySettings()
        self._clock = clock
        self._facts = ClusterFacts()
        self._peers = ClusterPeers()
        self.called = Called(self.owner, called)
        self._nodes: dict[str, _Node] = {}
        self._by_key: dict[bytes, Identity] = {}
        self._ended: dict[bytes, tuple[float, Identity]] = {}
        self.epoch = 0
        self.on_change: Callable[[], None] = lambda: None
        """Called with each change, before a frame is judged by it."""

    def __len__(self) -> int:
        return len(self._by_key)

    def apply(self, key: bytes, value: bytes | None) -> None:
        """One record of `inventory.v1`; None is a tombstone. Raises DecodeError."""
        self.forget_ended()
        identity = self._facts.identity(key, None if value is None else decode(value))
        if identity is not None:
            self._put(key, identity)
            return
        gone = self._by_key.pop(key, None)
        if gone is not None:
            self._ended[key] = (self._clock() + self._settings.keep_ended, gone)

    def apply_fact(self, key: bytes, value: bytes | None) -> None:
        """One record of `cluster.v1`; None is a tombstone. Raises DecodeError."""
        for changed, identity in self._facts.fact(key, value):
            self._put(changed, identity)
        self._peers.fact(key, value)

    def peer(self, identity: Identity, behaviour: Behaviour, unix_ns: int) -> RemotePeer:
        """Who the other side of what `identity` did was at that time: as the cluster says, else what it called the address itself."""
        if behaviour.operation not in PEERS or not behaviour.address:
            return NOBODY
        found = self._peers.peer(behaviour.address, unix_ns / 1e9) if self._peers else None
        if found is None:
            name = self.called.name(identity, behaviour, unix_ns)
            return RemotePeer(FROM_DNS + name) if name else NOBODY
        owner = f"{found.owner.ref}/{found.owner.name}" if found.owner.name else ""
        return RemotePeer(found.name, found.namespace, owner)

    def _put(self, key: bytes, identity: Identity) -> None:
        old = self._by_key.get(key)
        if old is None and key in self._ended:
            old = self._ended.pop(key)[1]
        if old is not None:
            self._remove(old)
        self._by_key[key] = identity
        self._add(identity)
        self._changed()

    def _changed(self) -> None:
        self.epoch += 1
        self.on_change()

    def forget_ended(self) -> None:
        """Drop containers whose time after the tombstone is over. No new epoch: what was answered stays true."""
        now = self._clock()
        while self._ended:
            key, (deadline, identity) = next(iter(self._ended.items()))
            if deadline > now:
                return
            del self._ended[key]
            self._remove(identity)
            self.on_change()

    def learn_cgroups(self, node: str, paths: dict[int, str]) -> None:
        """Paths of cgroups as the kernel announced them; nested ones are attributed by their path. A new epoch only for those
        that were asked for before: thousands of new ones must not have everything else looked at again."""
        known = self._node(node)
        table = known.paths
        for cgroup, path in paths.items():
            if path and table.get(cgroup) != path:
                table[cgroup] = path
                if cgroup in known.asked:
                    del known.asked[cgroup]
                    self._changed()
        while len(table) > _PATHS:
            del table[next(iter(table))]

    def find(self, node: str, behaviour: Behaviour) -> Identity | None:
        """Whose `behaviour` is; None when that is not known yet, or only in part."""
        known = self._nodes.get(node)
        if known is None:
            return None
        found = known.by_cgroup.get(behaviour.cgroup)
        if found is not None and found.complete:
            return found
        place = (behaviour.cgroup, behaviour.pid_ns, behaviour.mnt_ns)
        found = self._lookup(known, place)
        if found is not None and found.complete:
            return found
        given_up = known.unknown.get(place)
        return given_up if given_up is None or found is None else found

    def give_up(self, node: str, behaviour: Behaviour) -> Identity:
        """The time to wait is over: what can be said of whose it is. Further `find`s of that place answer the same, until
        the inventory says more."""
        known = self._node(node)
        place = (behaviour.cgroup, behaviour.pid_ns, behaviour.mnt_ns)
        identity = self._lookup(known, place)
        if identity is None:
            path = known.paths.get(behaviour.cgroup, "")
            if behaviour.cgroup == ROOT_CGROUP:
                identity = self.node_identity(node)
            elif path and not _CONTAINER_PATH.search(path):
                uid = f"cgroup-{behaviour.cgroup}"
                identity = Identity(
                    kind=Kind.HOST, node=node, uid=uid, cgroups=(behaviour.cgroup,), cgroup_path=path, complete=False
                )
            else:
                identity = _unknown(node, behaviour, path)
        known.unknown[place] = identity
        while len(known.unknown) > 16384:
            del known.unknown[next(iter(known.unknown))]
        self._changed()
        return identity

    def node_identity(self, node: str) -> Identity:
        """The node itself, also when the inventory has not told of it."""
        known = self._nodes.get(node)
        return known.host if known and known.host else Identity(kind=Kind.NODE, node=node, uid=node)

    def owner(self, node: str, cgroup: int) -> Identity | None:
        """The container or host cgroup with this id; None when it is not known."""
        known = self._nodes.get(node)
        if known is None:
            return None
        return known.by_cgroup.get(cgroup) or self._by_ancestor(known, known.paths.get(cgroup, ""))

    def user(self, identity: Identity, uid: int) -> str:
        """Name of `uid` on the node; "" for a container, whose uids are names of its own, and for one nobody named."""
        if identity.kind is Kind.CONTAINER and identity.confirmed:
            return ""
        known = self._nodes.get(identity.node)
        return known.host.users.get(str(uid), "") if known is not None and known.host is not None else ""

    def _lookup(self, known: _Node, place: Place) -> Identity | None:
        cgroup, pid_ns, mnt_ns = place
        found = known.by_cgroup.get(cgroup)
        if found is not None:
            return found
        host = known.host
        if cgroup == 0:
            found = known.by_namespaces.get((pid_ns, mnt_ns))
            if found is not None:
                return found
        elif cgroup == ROOT_CGROUP:
            # The root of the hierarchy holds no container.
            return host
        path = known.paths.get(cgroup, "")
        if not path and cgroup not in known.asked:
            # Not all at once: whose path comes after that would stay nobody's until something else changes.
            if len(known.asked) >= _PATHS:
                del known.asked[next(iter(known.asked))]
            known.asked[cgroup] = None
        found = self._by_ancestor(known, path)
        if found is not None:
            return found
        if host is None or (path and _CONTAINER_PATH.search(path)):
            return None
        # A container always has a mount namespace of its own, so the host's pair is the host.
        return host if host.mnt_ns and (pid_ns, mnt_ns) == (host.pid_ns, host.mnt_ns) else None

    @staticmethod
    def _by_ancestor(known: _Node, path: str) -> Identity | None:
        while path and path != "/":
            found = known.by_path.get(path)
            if found is not None:
                return found
            path = path.rpartition("/")[0]
        return None

    def _node(self, node: str) -> _Node:
        return self._nodes.setdefault(node, _Node())

    def _add(self, identity: Identity) -> None:
        known = self._node(identity.node)
        if identity.kind is Kind.NODE:
            known.host = identity
        for cgroup in identity.cgroups:
            known.by_cgroup[cgroup] = identity
        if identity.kind is not Kind.CONTAINER:
            # What lies under a host cgroup may be a container (`/system.slice/docker-<id>.scope`): only containers have heirs.
            return
        pair = (identity.pid_ns, identity.mnt_ns)
        # Namespace numbers are used again: a living container takes them over, an ended one never does.
        if identity.mnt_ns and (not identity.ended or pair not in known.by_namespaces):
            known.by_namespaces[pair] = identity
        if identity.cgroup_path:
            known.by_path[identity.cgroup_path] = identity

    def _remove(self, identity: Identity) -> None:
        known = self._node(identity.node)
        if known.host is identity:
            known.host = None
        for cgroup in identity.cgroups:
            if known.by_cgroup.get(cgroup) is identity:
                del known.by_cgroup[cgroup]
        if known.by_namespaces.get((identity.pid_ns, identity.mnt_ns)) is identity:
            del known.by_namespaces[identity.pid_ns, identity.mnt_ns]
        if known.by_path.get(identity.cgroup_path) is identity:
            del known.by_path[identity.cgroup_path]


def _unknown(node: str, behaviour: Behaviour, path: str) -> Identity:
    """A container of which only the place is known."""
    cgroup = behaviour.cgroup
    name = _CONTAINER_ID.search(path)
    if name:
        uid = name.group()
    else:
        uid = f"cgroup-{cgroup}" if cgroup else f"namespaces-{behaviour.pid_ns}-{behaviour.mnt_ns}"
    return Identity(
        kind=Kind.CONTAINER,
        node=node,
        uid=uid,
        cgroups=(cgroup,) if cgroup else (),
        cgroup_path=path,
        pid_ns=behaviour.pid_ns,
        mnt_ns=behaviour.mnt_ns,
        complete=False,
        confirmed=False,
        namespace="container_namespace",
    )
