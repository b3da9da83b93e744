# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the OCI hook: who is answered, what is refused and why, what is counted, and who a starting container is."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bus.memory import MemoryBus
from schemas.errors import Refused, SettingsError
from sensors.containers import start_hook, start_socket
from sensors.containers.cgroups import Place
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.containers.start_socket import StartSocket
from sensors.containers.starts import OciState, of_state

STATE = {"id": "c1", "pid": 7, "bundle": "/b"}
ID = "a" * 64
UID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: nobody else is answered")


async def begin(state: OciState) -> int:
    return state.pid


async def at_once(cgroup: int) -> str:
    return ""


async def never(cgroup: int) -> str:
    await asyncio.Event().wait()
    return ""


@asynccontextmanager
async def serving(
    path: Path, held: Callable[[int], Awaitable[str]] = at_once, begin: Callable[[OciState], Awaitable[int]] = begin
) -> AsyncIterator[StartSocket]:
    made = StartSocket(str(path), begin, held)
    task = asyncio.create_task(made.run())
    while not path.exists():
        assert not task.done(), task.exception()
        await asyncio.sleep(0.001)
    try:
        yield made
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def asked(path: Path, data: bytes | None = None, size: int | None = None) -> str:
    """What it answers; "" when it closes."""
    data = json.dumps(STATE).encode() if data is None else data
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write((len(data) if size is None else size).to_bytes(4, "big") + data)
    try:
        return (await asyncio.wait_for(reader.read(), 60)).decode()
    finally:
        writer.close()


async def test_held_is_the_answer_once_the_rules_are_in_force(tmp_path: Path) -> None:
    ready = asyncio.Event()

    async def held(cgroup: int) -> str:
        await ready.wait()
        return "" if cgroup == 7 else f"cgroup {cgroup} has no table"

    async with serving(tmp_path / "s", held) as server:
        asking = asyncio.create_task(asked(tmp_path / "s"))
        other = asyncio.create_task(asked(tmp_path / "s", b'{"id": "c2", "pid": 8}'))
        while server.stats.waiting < 2:  # noqa: ASYNC110 - a count
            await asyncio.sleep(0.001)
        assert not asking.done()
        ready.set()
        assert (await asking, await other) == ("held\n", "cgroup 8 has no table\n")
        assert (server.stats.held, server.stats.refused, server.stats.waiting) == (1, 1, 0)
        assert os.stat(tmp_path / "s").st_mode & 0o777 == 0o600
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(("data", "size", "why"), [
    (b"{", None, "the state of a container"), (b'{"id": "c1", "pid": "x"}', None, "pid"), (b'{"id": "c1"}', None, "pid"),
    (b"", start_socket.MOST + 1, "at most"), (b"\xff" * 100, None, "the state of a container"), (b"[" * 100_000, None, "the state of a container"),
    (json.dumps(STATE | {"annotations": {"a": 7}}).encode(), None, "annotations"),
])  # fmt: skip
async def test_what_is_no_state_is_refused_in_one_sentence(
    tmp_path: Path, data: bytes, size: int | None, why: str
) -> None:
    async with serving(tmp_path / "s") as server:
        answer = await asked(tmp_path / "s", data, size)
        assert why in answer
        assert answer.count("\n") == 1
        assert (server.stats.held, server.stats.refused) == (0, 1)
        assert await asked(tmp_path / "s") == "held\n"


async def test_a_request_that_does_not_end_and_a_hook_that_has_no_more_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    monkeypatch.setattr(start_socket, "REQUEST", 0.2)
    async with serving(tmp_path / "s", never) as server:
        assert "expected a whole state within" in await asked(tmp_path / "s", b"{", 100)
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        data = json.dumps(STATE).encode()
        writer.write(len(data).to_bytes(4, "big") + data)
        await until(lambda: server.stats.waiting == 1)
        writer.close()
        await until(lambda: server.stats.left == 1)
        assert (server.stats.held, server.stats.refused, server.stats.waiting) == (0, 1, 0)


async def test_only_root_is_answered_and_so_many_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    monkeypatch.setattr(start_socket, "AT_ONCE", 1)
    async with serving(tmp_path / "s", never) as server:
        waiting = asyncio.create_task(asked(tmp_path / "s"))
        await until(lambda: server.stats.waiting == 1)
        assert "at most 1 containers" in await asked(tmp_path / "s")
        waiting.cancel()
        await until(lambda: server.stats.left == 1)
        # As it is nobody else may connect; even one who may is told no.
        code = (
            f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({str(tmp_path / 's')!r}); "
            "s.send(bytes([0, 0, 0, 1, 32])); print(s.recv(999).decode(), end='')"
        )
        words = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-I", "-S", "-c", code]
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
        assert "PermissionError" in done.stderr
        os.chmod(tmp_path / "s", 0o666)
        for above in (tmp_path, *tmp_path.parents[:-2]):
            os.chmod(above, 0o755)
        done = await asyncio.to_thread(subprocess.run, words, capture_output=True, text=True, check=False)
        assert done.stdout == "expected root to ask, got uid 65534\n", done.stderr
        assert server.stats.strangers == 1


