# SPDX-License-Identifier: Apache-2.0
"""What became of a policy is told where it was written: status and Events, on a real API server. Receipts are published as nodes do."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
from told_cluster import PLACE, REF, Told, policy, settings, told_cluster

from bus.contract import Record
from bus.memory import MemoryBus
from cluster.server import connected
from hauberk.sections import Configuration
from hauberk.stages import ClusterPart
from schemas.alert import Alert, encode_alert
from schemas.enforcement import Refusal
from schemas.errors import Unavailable
from schemas.operations import Backend
from schemas.refusals import RefusalCode
from schemas.topics import ALERTS, POLICIES

pytestmark = pytest.mark.kubernetes


@pytest.fixture
async def told(hauberk: Any, api_server: Any, until: Callable[..., Any]) -> AsyncIterator[Told]:
    async with told_cluster(hauberk, api_server, until) as made:
        yield made


async def test_the_status_follows_receipts_and_hits(hauberk: Any, told: Told) -> None:
    watching = hauberk.start("cluster", **settings(told.api_server))
    await told.word("Waiting")
    planning = hauberk.start("planner")
    await told.answer()
    status = await told.word("InForce")
    assert (status["nodes"], status["containers"], status["observedGeneration"]) == (1, 1, 1)
    await asyncio.to_thread(
        told.api_server.kubectl, "wait", "--for=condition=InForce", "ksp/no-udp", "-n", PLACE, "--timeout=5s"
    )
    assert (await told.event("InForce"))["message"] == "1 container on 1 node"
    # What says the same again is not written again.
    before = (await told.object())["metadata"]["resourceVersion"]
    await told.answer()
    refusal = Refusal(ref=REF, reason="the kernel is too old", backend=Backend.CGROUP, code=RefusalCode.NOT_CHOSEN)
    await told.answer(refusal)
    status = await told.word("Partial")
    reason = "n1: spec.network.matchProtocols[0]: the kernel is too old [not-chosen]"
    assert status["refused"] == [reason]
    assert reason in (await told.event("NotEnforced"))["message"]
    await told.answer()
    after = await told.word("InForce")
    assert {one["type"]: one["status"] for one in after["conditions"]} == {"Accepted": "True", "InForce": "True"}
    assert int((await told.object())["metadata"]["resourceVersion"]) > int(before)
    alert = Alert(Timestamp=1, UpdatedTime="2026-11-28T10:00:00Z", PolicyName="no-udp", NamespaceName=PLACE, PodName="web-1",
                  Type="MatchedPolicy", Action="Block", Count=40, ProcessName="/usr/bin/dig", Operation="Network", Resource="udp")  # fmt: skip
    await told.bus.publish(ALERTS, [Record(b"w", encode_alert(alert))] * 2)

    async def hit() -> bool:
        return bool(((await told.object())["status"].get("hits") or {}).get("blocked") == 80)

    await told.until(hit)
    assert "of web-1 (80); one of them: /usr/bin/dig Network udp" in (await told.event("Blocked"))["message"]
    wide = (await asyncio.to_thread(told.api_server.kubectl, "get", "ksp", "-n", PLACE, "-o", "wide")).stdout
    head, row = wide.splitlines()[:2]
    assert head.split() == [
        "NAME",
        "ACTION",
        "STATUS",
        "NODES",
        "CONTAINERS",
        "BLOCKED",
        "AUDITED",
        "SHADOW",
        "MESSAGE",
        "AGE",
    ]
    assert row.split()[:7] == ["no-udp", "Block", "InForce", "1", "1", "80", "0"]
    assert watching.end() == 0
    # A replica that takes over goes on from what the object says.
    watching = hauberk.start("cluster", **settings(told.api_server))
    watching.ready()
    await told.bus.publish(ALERTS, [Record(b"w", encode_alert(msgspec.structs.replace(alert, Count=2)))])

    async def hit_again() -> bool:
        return bool((await told.object())["status"]["hits"]["blocked"] == 82)

    await told.until(hit_again)
    assert (watching.end(), planning.end()) == (0, 0)


async def test_a_policy_in_shadow_is_not_said_to_be_in_force_and_counts_what_it_would_have_done(
    hauberk: Any, told: Told
) -> None:
    watching = hauberk.start("cluster", **settings(told.api_server))
    planning = hauberk.start("planner")
    meta = {"name": "no-udp", "namespace": PLACE, "annotations": {"hauberk.io/mode": "shadow"}}
    await asyncio.to_thread(told.api_server.apply, policy() | {"metadata": meta})
    await told.answer()
    status = await told.word("Shadow")
    in_force = {one["type"]: one["status"] for one in status["conditions"]}["InForce"]
    assert (status["nodes"], status["containers"], in_force) == (1, 1, "False")
    assert "nothing of it is enforced" in (await told.event("Shadow"))["message"]
    alert = Alert(Timestamp=1, UpdatedTime="2026-11-28T10:00:00Z", PolicyName="no-udp", NamespaceName=PLACE, PodName="web-1",
                  Type="MatchedPolicy", Action="Audit (Block)", Mode="shadow", Count=7)  # fmt: skip
    await told.bus.publish(ALERTS, [Record(b"w", encode_alert(alert))])

    async def counted() -> bool:
        hits = (await told.object())["status"].get("hits") or {}
        return bool(hits.get("shadow") == 7 and not hits.get("blocked"))

    await told.until(counted)
    assert (watching.end(), planning.end()) == (0, 0)


async def test_hits_are_counted_once_when_their_status_could_not_be_written(hauberk: Any, told: Told) -> None:
    metrics = {"HAUBERK__METRICS__ENABLED": "true", "HAUBERK__METRICS__PORT": "0"}
    watching = hauberk.start("cluster", **settings(told.api_server), **metrics)
    said = await asyncio.to_thread(watching.until, r"metrics and health: http://\S+/metrics")
    url = re.findall(r"metrics and health: (http://\S+/metrics)", said)[-1]

    def failures() -> float:
        with urllib.request.urlopen(url, timeout=60) as answer:
            found = re.search(r"(?m)^hauberk_cluster_status_failures_total\S* (\S+)$", answer.read().decode())
        assert found is not None
        return float(found[1])

    async def failed_again(before: float) -> bool:
        return await asyncio.to_thread(failures) >= before + 2

    await told.word("Waiting")
    alert = Alert(Timestamp=1, UpdatedTime="2026-11-28T10:00:00Z", PolicyName="no-udp", NamespaceName=PLACE, PodName="web-1",
                  Type="MatchedPolicy", Action="Block", Count=1, ProcessName="/usr/bin/dig", Operation="Network", Resource="udp")  # fmt: skip

    async def blocked(number: int) -> None:
        async def there() -> bool:
            return bool(((await told.object())["status"].get("hits") or {}).get("blocked") == number)

        await told.until(there)

    # Strictly after one was counted: from then on the group has a place to go on from.
    await told.bus.publish(ALERTS, [Record(b"w", encode_alert(alert))])
    await blocked(1)
    told.api_server.kill()
    try:
        await told.bus.publish(ALERTS, [Record(b"w", encode_alert(msgspec.structs.replace(alert, Count=10)))])
        await asyncio.to_thread(watching.until, "the cluster cannot be told")
        # What failed once was tried again.
        before = await asyncio.to_thread(failures)
        await told.until(lambda: failed_again(before))
    finally:
        await asyncio.to_thread(told.api_server.start)
    await blocked(11)
    await told.bus.publish(ALERTS, [Record(b"w", encode_alert(msgspec.structs.replace(alert, Count=100)))])
    await blocked(111)
    assert watching.end() == 0


async def test_alerts_that_come_again_after_a_commit_that_failed_are_counted_once(
    api_server: Any, until: Callable[..., Any]
) -> None:
    """As after a takeover from a replica that was killed between the write and the commit."""
    made = {"cluster": {"server": {"kubeconfig": str(api_server.kubeconfig())}, "lease": {"enabled": False}},
            "cluster_status": {"writes_per_second": 1000, "hits_seconds": 0.2}}  # fmt: skip
    configuration, bus = msgspec.convert(made, Configuration), MemoryBus()
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}
    await asyncio.to_thread(api_server.apply, namespace, policy("counted"))
    told = Told(api_server, bus, until)

    async def blocks(count: int, total: int) -> None:
        alert = Alert(Timestamp=1, UpdatedTime="2026-11-28T10:00:00Z", PolicyName="counted", NamespaceName=PLACE, PodName="web-1",
                      Type="MatchedPolicy", Action="Block", Count=count)  # fmt: skip
        await bus.publish(ALERTS, [Record(b"w", encode_alert(alert))])

        async def there() -> bool:
            found = ((await told.object("counted")).get("status") or {}).get("hits") or {}
            return bool(found.get("blocked") == total)

        await until(there)

    async with connected(configuration.cluster.server) as server:
        part = ClusterPart(bus, server, configuration)
        running = asyncio.create_task(part.engine.run())
        try:
            await told.word("Waiting", "counted")
            await blocks(1, 1)
            bus.fail(Unavailable("the bus is away"), call="commit", times=2)
            await blocks(10, 11)
            assert part.teller is not None
            teller = part.teller
            await until(lambda: teller.stats.failures >= 2)
            await blocks(100, 111)
        finally:
            running.cancel()
            await asyncio.wait((running,))
            await asyncio.to_thread(api_server.kubectl, "delete", "ksp,events", "--all", "-n", PLACE)


async def test_errors_and_another_owner_are_told_with_their_paths(hauberk: Any, told: Told) -> None:
    file = hauberk.home / "mine.json"
    file.write_bytes(msgspec.json.encode(policy("mine")))
    assert hauberk("apply", "-f", str(file)).returncode == 0
    watching = hauberk.start("cluster", **settings(told.api_server))
    await asyncio.to_thread(told.api_server.apply, policy("wrong", "carrier-pigeon"), policy("mine"))
    status = await told.word("Refused", "wrong")
    assert "spec.network.matchProtocols[0]" in status["errors"][0]
    assert [one["status"] for one in status["conditions"]] == ["False", "False"]
    assert "carrier-pigeon" in (await told.event("Refused", "wrong"))["message"]
    status = await told.word("NoEffect", "mine")
    assert "hauberk delete" in status["conditions"][1]["message"]
    # Mended, and made anew under the same name: neither keeps what was said of the one before.
    await asyncio.to_thread(told.api_server.apply, policy("wrong"))
    assert (await told.word("Waiting", "wrong"))["errors"] == []
    await asyncio.to_thread(told.api_server.kubectl, "delete", "ksp", "wrong", "-n", PLACE)
    await asyncio.to_thread(told.api_server.apply, policy("wrong"))
    assert (await told.word("Waiting", "wrong"))["observedGeneration"] == 1
    assert watching.end() == 0


async def test_an_account_that_may_not_write_status_says_so_in_one_sentence(hauberk: Any, told: Told) -> None:
    rules = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["list", "watch", "get"]}]
    await asyncio.to_thread(
        told.api_server.apply,
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "reads"}, "rules": rules},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "reads"},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads"},
         "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "watcher"}]},
    )  # fmt: skip
    try:
        watching = hauberk.start("cluster", **settings(told.api_server, "watcher"))
        said = await asyncio.to_thread(watching.until, "the cluster cannot be told")
        assert 'cannot patch resource "kubearmorpolicies/status"' in said
        assert "give the account that right" in said
        assert "Traceback" not in said
        assert watching.end() == 0
    finally:
        await asyncio.to_thread(told.api_server.kubectl, "delete", "clusterrolebinding,clusterrole", "reads")


async def test_definitions_older_than_statuses_are_told_in_one_sentence(hauberk: Any, told: Told) -> None:
    name = "kubearmorpolicies.security.kubearmor.com"
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    before = (await asyncio.to_thread(told.api_server.get, path))["spec"]["versions"][0]["subresources"]

    def set_subresources(value: str) -> None:
        patch = f'[{{"op": "replace", "path": "/spec/versions/0/subresources", "value": {value}}}]'
        told.api_server.kubectl("patch", "crd", name, "--type=json", "-p", patch)

    async def served() -> bool:
        found = await asyncio.to_thread(told.api_server.get, "/apis/security.kubearmor.com/v1")
        return "kubearmorpolicies/status" in {one["name"] for one in found["resources"]}

    async def not_served() -> bool:
        return not await served()

    await asyncio.to_thread(set_subresources, "{}")
    try:
        await told.until(not_served)
        watching = hauberk.start("cluster", **settings(told.api_server))
        said = await asyncio.to_thread(watching.until, "an older one without")
        assert "expected the definition of KubeArmorPolicy to have a status" in said
        assert "apply deploy/kubernetes/crds" in said
        assert "Traceback" not in said
        await asyncio.to_thread(told.api_server.apply, policy("without"))

        async def taken() -> bool:
            return f"KubeArmorPolicy/{PLACE}/without".encode() in await told.bus.latest(POLICIES)

        await told.until(taken)
        assert watching.end() == 0
    finally:
        await asyncio.to_thread(set_subresources, msgspec.json.encode(before).decode())
        await told.until(served)
