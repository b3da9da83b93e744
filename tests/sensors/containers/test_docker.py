# SPDX-License-Identifier: Apache-2.0
"""Docker, asked for real: who a container is, what happens to it, and what is said when the socket does not answer."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from schemas.errors import PermissionMissing, Unavailable
from sensors.containers import cgroups, unix_http
from sensors.containers.cgroups import Place
from sensors.containers.docker import Docker, DockerSettings, found, seconds

pytestmark = pytest.mark.containers


async def test_a_container_is_described(dockerd: Any) -> None:
    id_ = dockerd.run("who", "--label", "app=web", "--label", "kubearmor.io/namespace=shop")
    try:
        runtime = Docker(DockerSettings(socket=dockerd.socket, timeout_seconds=60.0))
        found = await runtime.describe(Place(id_, f"/docker/{id_}", "docker"))
        assert found is not None
        assert (found.name, found.image, found.namespace) == ("who", "busy:1", "shop")
        assert found.labels["app"] == "web"
        assert not found.orchestrated
        assert cgroups.of_pid(found.root_pid) == f"/docker/{id_}"
        assert found in await runtime.list()
        assert await runtime.describe(Place("f" * 64, "/docker/" + "f" * 64)) is None
        assert await runtime.describe(Place(id_, "/x", "containerd")) is None
        assert runtime.status == ""
    finally:
        dockerd.remove("who")


async def test_starts_and_ends_are_told_across_a_restart_of_the_engine(dockerd: Any, until: Any) -> None:
    told: list[tuple[str, bool]] = []
    runtime = Docker(DockerSettings(socket=dockerd.socket, timeout_seconds=60.0, reconnect_max_seconds=0.2))
    watching = asyncio.create_task(runtime.watch(lambda id_, ended: told.append((id_, ended))))
    try:
        first = await asyncio.to_thread(dockerd.run, "first")
        await until(lambda: (first, False) in told)
        await asyncio.to_thread(dockerd.remove, "first")
        await until(lambda: (first, True) in told)
        await asyncio.to_thread(dockerd.stop)
        await until(lambda: "expected a server" in runtime.status or runtime.status == "")
        await asyncio.to_thread(dockerd.start)
        second = await asyncio.to_thread(dockerd.run, "second")
        await until(lambda: (second, False) in told)
        assert runtime.status == ""
    finally:
        watching.cancel()
        await asyncio.to_thread(dockerd.remove, "second")


async def test_no_socket_is_no_fault(tmp_path: Path) -> None:
    runtime = Docker(DockerSettings(socket=str(tmp_path / "none")))
    with pytest.raises(Unavailable, match="is it running"):
        await runtime.list()
    assert runtime.status == ""


async def test_a_socket_nobody_answers_on_is_said(tmp_path: Path) -> None:
    path = str(tmp_path / "dead")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.close()
    runtime = Docker(DockerSettings(socket=path))
    with pytest.raises(Unavailable):
        await runtime.list()
    assert path in runtime.status


async def test_an_unreadable_socket_says_what_to_do(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: gives up its rights")
    path = str(tmp_path / "locked")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    os.chmod(path, 0o600)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        os.chmod(directory, 0o755)
    os.seteuid(65534)
    try:
        with pytest.raises(PermissionMissing, match="run as root"):
            await unix_http.get(path, "/x", 60.0)
    finally:
        os.seteuid(0)
        server.close()


@pytest.mark.parametrize(
    "answer",
    [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"],
)  # fmt: skip
async def test_a_broken_answer_is_an_error_not_a_crash(tmp_path: Path, answer: bytes) -> None:
    path = str(tmp_path / "bad")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with pytest.raises(Unavailable):
            await unix_http.get(path, "/x", 60.0)
    finally:
        thread.join()
        server.close()


def test_times_of_go() -> None:
    assert seconds("2026-11-23T21:06:15.111585208Z") == pytest.approx(1795467975.111585)
    assert seconds("2026-11-23T21:06:15Z") == 1795467975.0
    assert seconds("0001-01-01T00:00:00Z") == 0.0
    assert seconds("") == 0.0


def test_labels_and_annotations_that_policies_read() -> None:
    seen = {
        "Id": "a",
        "Config": {"Labels": {"kubearmor-policy": "audited", "kubearmor-visibility": "file", "app": "web"}},
    }
    assert found(seen).annotations == {"kubearmor-policy": "audited", "kubearmor-visibility": "file"}
    named = seen | {"HostConfig": {"Annotations": {"kubearmor-policy": "disabled"}}}
    assert found(named).annotations["kubearmor-policy"] == "disabled"
    assert found(seen).labels["app"] == "web"
