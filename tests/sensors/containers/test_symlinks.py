# SPDX-License-Identifier: Apache-2.0
"""Links in identities: of Docker containers, of declared workloads in a root of their own, of the host, as policies come and go."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus
from bus.embedded.settings import EmbeddedSettings
from bus.memory import MemoryBus, MemorySettings
from schemas.identity import Identity, Kind
from schemas.links import asked
from schemas.topics import POLICIES
from sensors.containers import cgroups, symlinks
from sensors.containers.declared import WorkloadSettings
from sensors.containers.docker import DockerSettings
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.containers.symlinks import named


def policy(name: str, *paths: str) -> Record:
    spec = {"process": {"matchPaths": [{"path": path} for path in paths]}}
    value = {"kind": "KubeArmorHostPolicy", "metadata": {"name": name}, "spec": spec}
    return Record(f"KubeArmorHostPolicy//{name}".encode(), json.dumps(value).encode())


@asynccontextmanager
async def running(bus: MemoryBus, **settings: Any) -> AsyncIterator[NodeInventory]:
    inventory = NodeInventory(bus, NodeInventorySettings(node="n1", answer_seconds=60.0, **settings))
    task = asyncio.create_task(inventory.run())
    try:
        async with asyncio.timeout(60):
            await inventory.ready.wait()
        yield inventory
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("/bin/sh", {"/bin/sh", "/bin/"}),
        ("/bin/", {"/bin/"}),
        ("//bin/./sh", {"/bin/sh", "/bin/"}),
        ("/bin/*sh", {"/bin/*sh", "/bin/"}),
        ("/srv/**/x", {"/srv/**/x", "/srv/**/", "/srv/"}),
        ("/", set()),
        ("/proc/self/exe", set()),
        ("bin/sh", set()),
        ("/a\0b", set()),
        ("/" + "x" * 5000, set()),
    ],
)
def test_what_a_path_asks_for(text: str, keys: set[str]) -> None:
    assert set(asked(text)) == keys


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_any_specification_is_searched(spec: Any) -> None:
    keys = named(json.dumps({"spec": spec}).encode())
    assert all(key.startswith("/") and key != "/" for key in keys)
    assert named(json.dumps({"spec": [spec, {"a": "/x/y"}]}).encode()) >= {"/x/y", "/x/"}


@given(st.binary())
def test_what_is_no_policy_names_nothing(value: bytes) -> None:
    assert isinstance(named(value), frozenset)


async def test_the_host_follows_policies(tmp_path: Path, until: Any) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    bus = MemoryBus(MemorySettings())
    named_path = f"{tmp_path}/link/"
    await bus.publish(POLICIES, [policy("a", named_path + "x")])

    def node() -> Identity:
        return next(one for one in inventory.identities if one.kind is Kind.NODE)

    async with running(bus, runtimes=()) as inventory:
        await until(lambda: node().links == {named_path: f"{tmp_path}/real/"})
        # Cgroups of the machine come and go meanwhile; those of one look are told together.
        await until(lambda: all(one.links == node().links for one in inventory.identities if one.kind is Kind.HOST))
        await bus.publish(POLICIES, [Record(b"KubeArmorHostPolicy//a", None)])
        await until(lambda: node().links == {})


@pytest.mark.containers
@pytest.mark.kernel
async def test_a_container_has_its_links_with_its_first_words(
    dockerd: Any, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # First words wait for the lookup, however slow the machine is.
    monkeypatch.setattr(symlinks, "WITHIN", 30.0)
    bus = MemoryBus(MemorySettings())
    await bus.publish(POLICIES, [policy("a", "/bin/sh", "/bin/busybox", "/opt/none")])
    async with running(bus, runtimes=(DockerSettings(socket=dockerd.socket, timeout_seconds=60.0),)) as inventory:
        id_ = await asyncio.to_thread(dockerd.run, "linked")
        try:
            whole = await until(
                lambda: next((one for one in inventory.identities if one.uid == id_ and one.complete), None)
            )
            assert whole.links == {"/bin/sh": "/bin/busybox"}
            # What its workload does to its links later moves no rule.
            await asyncio.to_thread(
                dockerd.docker, "exec", "linked", "/bin/busybox", "ln", "-sf", "/bin/cat", "/bin/sh"
            )
            await bus.publish(POLICIES, [policy("b", "/bin/ls")])
            expected = {"/bin/sh": "/bin/busybox", "/bin/ls": "/bin/busybox"}
            await until(lambda: next(one for one in inventory.identities if one.uid == id_).links == expected)
        finally:
            await asyncio.to_thread(dockerd.remove, "linked")


@pytest.fixture
def jail(tmp_path: Path, remove_cgroup: Callable[[str], None]) -> Iterator[str]:
    """A cgroup with a process in a root of its own; its path."""
    if os.geteuid() != 0:
        pytest.skip("needs root to make a cgroup")
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "old").mkdir()
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/dash").touch()
    (root / "usr/bin/sh").symlink_to("dash")
    cgroup = Path(f"{cgroups.mount_point()}/hauberk-links-{os.getpid()}-{time.monotonic_ns()}")
    cgroup.mkdir()
    code = 'mount --bind "$0" "$0" && cd "$0" && pivot_root . old && echo && read line'
    child = subprocess.Popen(["unshare", "-m", "sh", "-c", code, root], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdin
    try:
        child.stdout.readline()
        (cgroup / "cgroup.procs").write_text(str(child.pid))
        yield f"/{cgroup.name}"
    finally:
        child.kill()
        child.communicate()
        remove_cgroup(f"/{cgroup.name}")


@pytest.mark.kernel
async def test_a_declared_workload_is_looked_at_in_its_own_root(jail: str, until: Any) -> None:
    bus = MemoryBus(MemorySettings())
    workloads = (WorkloadSettings(name="web", cgroup=jail),)
    async with running(bus, runtimes=(), workloads=workloads) as inventory:
        await bus.publish(POLICIES, [policy("a", "/bin/sh", "/bin/new")])
        expected = {"/bin/sh": "/usr/bin/dash", "/bin/": "/usr/bin/"}
        await until(lambda: any(one.container_name == "web" and one.links == expected for one in inventory.identities))


@pytest.mark.kernel
async def test_a_root_that_was_late_is_looked_at_again(jail: str, until: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(symlinks, "WITHIN", 0.0)
    monkeypatch.setattr(symlinks, "LATE_AGAIN", 0.01)
    bus = MemoryBus(MemorySettings())
    await bus.publish(POLICIES, [policy("a", "/bin/sh")])
    async with running(bus, runtimes=(), workloads=(WorkloadSettings(name="web", cgroup=jail),)) as inventory:
        await until(lambda: inventory._links.late > 1)
        assert all(one.links == {} for one in inventory.identities)
        monkeypatch.setattr(symlinks, "WITHIN", 30.0)
        expected = {"/bin/sh": "/usr/bin/dash", "/bin/": "/usr/bin/"}
        await until(lambda: any(one.container_name == "web" and one.links == expected for one in inventory.identities))


async def test_a_root_that_hangs_costs_nobody_else_its_links(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[int] = []
    over = threading.Event()

    def look(pid: int, keys: list[str], deadline: float, below: str) -> tuple[dict[str, str], bool]:
        asked_for.append(pid)
        if pid == 7:
            over.wait(90)
        return dict.fromkeys(keys, "/real"), True

    monkeypatch.setattr(symlinks, "_look", look)
    monkeypatch.setattr(symlinks, "WITHIN", 0.05)
    bus = MemoryBus(MemorySettings())
    await bus.publish(POLICIES, [policy("a", "/bin/sh")])
    made = symlinks.Symlinks(bus)
    await made.load()
    try:
        while 7 not in asked_for:  # a busy machine may not have begun in time
            assert await made.of("hangs", 7) == {}
        assert await made.of("hangs", 7) == {}
        monkeypatch.setattr(symlinks, "WITHIN", 30.0)
        assert set((await made.of("fine", 8)).values()) == {"/real"}
        assert asked_for == [7, 8]
        # The end of the process waits for none that is left.
        left = [thread for thread in threading.enumerate() if thread.name == "links"]
        assert left
        assert all(thread.daemon for thread in left)
    finally:
        over.set()


async def test_the_names_of_policies_that_a_damaged_table_forgot_are_looked_up_on(tmp_path: Path, until: Any) -> None:
    """Plans made of them stay in force, and would cover less without the links."""
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus")))
    await bus.publish(POLICIES, [policy("a", "/bin/sh"), policy("b", "/bin/ls")])
    made = symlinks.Symlinks(bus)
    task = asyncio.create_task(made.follow(lambda: (), lambda identity: None))
    try:
        await until(lambda: {"/bin/sh", "/bin/ls"} <= set(made._keys))
        await bus._read_thread(bus._log(POLICIES).quarantine)
        await bus.publish(POLICIES, [policy("c", "/bin/cat")])
        await until(lambda: "/bin/cat" in made._keys)
        assert {"/bin/sh", "/bin/ls"} <= set(made._keys)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await bus.close()
