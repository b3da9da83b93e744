# SPDX-License-Identifier: Apache-2.0
"""A resource of a real API server is followed through pages, changes, a killed server and a history that is gone."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from cluster.reflector import Reflector, Resource
from cluster.server import connected
from cluster.settings import ServerSettings

pytestmark = pytest.mark.kubernetes
PATH = "/api/v1/namespaces/{}/configmaps"


class Seen:
    """What was applied: names that are there, and how often a whole list came."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.wholes: list[set[str]] = []

    def apply(self, whole: bool, changes: list[tuple[bool, msgspec.Raw]]) -> None:
        names = {(there, msgspec.json.decode(raw)["metadata"]["name"]) for there, raw in changes}
        if whole:
            self.wholes.append({name for _, name in names})
            self.names = set()
        self.names |= {name for there, name in names if there}
        self.names -= {name for there, name in names if not there}


@pytest.fixture
def namespace(api_server: Any, request: pytest.FixtureRequest) -> str:
    name = f"t{abs(hash(request.node.name)) % 10**8}"
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
    return name


def entry(namespace: str, name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": namespace}}


@asynccontextmanager
async def followed(api_server: Any, namespace: str, **settings: Any) -> AsyncIterator[tuple[Reflector, Seen]]:
    seen = Seen()
    async with connected(
        ServerSettings(kubeconfig=str(api_server.kubeconfig()), timeout_seconds=5.0, **settings)
    ) as server:
        one = Reflector(server, Resource(name="configmaps", path=PATH.format(namespace)))
        task = asyncio.create_task(one.run(seen.apply))
        try:
            yield one, seen
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_pages_then_changes(api_server: Any, namespace: str, until: Callable[..., Any]) -> None:
    api_server.apply(*(entry(namespace, f"n{number}") for number in range(7)))
    async with followed(api_server, namespace, page=2) as (one, seen):
        await until(one.ready.is_set)
        assert seen.names == {f"n{number}" for number in range(7)}
        await asyncio.to_thread(api_server.apply, entry(namespace, "late"))
        await until(lambda: "late" in seen.names)
        await asyncio.to_thread(api_server.kubectl, "delete", "configmap", "n3", "-n", namespace)
        await until(lambda: "n3" not in seen.names)
        assert len(seen.wholes) == 1


async def test_a_watch_that_ends_goes_on_where_it_was(
    api_server: Any, namespace: str, until: Callable[..., Any]
) -> None:
    async with followed(api_server, namespace, watch_seconds=5) as (one, seen):
        await until(lambda: one.watches >= 2)
        await asyncio.to_thread(api_server.apply, entry(namespace, "late"))
        await until(lambda: "late" in seen.names)
        assert one.lists == 1


async def test_a_server_that_is_killed_removes_nothing(
    api_server: Any, namespace: str, until: Callable[..., Any]
) -> None:
    api_server.apply(entry(namespace, "a"), entry(namespace, "b"))
    async with followed(api_server, namespace) as (one, seen):
        await until(one.ready.is_set)
        api_server.kill()
        await until(lambda: one.failures >= 2)
        assert "expected an answer of the API server" in one.problem
        assert seen.names == {"a", "b"}
        await asyncio.to_thread(api_server.start)
        await asyncio.to_thread(api_server.apply, entry(namespace, "c"))
        await until(lambda: seen.names == {"a", "b", "c"})
        assert one.problem == ""
        assert all({"a", "b"} <= names for names in seen.wholes)


async def test_a_history_that_is_gone_is_listed_again(
    api_server: Any, namespace: str, until: Callable[..., Any]
) -> None:
    api_server.apply(entry(namespace, "a"), entry(namespace, "b"))
    async with followed(api_server, namespace) as (one, seen):
        await until(one.ready.is_set)
        api_server.kill()
        await until(lambda: one.failures)
        await asyncio.to_thread(api_server.start)
        # While nobody watched, one went, and etcd forgot that it did.
        newest = await asyncio.to_thread(_compact, api_server, namespace)
        assert newest > 0
        await until(lambda: seen.names == {"b"})
        await asyncio.to_thread(api_server.apply, entry(namespace, "c"))
        await until(lambda: seen.names == {"b", "c"})


def _compact(api_server: Any, namespace: str) -> int:
    api_server.kubectl("delete", "configmap", "a", "-n", namespace)
    listed = msgspec.json.decode(api_server.kubectl("get", "configmap", "-n", namespace, "-o", "json").stdout)
    revision = max(int(one["metadata"]["resourceVersion"]) for one in listed["items"])
    newest = api_server.kubectl("get", "--raw", PATH.format(namespace)).stdout
    revision = int(msgspec.json.decode(newest)["metadata"]["resourceVersion"]) or revision
    body = msgspec.json.encode({"revision": str(revision), "physical": True})
    request = urllib.request.Request(f"{api_server.etcd}/v3/kv/compaction", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()
    return revision


async def test_a_kind_that_the_cluster_lacks_is_waited_for(api_server: Any, until: Callable[..., Any]) -> None:
    seen = Seen()
    async with connected(ServerSettings(kubeconfig=str(api_server.kubeconfig()))) as server:
        one = Reflector(server, Resource(name="things", path="/apis/nothing.example/v1/things", optional=True))
        task = asyncio.create_task(one.run(seen.apply))
        await until(lambda: one.absent)
        assert seen.wholes == []
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
