# SPDX-License-Identifier: Apache-2.0
"""`hauberk cluster` and `hauberk planner` beside a node of which a test says what it answers, and what the API server then has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bus.contract import Bus, Record
from bus.embedded.bus import EmbeddedSettings
from bus.registry import open_bus
from schemas.enforcement import Plan, Receipt, Refusal, decode_plan
from schemas.enforcement import encode as encode_receipt
from schemas.identity import Identity, Kind, encode
from schemas.operations import Backend
from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, INVENTORY
from schemas.verdict import RuleRef

PLACE = "told"
KEY = f"KubeArmorPolicy/{PLACE}/no-udp"


def policy(name: str = "no-udp", protocol: str = "udp", **spec: Any) -> dict[str, Any]:
    network = {"matchProtocols": [{"protocol": protocol}]}
    return {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": name, "namespace": PLACE},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "network": network, "action": "Block"} | spec,
    }  # fmt: skip


class Told:
    """`hauberk cluster` and `hauberk planner` beside a node of which the test says what it answers."""

    def __init__(self, api_server: Any, bus: Bus, until: Callable[..., Any]) -> None:
        self.api_server, self.bus, self.until = api_server, bus, until

    async def node(self) -> None:
        told = Identity(kind=Kind.CONTAINER, node="n1", uid="c1", cgroups=(77,), namespace=PLACE, pod="web-1", pod_uid="u1",
                        container_name="web", orchestrated=True, labels={"app": "web"})  # fmt: skip
        host = Identity(kind=Kind.NODE, node="n1", uid="n1")
        await self.bus.publish(INVENTORY, [Record(one.key, encode(one)) for one in (told, host)])

    async def answer(self, *refused: Refusal) -> None:
        """A receipt of the plan that has the policy."""

        async def planned() -> Plan | None:
            record = (await self.bus.latest(ENFORCEMENT_DESIRED)).get(b"n1")
            plan = decode_plan(record.value) if record and record.value else None
            return plan if plan and KEY in dict(plan.selected) else None

        plan = await self.until(planned)
        assert plan.selected == ((KEY, 1),)
        receipt = Receipt(node="n1", generation=plan.generation, digest=plan.digest, applied_ns=1, took_ms=1.0,
                          backends=(Backend.CGROUP,), scopes=1, rules=1, refused=refused)  # fmt: skip
        await self.bus.publish(ENFORCEMENT_STATUS, [Record(b"n1", encode_receipt(receipt))])

    async def object(self, name: str = "no-udp") -> dict[str, Any]:
        path = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies/{name}"
        found: dict[str, Any] = await asyncio.to_thread(self.api_server.get, path)
        return found

    async def word(self, wanted: str, name: str = "no-udp") -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            status: dict[str, Any] = (await self.object(name)).get("status") or {}
            return status if status.get("status") == wanted else None

        status: dict[str, Any] = await self.until(there)
        return status

    async def event(self, reason: str, name: str = "no-udp") -> dict[str, Any]:
        async def there() -> dict[str, Any] | None:
            query = f"fieldSelector=involvedObject.name%3D{name},reason%3D{reason}"
            found = await asyncio.to_thread(self.api_server.get, f"/api/v1/namespaces/{PLACE}/events?{query}")
            items: list[dict[str, Any]] = found["items"]
            return items[0] if items else None

        found: dict[str, Any] = await self.until(there)
        return found


@asynccontextmanager
async def told_cluster(hauberk: Any, api_server: Any, until: Callable[..., Any]) -> AsyncIterator[Told]:
    """With the policy `no-udp` in the API server, and a container on the bus that it selects."""
    bus = await open_bus(EmbeddedSettings(directory=str(hauberk.state / "bus")))
    await asyncio.to_thread(
        api_server.apply, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}, policy()
    )
    made = Told(api_server, bus, until)
    await made.node()
    yield made
    await bus.close()
    await asyncio.to_thread(api_server.kubectl, "delete", "ksp,events", "--all", "-n", PLACE)


def settings(api_server: Any, token: str = "admin") -> dict[str, str]:
    return {
        "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig(token)),
        "HAUBERK__CLUSTER__LEASE__ENABLED": "false", "HAUBERK__CLUSTER_STATUS__HITS_SECONDS": "1",
        "HAUBERK__CLUSTER_STATUS__WRITES_PER_SECOND": "1000",
    }  # fmt: skip


REF = RuleRef(policy="no-udp", kind="KubeArmorPolicy", namespace=PLACE, position="spec.network.matchProtocols[0]")
