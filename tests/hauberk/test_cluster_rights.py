# SPDX-License-Identifier: Apache-2.0
"""The rights of `hauberk cluster` in deploy/kubernetes are enough, and each is needed: without it something is told to be missing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from bus.memory import MemoryBus
from cluster.lease import LeaderLease
from cluster.server import Server, connected
from cluster.settings import ServerSettings
from hauberk.sections import Configuration
from hauberk.stages import ClusterPart

pytestmark = pytest.mark.kubernetes

PLAIN = Path(__file__).parents[2] / "deploy/kubernetes/hauberk.yaml"
PLACE = "rights"
Right = tuple[str, str, str]
"""API group, resource, verb."""


def rights(kind: str) -> list[dict[str, Any]]:
    found = [one for one in yaml.safe_load_all(PLAIN.read_text()) if one and one["kind"] == kind]
    (role,) = [one for one in found if one["metadata"]["name"] == "hauberk-cluster"]
    rules: list[dict[str, Any]] = role["rules"]
    return rules


def single(rules: list[dict[str, Any]]) -> list[Right]:
    return [
        (group, resource, verb)
        for rule in rules for group in rule["apiGroups"] for resource in rule["resources"] for verb in rule["verbs"]
    ]  # fmt: skip


def policies(protocol: str) -> list[dict[str, Any]]:
    """One of each kind; the first is no valid policy unless `protocol` is one."""
    head = {"apiVersion": "security.kubearmor.com/v1"}
    network = {"matchProtocols": [{"protocol": "udp"}]}
    said = {"message": protocol, "action": "Block"}
    return [
        head | {"kind": "KubeArmorPolicy", "metadata": {"name": "one", "namespace": PLACE},
                "spec": {"selector": {}, "network": {"matchProtocols": [{"protocol": protocol}]}} | said},
        head | {"kind": "KubeArmorClusterPolicy", "metadata": {"name": PLACE}, "spec": {"selector": {}, "network": network} | said},
        head | {"kind": "KubeArmorHostPolicy", "metadata": {"name": PLACE},
                "spec": {"nodeSelector": {"matchLabels": {"a": "b"}}, "network": network} | said},
        head | {"kind": "KubeArmorNetworkPolicy", "metadata": {"name": PLACE},
                "spec": {"nodeSelector": {"matchLabels": {"a": "b"}}, "egress": [{"ports": [{"port": "53"}]}]} | said},
    ]  # fmt: skip


class Accounts:
    """Service accounts, each with the rights of the role but those left out."""

    def __init__(self, api_server: Any) -> None:
        self._api_server = api_server

    def make(self, accounts: dict[str, list[Right]]) -> dict[str, str]:
        """Name -> path of its kubeconfig."""
        objects: list[dict[str, Any]] = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}]
        for name, granted in accounts.items():
            meta = {"name": f"{PLACE}-{name}"}
            objects += [
                {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": PLACE}},
                {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": meta, "rules": [
                    {"apiGroups": [group], "resources": [resource], "verbs": [verb]} for group, resource, verb in granted]},
                {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": meta,
                 "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": meta["name"]},
                 "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": PLACE}]},
            ]  # fmt: skip
        self._api_server.apply(*objects)
        return {name: str(self._api_server.kubeconfig(self._token(name))) for name in accounts}

    def _token(self, name: str) -> str:
        path = f"/api/v1/namespaces/{PLACE}/serviceaccounts/{name}/token"
        made = self._api_server.kubectl("create", "--raw", path, "-f", "-", given=json.dumps(
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}))  # fmt: skip
        return str(json.loads(made.stdout)["status"]["token"])


@pytest.fixture
def accounts(api_server: Any) -> Iterator[Accounts]:
    made = Accounts(api_server)
    yield made
    api_server.kubectl("delete", "ksp,events,serviceaccounts,leases", "--all", "-n", PLACE)
    api_server.kubectl("delete", "csp,hsp,nsp", PLACE, "--ignore-not-found")
    said = api_server.kubectl("get", "clusterrole,clusterrolebinding", "-o", "name").stdout.split()
    if mine := [one for one in said if f"/{PLACE}-" in one]:
        api_server.kubectl("delete", *mine)


@contextlib.asynccontextmanager
async def watching(kubeconfig: str) -> AsyncIterator[ClusterPart]:
    """What `hauberk cluster` runs, by that account."""
    settings = msgspec.convert({
        "cluster": {"server": {"kubeconfig": kubeconfig}, "lease": {"enabled": False}},
        "cluster_status": {"writes_per_second": 1000},
    }, Configuration)  # fmt: skip
    async with connected(settings.cluster.server) as server:
        part = ClusterPart(MemoryBus(), server, settings)
        running = asyncio.create_task(part.engine.run())
        try:
            yield part
        finally:
            running.cancel()
            await asyncio.wait((running,))


async def test_every_right_is_needed_and_all_together_are_enough(
    api_server: Any, accounts: Accounts, until: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """All accounts watch at once: one with everything, and for each right one without it."""
    caplog.set_level(logging.INFO)
    needed = single(rights("ClusterRole"))
    without = {f"no-{number}": [one for one in needed if one != left] for number, left in enumerate(needed)}
    files = await asyncio.to_thread(accounts.make, {"all": needed} | without)
    await asyncio.to_thread(api_server.apply, *policies("carrier-pigeon"))

    async def word(wanted: str) -> Any:
        async def there() -> bool:
            path = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies/one"
            found = await asyncio.to_thread(api_server.get, path)
            return bool((found.get("status") or {}).get("status") == wanted)

        return await until(there)

    async with contextlib.AsyncExitStack() as opened:
        whole = await opened.enter_async_context(watching(files.pop("all")))
        await until(lambda: whole.engine.ready and whole.teller is not None and whole.teller.stats.events == 1)
        others = [await opened.enter_async_context(watching(file)) for file in files.values()]
        # The Event is there: who says it again must read and count it.
        await until(lambda: all(part.engine.ready or part.engine.problems or part.teller.problem for part in others))  # type: ignore[union-attr]
        await asyncio.to_thread(api_server.apply, *policies("udp"))
        await word("Waiting")
        await asyncio.to_thread(api_server.apply, *policies("carrier-pigeon"))
        await word("Refused")

        def untold() -> list[Right]:
            return [
                right for name, right in zip(files, needed, strict=True)
                if f'"system:serviceaccount:{PLACE}:{name}" cannot {right[2]} resource "{right[1]}"' not in caplog.text
            ]  # fmt: skip

        try:
            await until(lambda: not untold())
        except AssertionError as error:
            raise AssertionError(f"nothing misses these rights: {untold()}") from error
        assert not whole.engine.problems
        assert f"serviceaccount:{PLACE}:all" not in caplog.text
        assert whole.teller is not None
        assert (whole.teller.problem, whole.teller.stats.lost_events) == ("", 0)


async def test_the_lease_needs_each_of_its_rights(
    api_server: Any, accounts: Accounts, until: Callable[..., Any]
) -> None:
    needed = single(rights("Role"))
    without = {f"lease-{number}": [one for one in needed if one != left] for number, left in enumerate(needed)}
    files = await asyncio.to_thread(accounts.make, {"lease-all": needed} | without)

    async def take(server: Server, name: str) -> LeaderLease:
        """Take it, renew it once, end."""
        lease = LeaderLease(server, PLACE, "hauberk-cluster", name, seconds=2.0)

        async def work() -> None:
            first = await _renewed(server)

            async def again() -> bool:
                return bool(lease.problem) or await _renewed(server) != first

            await until(again)

        running = asyncio.create_task(lease.run(work))
        try:
            await until(lambda: running.done() or lease.problem)
        finally:
            running.cancel()
            await asyncio.wait((running,))
        return lease

    for name, file in files.items():
        await asyncio.to_thread(api_server.kubectl, "delete", "leases", "--all", "-n", PLACE)
        async with connected(ServerSettings(kubeconfig=file)) as server:
            lease = await take(server, name)
        left = None if name == "lease-all" else needed[int(name.removeprefix("lease-"))]
        assert (f'cannot {left[2]} resource "leases"' in lease.problem) if left else not lease.problem, (name, lease.problem)  # fmt: skip


async def _renewed(server: Server) -> str:
    lease = json.loads(await server.get(f"/apis/coordination.k8s.io/v1/namespaces/{PLACE}/leases/hauberk-cluster"))
    return str(lease["spec"]["renewTime"])
