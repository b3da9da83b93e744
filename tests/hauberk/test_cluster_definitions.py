# SPDX-License-Identifier: Apache-2.0
"""A cluster whose definitions of policies are KubeArmor's own and not ours: policies are in force, the word is told, and what is not is said.

The definitions are ours cut down to what KubeArmor's have, as read in its repository: the older release in
deployments/CRD/KubeArmorPolicy.yaml at commit 0163565e (a selector of `matchLabels` alone), and of all kinds, as in
deployments/CRD/KubeArmorNetworkPolicy.yaml at c729162d, a status of one word, no rules across fields, and three columns.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from told_cluster import KEY, PLACE, REF, Told, policy, settings, told_cluster

from bus.contract import Record
from policy.tools.custom_resources import NAMES, definition
from schemas.alert import Alert, encode_alert
from schemas.enforcement import Refusal
from schemas.operations import Backend
from schemas.refusals import RefusalCode
from schemas.topics import ALERTS, POLICIES

pytestmark = pytest.mark.kubernetes

CRDS = Path(__file__).parents[2] / "deploy/kubernetes/crds"
NEWEST = "kubearmornetworkpolicies"
"""KubeArmor had no such kind before 1.6."""


def kubearmors(kind: str) -> list[dict[str, Any]]:
    """`spec.versions` of the definition of `kind` as KubeArmor has it."""
    version = copy.deepcopy(definition(kind)["spec"]["versions"][0])
    schema = _without_rules(version["schema"]["openAPIV3Schema"])
    del schema["required"]
    schema["properties"]["status"] = {"type": "object", "properties": {"status": {"type": "string"}}}
    if kind == "KubeArmorPolicy":
        del schema["properties"]["spec"]["properties"]["selector"]["properties"]["matchExpressions"]
    age = {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}
    action = {"name": "Action", "type": "string", "jsonPath": ".spec.action", "priority": 10}
    selector = {"name": "Selector", "type": "string", "jsonPath": ".spec.selector.matchLabels", "priority": 10}
    return [version | {"schema": {"openAPIV3Schema": schema}, "additionalPrinterColumns": [age, action, selector]}]


def _without_rules(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_rules(value) for key, value in schema.items() if key != "x-kubernetes-validations"}
    return [_without_rules(one) for one in schema] if isinstance(schema, list) else schema


@pytest.fixture
async def told(hauberk: Any, api_server: Any, until: Callable[..., Any]) -> AsyncIterator[Told]:
    def theirs() -> None:
        for kind, (plural, _, _) in NAMES.items():
            name = f"{plural}.security.kubearmor.com"
            if plural == NEWEST:
                api_server.kubectl("delete", "crd", name)
                continue
            patch = [{"op": "replace", "path": "/spec/versions", "value": kubearmors(kind)}]
            words = ("patch", "crd", name, "--type=json", "--field-manager=operator", "-p", json.dumps(patch))
            api_server.kubectl(*words)

    def ours() -> None:
        api_server.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(CRDS))
        api_server.kubectl("wait", "--for=condition=Established", "-f", str(CRDS), "--timeout=60s")

    async def served() -> str:
        found = await asyncio.to_thread(api_server.get, "/openapi/v3/apis/security.kubearmor.com/v1")
        return "".join(sorted(found.get("components", {}).get("schemas", {}))) + json.dumps(found).replace(" ", "")

    async def is_theirs() -> bool:
        said = await served()
        return "KubeArmorNetworkPolicy" not in said and "observedGeneration" not in said

    async def is_ours() -> bool:
        said = await served()
        return "KubeArmorNetworkPolicy" in said and "observedGeneration" in said

    await asyncio.to_thread(theirs)
    try:
        await until(is_theirs)
        async with told_cluster(hauberk, api_server, until) as made:
            yield made
    finally:
        await asyncio.to_thread(ours)
        await until(is_ours)


def doctor(hauberk: Any, api_server: Any) -> dict[str, list[tuple[str, str]]]:
    """What it found: by what was checked, level and sentence."""
    done = hauberk("doctor", "-o", "json", "--set", f"cluster.server.kubeconfig={api_server.kubeconfig()}")
    found: dict[str, list[tuple[str, str]]] = {}
    for one in json.loads(done.stdout):
        found.setdefault(one["what"], []).append((one["level"], one["found"]))
    return found


async def test_policies_are_in_force_the_word_is_told_and_what_is_lost_is_one_sentence(
    hauberk: Any, told: Told
) -> None:
    watching = hauberk.start("cluster", **settings(told.api_server))
    planning = hauberk.start("planner")
    await told.answer()
    await told.word("InForce")
    assert (await told.object())["status"] == {"status": "InForce"}
    assert (await told.event("InForce"))["message"] == "1 container on 1 node"
    refusal = Refusal(ref=REF, reason="the kernel is too old", backend=Backend.CGROUP, code=RefusalCode.NOT_CHOSEN)
    await told.answer(refusal)
    await told.word("Partial")
    assert "the kernel is too old [not-chosen]" in (await told.event("NotEnforced"))["message"]
    alert = Alert(Timestamp=1, UpdatedTime="2026-11-28T10:00:00Z", PolicyName="no-udp", NamespaceName=PLACE, PodName="web-1",
                  Type="MatchedPolicy", Action="Block", Count=40, ProcessName="/usr/bin/dig", Operation="Network", Resource="udp")  # fmt: skip
    await told.bus.publish(ALERTS, [Record(b"w", encode_alert(alert))])
    assert "of web-1 (40)" in (await told.event("Blocked"))["message"]
    # A wrong policy too; and what the kind that is missing needs.
    await asyncio.to_thread(told.api_server.apply, policy("wrong", "carrier-pigeon"))
    await told.word("Refused", "wrong")
    assert "carrier-pigeon" in (await told.event("Refused", "wrong"))["message"]
    said = watching.said()
    assert said.count("expected the definition of KubeArmorPolicy to keep a whole status") == 1
    assert "--force-conflicts -f deploy/kubernetes/crds" in said
    assert "`kubectl apply --server-side -f deploy/kubernetes/crds` defines it" in said
    assert "Traceback" not in said
    watching.ready()
    assert (watching.end(), planning.end()) == (0, 0)


async def test_the_doctor_names_what_each_definition_lacks_and_ours_over_them_are_whole(
    hauberk: Any, told: Told
) -> None:
    watching = hauberk.start("cluster", **settings(told.api_server))
    await told.word("Waiting")
    found = await asyncio.to_thread(doctor, hauberk, told.api_server)
    assert {what for what in found if what in NAMES} == set(NAMES)
    assert found["KubeArmorNetworkPolicy"] == [(
        "warn", "expected a definition of it in the cluster, got none; `kubectl apply --server-side -f deploy/kubernetes/crds` defines it",
    )]  # fmt: skip
    ((level, sentence),) = found["KubeArmorHostPolicy"]
    assert level == "warn"
    assert "keeps of a status the word alone" in sentence
    assert "kubectl apply --server-side --force-conflicts -f deploy/kubernetes/crds" in sentence
    assert "drops from policies" not in sentence
    sentences = " ".join(text for _, text in found["KubeArmorPolicy"])
    assert "drops from policies what it does not name: `spec.selector.matchExpressions`" in sentences
    # Without force somebody else's definitions are left alone, which kubectl says.
    done = await asyncio.to_thread(
        told.api_server.kubectl, "apply", "--server-side", "-f", str(CRDS), check=False
    )  # fmt: skip
    assert "conflict" in done.stderr
    await asyncio.to_thread(told.api_server.kubectl, "apply", "--server-side", "--force-conflicts", "-f", str(CRDS))

    async def whole() -> bool:
        found = await asyncio.to_thread(doctor, hauberk, told.api_server)
        return all(found[kind] == [("ok", "its definition is ours, or says as much")] for kind in NAMES)

    await told.until(whole, 120)
    # The policies stayed, and a replica that starts says all that there is to say.
    assert watching.end() == 0
    assert KEY.encode() in await told.bus.latest(POLICIES)
    watching = hauberk.start("cluster", **settings(told.api_server))

    async def conditions() -> bool:
        return bool((await told.object())["status"].get("conditions"))

    await told.until(conditions)
    assert watching.end() == 0


async def test_the_doctor_says_why_a_cluster_cannot_be_asked(hauberk: Any, api_server: Any) -> None:
    file = hauberk.home / "kubeconfig"
    file.write_bytes(msgspec.yaml.encode({"clusters": "none"}))
    done = await asyncio.to_thread(
        hauberk, "doctor", "-o", "json", "--set", f"cluster.server.kubeconfig={file}"
    )  # fmt: skip
    (one,) = [one for one in json.loads(done.stdout) if one["what"] == "cluster"]
    assert one["level"] == "bad"
    assert "Traceback" not in done.stderr
    whole = await asyncio.to_thread(doctor, hauberk, api_server)
    assert all(whole[kind] == [("ok", "its definition is ours, or says as much")] for kind in NAMES)
