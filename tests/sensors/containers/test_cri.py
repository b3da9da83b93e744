# SPDX-License-Identifier: Apache-2.0
"""A real pod on a real containerd: its containers carry the pod's name, namespace, uid and labels."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import protobuf
from schemas.errors import DecodeError, Unavailable
from sensors.containers import unix_grpc
from sensors.containers.cgroups import Place
from sensors.containers.cri import SANDBOX_NAME, Cri, CriSettings
from sensors.containers.unix_grpc import NOT_FOUND, UNIMPLEMENTED, Status

UID = "11111111-2222-3333-4444-555555555555"


@pytest.mark.containers
async def test_a_pod_is_described(containerd: Any, until: Any) -> None:
    told: list[tuple[str, bool]] = []
    runtime = Cri(CriSettings(socket=containerd.socket, timeout_seconds=60.0, poll_seconds=0.05))
    watching = asyncio.create_task(runtime.watch(lambda id_, ended: told.append((id_, ended))))
    sandbox, config = await asyncio.to_thread(containerd.pod, "web-1", "shop", UID, {"app": "web"})
    try:
        id_ = await asyncio.to_thread(containerd.container, sandbox, config, "main")
        path = f"/kubepods/burstable/pod{UID}/{id_}"
        found = await runtime.describe(Place(id_, path, "", UID))
        assert found is not None
        assert (found.name, found.pod, found.namespace, found.pod_uid) == ("main", "web-1", "shop", UID)
        assert found.labels == {"app": "web"}
        assert found.annotations["note"] == "from a test"
        assert found.image == "localhost/pause:1"
        assert found.orchestrated
        assert not found.privileged
        assert found.root_pid > 0
        assert found.started > 1e9
        listed = {one.id: one for one in await runtime.list()}
        assert listed[id_] == found
        assert listed[sandbox].name == SANDBOX_NAME
        assert await runtime.describe(Place("0" * 64, "/x")) is None
        assert await runtime.describe(Place(id_, path, "docker")) is None
        await until(lambda: (id_, False) in told)
    finally:
        await asyncio.to_thread(containerd.remove, sandbox)
    await until(lambda: (id_, True) in told)
    assert runtime.status == ""
    watching.cancel()


@pytest.mark.containers
async def test_errors_of_the_server_are_readable(containerd: Any) -> None:
    request = protobuf.string(1, "e" * 64)
    with pytest.raises(Status, match=r"container.*e{64}.*not found") as caught:
        await unix_grpc.call(containerd.socket, "/runtime.v1.RuntimeService/ContainerStatus", request, 60.0)
    assert caught.value.code == NOT_FOUND
    with pytest.raises(Status) as caught:
        await unix_grpc.call(containerd.socket, "/runtime.v9.RuntimeService/Version", b"", 60.0)
    assert caught.value.code == UNIMPLEMENTED


@pytest.mark.containers
async def test_a_containerd_without_cri_is_no_fault(dockerd: Any) -> None:
    # Docker's own containerd is started with the CRI plugin switched off.
    runtime = Cri(CriSettings(socket=f"{dockerd.home}/exec/containerd/containerd.sock", timeout_seconds=60.0))
    with pytest.raises(Status, match="RuntimeService"):
        await runtime.list()
    assert runtime.status == ""


async def test_no_runtime_is_no_fault(tmp_path: Path) -> None:
    runtime = Cri(CriSettings(socket=str(tmp_path / "none")))
    with pytest.raises(Unavailable):
        await runtime.list()
    assert runtime.status == ""


@given(st.integers(1, 500), st.text(min_size=1), st.integers(0, 2**63))
def test_protobuf_reads_what_it_writes(number: int, text: str, value: int) -> None:
    message = protobuf.parse(
        protobuf.string(number, text) + protobuf.integer(number + 1, value) + protobuf.nested(number + 2, b"")
    )
    assert protobuf.text(message, number) == text
    assert protobuf.number(message, number + 1) == value
    assert protobuf.sub(message, number + 2) == {}


@given(st.binary(max_size=200))
def test_protobuf_never_fails_otherwise(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        protobuf.parse(data)


def test_huffman_code_is_complete_for_ascii() -> None:
    # RFC 7541 C.4.1 and C.6.1.
    assert unix_grpc._unpacked(bytes.fromhex("f1e3c2e5f23a6ba0ab90f4ff")) == "www.example.com"
    assert unix_grpc._unpacked(bytes.fromhex("d07abe941054d444a8200595040b8166e082a62d1bff")) == "Mon, 21 Oct 2013 20:13:21 GMT"  # fmt: skip
