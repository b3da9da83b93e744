# SPDX-License-Identifier: Apache-2.0
"""What is not to be seen does not leave the kernel: classes per container, the host apart, what rules ask about all the same."""

from __future__ import annotations

import asyncio
import copy
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bus.memory import MemoryBus
from enforcers.agent import Enforcement
from enforcers.apply import Applier
from enforcers.plan import Planner
from enforcers.settings import EnforceSettings
from kernel.loading import LoadedPrograms
from policy.ruleset import PostureSettings, compile_ruleset
from schemas import frame as frames
from schemas.enforcement import encode
from schemas.errors import Unavailable
from schemas.identity import Identity, Kind
from schemas.kernel import BEHAVIOUR, SCOPE, Config, DefinitionKind, Loss, ScopeFlag
from schemas.operations import Class, Operation, class_of
from schemas.visibility import bits
from sensors.containers.declared import WorkloadSettings
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.node.rings import RingSettings, RingSource

pytestmark = pytest.mark.kernel

NODE = "n1"
ALL = bits(Class)
NOBODY = PostureSettings(visibility=("none",), host_visibility=("none",))
PROCESS_ONLY = PostureSettings(visibility=("process",), host_visibility=("none",))
CONTAINERS = PostureSettings(host_visibility=("none",))
READS = "file: {matchPaths: [{path: /etc/shadow}]}, action: Audit"
HOST_READS = """---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {name: host}
spec: {nodeSelector: {matchLabels: {kubernetes.io/hostname: "*"}}, file: {matchPaths: [{path: /etc/shadow}]}, action: Audit}
"""
node = Identity(kind=Kind.NODE, node=NODE, uid="node", cgroup_path="/", cgroups=(1,))


class Eyes:
    """The rings, and what leaves the kernel through them."""

    def __init__(self, loaded: LoadedPrograms) -> None:
        self._loaded = loaded
        self._source = RingSource(loaded.pin_dir, NODE, "r", RingSettings(fold="never"))
        self._source.observe()
        # Rows of tests before this one: what they mean went when nobody read.
        while self._source.finish():
            self._source.release()
        self._lost = self.undefined = 0
        self._lost = self.lost()

    def _batches(self, settle: bool) -> Iterator[Any]:
        # Bounded: a machine whose host is watched never falls silent.
        for _ in range(20):
            batch = self._source.drain()
            yield batch
            self._source.release()
            if not batch:
                break
        if settle:
            yield self._source.finish()
            self._source.release()

    def _drain(self, settle: bool = True) -> list[tuple[int, Operation, bytes]]:
        """What was reported since the last look; `settle`: whoever is asked about does nothing now."""
        found = []
        for frame in (frame for batch in self._batches(settle) for frame in batch.frames):
            known = {(kind, ident): body for ident, kind, body in frames.definitions(frame.definitions)}
            for ident in memoryview(frame.occurrences).cast("Q")[1::8].tolist():
                body = known.get((DefinitionKind.BEHAVIOUR, ident))
                if body is None:
                    self.undefined += 1  # told at this very moment, by somebody else
                    continue
                operation = Operation(int.from_bytes(body[BEHAVIOUR.offsets["operation"] :][:2], "little"))
                at = BEHAVIOUR.offsets["resource"]
                resource = int.from_bytes(body[at : at + 8], "little")
                text = known.get((DefinitionKind.STRING, resource), b"")
                found.append((int.from_bytes(body[:8], "little"), operation, text))
        return found

    def of(self, *cgroups: Any, settle: bool = True) -> set[Class]:
        """The classes of which anything was reported since the last look."""
        ids = {one.id for one in cgroups}
        return {class_of(operation) for cgroup, operation, _ in self._drain(settle) if cgroup in ids}

    def opens(self, cgroup: Any, path: bytes, settle: bool) -> int:
        """How often `path` was opened in `cgroup` since the last look."""
        return sum(one == (cgroup.id, Operation.OPEN, path) for one in self._drain(settle))

    def lost(self) -> int:
        """Rows that found the ring full, since it was opened."""
        with self._loaded.map("losses") as losses:
            return losses.sum_u64(struct.pack("=I", Loss.OCCURRENCES_FULL)) - self._lost

    def scope(self, ident: int) -> tuple[int, int, ScopeFlag, int] | None:
        with self._loaded.map("scopes") as scopes:
            value = scopes.get(struct.pack("=Q", ident))
        if value is None:
            return None
        table, owner, flags, visible = SCOPE.struct.unpack(value)
        return table, owner, ScopeFlag(flags), visible

    def visible(self, cgroup: Any) -> int:
        """Bits of the scope, -1 when the cgroup has none."""
        found = self.scope(cgroup.id)
        return found[3] if found else -1

    def said(self, which: Config) -> int:
        with self._loaded.map("config") as config:
            return config.sum_u64(struct.pack("=I", which))

    def say(self, which: Config, bits: int) -> None:
        with self._loaded.map("config") as config:
            config.put(struct.pack("=I", which), struct.pack("=Q", bits))

    def close(self) -> None:
        self._source.close()