async def test_what_hooks_could_tell_nobody_is_told_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, until: Callable[..., Any]
) -> None:
    for number in range(4):
        start_hook.record(str(tmp_path / "unheld"), f"started c{number}: nobody there")
    start_hook.record(str(tmp_path / "unheld"), "refused c9: nobody there")
    async with serving(tmp_path / "s") as server:
        await until(lambda: server.stats.started_unheld)
        assert (server.stats.started_unheld, server.stats.kept_out) == (4, 1)
    assert "started c0: nobody there" in caplog.text
    assert "and 2 more containers" in caplog.text
    assert not (tmp_path / "unheld").exists()


@pytest.mark.parametrize("kind", ["link", "fifo"])
async def test_a_record_that_is_no_plain_file_is_not_followed(
    tmp_path: Path, kind: str, until: Callable[..., Any]
) -> None:
    if kind == "link":
        (tmp_path / "unheld").symlink_to("/etc/hostname")
    else:
        os.mkfifo(tmp_path / "unheld")
    async with serving(tmp_path / "s") as server:
        assert await asked(tmp_path / "s") == "held\n"
        assert server.stats.started_unheld == 0


async def test_a_socket_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path / "file", tmp_path / "file" / "s", tmp_path / ("x" * 107)):
        with pytest.raises(SettingsError, match=r"inventory\.start_socket"):
            await StartSocket(str(path), begin, at_once).run()
    assert (tmp_path / "file").read_text() == "precious"


async def test_a_socket_that_was_left_is_taken_over(tmp_path: Path) -> None:
    async with serving(tmp_path / "s"):
        os.link(tmp_path / "s", tmp_path / "kept")
    os.rename(tmp_path / "kept", tmp_path / "s")
    made = StartSocket(str(tmp_path / "s"), begin, at_once)
    task = asyncio.create_task(made.run())
    async with asyncio.timeout(60):
        while True:
            try:
                assert await asked(tmp_path / "s") == "held\n"
                break
            except ConnectionRefusedError:
                await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("annotations", "told"), [
    ({"io.kubernetes.cri.container-name": "web", "io.kubernetes.cri.sandbox-namespace": "shop", "io.kubernetes.cri.sandbox-uid": UID,
      "io.kubernetes.cri.sandbox-name": "web-1", "io.kubernetes.cri.container-type": "container"}, ("web", "shop", "web-1", UID)),
    ({"io.kubernetes.container.name": "web", "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": UID,
      "io.kubernetes.pod.name": "web-1"}, ("web", "shop", "web-1", UID)),
    ({"io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-namespace": "shop",
      "io.kubernetes.cri.sandbox-name": "web-1"}, ("POD", "shop", "web-1", UID)),
])  # fmt: skip
def test_a_container_of_a_pod_is_known_by_the_annotations_of_its_runtime(
    annotations: dict[str, str], told: tuple[str, ...]
) -> None:
    found = of_state(OciState(ID, 7, "/b", annotations), Place(ID, f"/kubepods/pod{UID}/{ID}", "", UID))
    assert (found.name, found.namespace, found.pod, found.pod_uid) == told
    assert found.orchestrated
    # Labels and annotations of the pod are not its runtime's to say here: policies are selected by them.
    assert (found.labels, found.annotations) == ({}, {})


def test_annotations_of_another_pod_are_refused() -> None:
    stolen = {"io.kubernetes.pod.uid": "99999999-2222-3333-4444-555555555555"}
    with pytest.raises(Refused, match="expected annotations of pod"):
        of_state(OciState(ID, 7, "/b", stolen), Place(ID, f"/kubepods/pod{UID}/{ID}", "", UID))


async def test_a_process_that_is_in_no_cgroup_of_the_container_is_refused(new_cgroup: Callable[[str], Any]) -> None:
    """That of the test is in the root, or in another container's: what would be held is not the container."""
    inventory = NodeInventory(MemoryBus(), NodeInventorySettings(node="n1", runtimes=()))
    other = new_cgroup(os.urandom(32).hex())
    process = subprocess.Popen(["sleep", "600"])
    try:
        Path(other, "cgroup.procs").write_text(str(process.pid))
        for pid in (process.pid, 2**22 + 7):
            with pytest.raises(Refused, match=r"expected (process|a cgroup)"):
                await inventory.starts.begin(OciState("b" * 64, pid))
        assert inventory.identities == []
    finally:
        process.kill()
        process.wait()
