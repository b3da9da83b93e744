# SPDX-License-Identifier: Apache-2.0
"""Annotations that are not understood are an Event where their author looks, on a real API server: once, whatever is started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.kubernetes

PLACE, NODE = "misread", "misread-n1"
WORD = "expected enabled, audited or disabled in `kubearmor-policy`, got "
STAYS = "; it changes nothing, what is in force without it stays"


def pod(name: str, word: str) -> dict[str, Any]:
    meta = {"name": name, "namespace": PLACE, "annotations": {"kubearmor-policy": word}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [{"name": "a", "image": "a"}]}}


async def test_each_is_one_event_on_its_object_and_stays_one_over_a_restart(
    hauberk: Any, api_server: Any, until: Callable[..., Any]
) -> None:
    wrong = {"kubearmor-visibility": "proces"}
    settings = {
        "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig()), "HAUBERK__CLUSTER__LEASE__ENABLED": "false",
        "HAUBERK__CLUSTER_STATUS__WRITES_PER_SECOND": "1000",
    }  # fmt: skip
    await asyncio.to_thread(
        api_server.apply, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE, "annotations": wrong}},
        {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "annotations": {"kubearmor-policy": "on"}}},
        pod("web-1", "audit"), pod("web-2", "audit"), pod("web-3", "audited"),
    )  # fmt: skip

    async def told(namespace: str, kind: str) -> list[tuple[str, str, int]]:
        query = f"fieldSelector=reason%3DAnnotationNotUnderstood,involvedObject.kind%3D{kind}"
        found = await asyncio.to_thread(api_server.get, f"/api/v1/namespaces/{namespace}/events?{query}")
        return [(one["involvedObject"]["name"], one["message"], one["count"]) for one in found["items"]]

    async def pods() -> list[str]:
        return sorted(name for name, _, _ in await told(PLACE, "Pod"))

    async def has(*names: str) -> None:
        async def there() -> bool:
            return await pods() == sorted(names)

        await until(there)

    try:
        running = hauberk.start("cluster", **settings)
        await has("web-1")
        assert await told(PLACE, "Pod") == [("web-1", f"{WORD}'audit'{STAYS}; 1 more pod here has the same", 1)]
        visibility = (
            "expected process, file, network, capabilities, dns or none in `kubearmor-visibility`, got 'proces'"
        )
        await until(lambda: told(PLACE, "Namespace"))
        assert await told(PLACE, "Namespace") == [(PLACE, visibility + STAYS, 1)]
        await until(lambda: told("default", "Node"))
        assert await told("default", "Node") == [(NODE, f"{WORD}'on'{STAYS}", 1)]
        for kind, name in (("pod", "web-1"), ("node", NODE)):
            shown = await asyncio.to_thread(api_server.kubectl, "describe", kind, name, "-n", PLACE)
            assert "AnnotationNotUnderstood" in shown.stdout, shown.stdout
        # Started again it lists everything again, and finds what it said.
        assert running.end() == 0
        running = hauberk.start("cluster", **settings)
        await asyncio.to_thread(running.ready)
        await asyncio.to_thread(api_server.apply, pod("later", "off"), pod("long", "audited," * 1000))
        await has("later", "long", "web-1")
        long = f"{WORD}more than 1,024 characters, which are not read{STAYS}"
        assert ("long", long, 1) in await told(PLACE, "Pod")
        assert {count for _, _, count in await told(PLACE, "Pod")} == {1}
        # The one that was told goes, another has the word still.
        await asyncio.to_thread(
            api_server.kubectl, "delete", "pod", "web-1", "-n", PLACE, "--force", "--grace-period=0"
        )
        await has("later", "long", "web-1", "web-2")
        assert "Traceback" not in running.said()
        assert running.end() == 0
    finally:
        await asyncio.to_thread(
            api_server.kubectl, "delete", "pod", "--all", "-n", PLACE, "--force", "--grace-period=0"
        )
        await asyncio.to_thread(api_server.kubectl, "delete", "node", NODE)
        await asyncio.to_thread(api_server.kubectl, "delete", "events", "--all", "-n", "default")
        await asyncio.to_thread(api_server.kubectl, "delete", "events", "--all", "-n", PLACE)
        await asyncio.to_thread(api_server.kubectl, "annotate", "namespace", PLACE, "kubearmor-visibility-")
