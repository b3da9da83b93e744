# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C of `hauberk cluster` beside an API server or a broker that hangs: it ends within a second, and leaves nothing half done."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kafka_cluster
import pytest
from kafka_topics import create_topics
from stopping import ends

pytestmark = pytest.mark.kubernetes
LEASES = "/apis/coordination.k8s.io/v1/namespaces/default/leases"


@pytest.fixture
def start(hauberk: Any, api_server: Any, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """start(server="", **bus): the role, running; on a bus of its own, or the one at `bootstrap`."""
    number = 0

    def start(server: str = "", **bus: Any) -> Any:
        nonlocal number
        number += 1
        more = {"server": server} if server else {}
        environment = {
            "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig(**more)),
            "HAUBERK__CLUSTER__LEASE__NAMESPACE": "default",
            "HAUBERK__CLUSTER__LEASE__NAME": f"ends{abs(hash(request.node.name)) % 10**8}-{number}",
            "HAUBERK__CLUSTER__LEASE__SECONDS": "5",
            "HAUBERK__METRICS__ENABLED": "true",
            "HAUBERK__METRICS__PORT": str(kafka_cluster.free_ports(1)[0]),
        } | ({"HAUBERK__BUS": json.dumps({"type": "kafka"} | bus)} if bus else {})
        running = hauberk.start("cluster", **environment)
        running.lease = environment["HAUBERK__CLUSTER__LEASE__NAME"]
        running.port = environment["HAUBERK__METRICS__PORT"]
        running.ready()
        return running

    return start


def works(running: Any) -> bool:
    """Whether it has everything of the cluster on the bus."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{running.port}/readyz", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.parametrize("where", ["nobody", "silent", "blackhole"])
def test_a_stop_without_an_api_server(start: Callable[..., Any], where: str, request: Any, tmp_path: Path) -> None:
    address = "127.0.0.1:1" if where == "nobody" else request.getfixturevalue(where)
    running = start(f"https://{address}")
    if where == "nobody":
        running.until("cannot be read, so this replica stands by")
    ends(running, tmp_path)


@pytest.mark.parametrize("noticed", [False, True])
def test_a_stop_while_the_api_server_hangs(
    start: Callable[..., Any], api_server: Any, eventually: Any, noticed: bool, tmp_path: Path
) -> None:
    running = start()
    eventually(lambda: works(running))
    api_server.pause()
    try:
        if noticed:
            running.until("was lost to")
        ends(running, tmp_path)
    finally:
        api_server.resume()
    if not noticed:
        assert "was not given back" in running.said()


@pytest.mark.fault(
    "Ctrl-C of the watch of a cluster while the broker hangs (SIGSTOP), noticed or not yet",
    "ends within a second and gives its lease back, so that another replica works at once",
)
async def test_a_stop_while_the_broker_hangs(
    start: Callable[..., Any], api_server: Any, kafka_clusters: Any, eventually: Any, tmp_path: Path
) -> None:
    cluster = kafka_clusters()
    await asyncio.to_thread(cluster.start)
    await create_topics(cluster.bootstrap, "ends.", 1)
    for noticed in (False, True):
        running = await asyncio.to_thread(start, bootstrap=cluster.bootstrap, prefix="ends.", away_seconds=2.0)
        await asyncio.to_thread(eventually, lambda: works(running))  # noqa: B023
        cluster.pause()
        try:
            if noticed:
                await asyncio.to_thread(running.until, "kafka: away")
            await asyncio.to_thread(ends, running, tmp_path)
        finally:
            cluster.resume()
        assert "was not given back" not in running.said()
        lease = await asyncio.to_thread(api_server.get, f"{LEASES}/{running.lease}")
        assert lease["spec"].get("holderIdentity", "") == "", running.said()