@pytest.fixture
def eyes(loaded: LoadedPrograms, unwatch: Callable[[LoadedPrograms], None]) -> Iterator[Eyes]:
    """Nothing but what plans ask for is watched, before and after."""
    # Strictly before the first look: a host that is watched never falls silent.
    unwatch(loaded)
    one = Eyes(loaded)
    try:
        yield one
    finally:
        one.close()
        unwatch(loaded)


@pytest.fixture
def act(server: int) -> Callable[[Any], None]:
    """Something of every class, inside a cgroup: exec, open, connect."""

    def do(box: Any) -> None:
        assert box.run("/bin/cat", "/etc/hostname") == 0
        assert box.connect(server) == "ok"

    return do


async def seen(eyes: Eyes, act: Any, box: Any) -> set[Class]:
    eyes.of(box)
    acting = asyncio.create_task(asyncio.to_thread(act, box))
    found: set[Class] = set()
    # Looked at meanwhile: where the whole host is watched, the small ring must not fill while it acts.
    while not acting.done():
        found |= eyes.of(box, settle=False)
        await asyncio.sleep(0.005)
    await acting
    return found | eyes.of(box)


async def test_only_the_visible_classes_leave_the_kernel(
    house: Any, eyes: Eyes, act: Any, new_cgroup: Any, identity: Any
) -> None:
    box = new_cgroup()
    async with house(PROCESS_ONLY) as one:
        await one.know(node, identity(box))
        await one.until(lambda: eyes.visible(box) == 1 << Class.PROCESS | 1 << Class.SYSCALL)
        await one.settled()
        found = await seen(eyes, act, box)
        assert Class.PROCESS in found
        assert not found & {Class.FILE, Class.NETWORK}
        # To be watched is not to be enforced.
        assert eyes.scope(box.id) == (0, 0, ScopeFlag.CONTAINER, bits({Class.PROCESS, Class.SYSCALL}))
        assert (one.agent.receipt.scopes, one.agent.receipt.rules, one.agent.applier.enforced) == (0, 0, {})


async def test_what_a_rule_asks_about_is_seen_in_its_scope_alone(
    house: Any, eyes: Eyes, act: Any, new_cgroup: Any, identity: Any, ksp: Any
) -> None:
    ruled, other = new_cgroup(), new_cgroup()
    async with house(PROCESS_ONLY) as one:
        await one.know(node, identity(ruled), identity(other, labels={"app": "other"}))
        await one.until(lambda: eyes.visible(other) >= 0 and eyes.visible(ruled) >= 0)
        await one.apply(ksp("audit", READS))
        await one.until(lambda: eyes.visible(ruled) >> Class.FILE & 1)
        await one.settled()
        assert Class.FILE in (found := await seen(eyes, act, ruled))
        assert Class.NETWORK not in found
        assert not await seen(eyes, act, other) & {Class.FILE, Class.NETWORK}
        assert one.agent.applier.enforced == {}
        await one.delete(ksp("audit", READS))
        await one.until(lambda: not eyes.visible(ruled) >> Class.FILE & 1)
        await one.settled()
        assert Class.FILE not in await seen(eyes, act, ruled)


async def test_annotations_flip_it(house: Any, eyes: Eyes, act: Any, new_cgroup: Any, identity: Any) -> None:
    box = new_cgroup()
    async with house(PROCESS_ONLY) as one:
        await one.know(node)
        for namespace, pod, expected in (
            (None, None, {Class.PROCESS}), ("network", None, {Class.NETWORK}), ("network", "file", {Class.FILE}),
            ("file", "none", set()), (None, None, {Class.PROCESS}),
        ):  # fmt: skip
            key = "kubearmor-visibility"
            outer, inner = ({key: text} if text is not None else {} for text in (namespace, pod))
            await one.know(identity(box, namespace_annotations=outer, annotations=inner))
            wanted = bits(expected | ({Class.SYSCALL} if Class.PROCESS in expected else set()))
            await one.until(lambda wanted=wanted: eyes.visible(box) == wanted)
            await one.settled()
            assert await seen(eyes, act, box) - {Class.SYSCALL} == expected, (namespace, pod)


async def test_the_host_off_and_containers_on(house: Any, eyes: Eyes, act: Any, new_cgroup: Any, identity: Any) -> None:
    box, service = new_cgroup(), new_cgroup()  # both run before anything is known
    inner = Path(box.full, "inner")
    inner.mkdir()
    child = os.stat(inner).st_ino
    # As a sensor that has just started: everything is watched until a plan says otherwise.
    eyes.say(Config.HOST_VISIBILITY, ALL)
    try:
        async with house(CONTAINERS) as one:
            await one.know(node, identity(box), identity(service, kind=Kind.HOST, namespace="", labels={}))
            await one.until(lambda: eyes.visible(box) == ALL)
            # Narrowed strictly after the containers' scopes are written, so that there is no gap.
            await one.until(lambda: eyes.said(Config.HOST_VISIBILITY) == 0)
            await one.settled()
            assert await seen(eyes, act, box) >= {Class.PROCESS, Class.FILE, Class.NETWORK}
            assert await seen(eyes, act, service) == set()
            # A cgroup below is seen as the container is.
            assert eyes.scope(child) is None
            below = copy.copy(box)
            below.full, below.id = str(inner), child
            assert await seen(eyes, act, below) >= {Class.PROCESS, Class.FILE, Class.NETWORK}
            # What is born is watched until it is known whose it is.
            assert eyes.said(Config.NEW_VISIBILITY) == ALL
            late, session = new_cgroup(), new_cgroup()
            assert eyes.scope(session.id) == (0, 0, ScopeFlag.FRESH, ALL)
            await one.know(identity(session, kind=Kind.HOST, namespace="", labels={}), identity(late))
            await one.until(lambda: eyes.visible(session) == -1)
            await one.until(lambda: (eyes.scope(late.id) or (0, 0, ScopeFlag.FRESH))[2] == ScopeFlag.CONTAINER)
            await one.settled()
            assert await seen(eyes, act, session) == set()
            # The container ends: nothing is left of it.
            await one.forget(identity(box))
            await one.until(lambda: eyes.visible(box) == -1)
            await one.settled()
            assert await seen(eyes, act, box) == set()
    finally:
        inner.rmdir()


async def test_host_rules_widen_what_the_host_reports(
    house: Any, eyes: Eyes, act: Any, new_cgroup: Any, identity: Any
) -> None:
    service = new_cgroup()
    async with house(NOBODY) as one:
        await one.know(node, identity(service, kind=Kind.HOST, namespace="", labels={}))
        await one.until(lambda: one.agent.receipt)
        await one.settled()
        assert await seen(eyes, act, service) == set()
        await one.apply(HOST_READS)
        await one.until(lambda: eyes.said(Config.HOST_VISIBILITY) == 1 << Class.FILE)
        await one.settled()
        assert await seen(eyes, act, service) == {Class.FILE}
        await one.delete(HOST_READS)
        await one.until(lambda: eyes.said(Config.HOST_VISIBILITY) == 0)
        await one.settled()
        assert await seen(eyes, act, service) == set()


async def test_by_default_no_container_needs_a_scope(house: Any, eyes: Eyes, new_cgroup: Any, identity: Any) -> None:
    box = new_cgroup()
    async with house() as one:
        await one.know(node, identity(box))
        await one.until(lambda: one.agent.plan and one.agent.plan.host_visibility == ALL)
        await one.until(lambda: eyes.said(Config.NEW_VISIBILITY) == ALL)
        assert one.agent.plan.scopes == ()
        await one.until(lambda: eyes.visible(box) == -1)


async def test_the_saved_plan_says_what_is_watched_without_the_bus(
    pin_dir: str, eyes: Eyes, act: Any, new_cgroup: Any, identity: Any, tmp_path: Path
) -> None:
    box = new_cgroup()
    plan = Planner(compile_ruleset([], PROCESS_ONLY)).plan(NODE, [node, identity(box)], 1)
    (tmp_path / "plan.msgpack").write_bytes(encode(plan))
    bus = MemoryBus()
    for call in ("subscribe", "publish"):
        bus.fail(Unavailable("the broker is away", retry_after=0.01), call=call, times=10_000)
    # Without any backend too: to watch is not to enforce.
    agent = Enforcement(bus, pin_dir, NODE, EnforceSettings(state_dir=str(tmp_path), backends=()))
    task = asyncio.create_task(agent.run())
    try:
        await asyncio.wait_for(agent.ready.wait(), 60)
        found = await seen(eyes, act, box)
    finally:
        agent.stop()
        await asyncio.wait_for(task, 60)
    assert found - {Class.SYSCALL} == {Class.PROCESS}


async def test_a_declared_workload_is_watched_from_the_inventory_on(
    house: Any, eyes: Eyes, act: Any, new_cgroup: Any, ksp: Any
) -> None:
    box = new_cgroup()
    declared = WorkloadSettings(name="job", cgroup=box.path, namespace="shop", labels={"app": "web"})
    async with house(NOBODY) as one:
        inventory = NodeInventory(one.bus, NodeInventorySettings(node=NODE, workloads=(declared,), runtimes=()))
        task = asyncio.create_task(inventory.run())
        try:
            await one.apply(ksp("audit", READS))
            await one.until(lambda: eyes.visible(box) == 1 << Class.FILE)
            await one.settled()
            assert await seen(eyes, act, box) == {Class.FILE}
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def test_a_switch_of_settings_leaves_no_gap(pin_dir: str, eyes: Eyes, new_cgroup: Any, identity: Any) -> None:
    """Files of a container are seen under both settings, so at every moment between them too."""
    box = new_cgroup()
    both = PostureSettings(host_visibility=("file",), visibility=("file",))
    apart = PostureSettings(host_visibility=("none",), visibility=("file",))
    plans = [Planner(compile_ruleset([], one)).plan(NODE, [node, identity(box)], 1) for one in (both, apart)]
    applier = Applier(pin_dir, NODE, grace=0.0)
    applier.apply(plans[0])
    reader = box.start("/bin/sh", "-c", "i=0; while [ $i -lt 8000 ]; do : < /etc/hostname; i=$((i+1)); done")
    opened = 0
    try:
        while True:
            over = reader.poll() is not None
            for plan in plans * 3:
                applier.apply(plan)
            # The whole host's opens lie in this small ring too: it is emptied on the way.
            opened += eyes.opens(box, b"/etc/hostname", settle=over)
            if over:
                break
    finally:
        reader.kill()
        reader.wait(60)
        applier.clear()
        applier.close()
    assert reader.returncode == 0
    assert opened + eyes.lost() + eyes.undefined >= 8000
    assert opened > 1000
