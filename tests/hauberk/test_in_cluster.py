# SPDX-License-Identifier: Apache-2.0
"""Verbs with `--kubeconfig`: the same verb in a pod, by exec through a real API server. The kubelet is a stand-in (`tests/cluster/kubelet.py`)."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubelet import Kubelet, serving

pytestmark = pytest.mark.kubernetes

PLACE = "laptop"
NODE = "laptop-n1"
POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: no-udp, namespace: shop}
spec: {selector: {matchLabels: {app: web}}, network: {matchProtocols: [{protocol: udp}]}, action: Block}
"""


def pod(component: str, ready: str = "True") -> tuple[dict[str, Any], dict[str, Any]]:
    meta = {"name": f"hauberk-{component}-x", "namespace": PLACE,
            "labels": {"app.kubernetes.io/name": "hauberk", "app.kubernetes.io/component": component}}  # fmt: skip
    made = {"apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {"nodeName": NODE, "containers": [{"name": "injected", "image": "proxy"}, {"name": component, "image": "hauberk"}]}}  # fmt: skip
    return made, {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}]}


@pytest.fixture
async def kubelet(hauberk: Any, api_server: Any, tmp_path: Path) -> AsyncIterator[Kubelet]:
    """A node whose kubelet runs `hauberk` over the test's own bus, and a ready pod of the cluster role on it."""
    made = Kubelet({"hauberk": [hauberk.program]}, hauberk.environment())
    async with serving(made, tmp_path):
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}
        one, status = pod("cluster")
        await asyncio.to_thread(api_server.apply, namespace, node, one)
        endpoint = {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}], "daemonEndpoints": {"kubeletEndpoint": {"Port": made.port}}}  # fmt: skip
        await asyncio.to_thread(api_server.status, "node", PLACE, NODE, endpoint)
        await asyncio.to_thread(api_server.status, "pod", PLACE, one["metadata"]["name"], status)
        yield made
        await asyncio.to_thread(
            api_server.kubectl, "delete", "pod", "--all", "-n", PLACE, "--grace-period=0", "--force"
        )
        await asyncio.to_thread(api_server.kubectl, "delete", "node", NODE)


async def asked(hauberk: Any, api_server: Any, *words: str, token: str = "admin") -> subprocess.CompletedProcess[str]:
    """The command on the laptop, which has no bus of its own."""
    file = str(api_server.kubeconfig(token))
    done: subprocess.CompletedProcess[str] = await asyncio.to_thread(
        hauberk, *words, f"--kubeconfig={file}", "--installed-in", PLACE, HAUBERK_STATE=str(hauberk.home / "laptop")
    )
    return done


async def test_output_errors_and_exit_code_are_those_of_the_verb_there(
    hauberk: Any, api_server: Any, kubelet: Kubelet
) -> None:
    file = hauberk.home / "policy.yaml"
    file.write_text(POLICY)
    (hauberk.state / "bus").mkdir(parents=True)
    assert (await asyncio.to_thread(hauberk, "apply", "-f", str(file))).returncode == 0
    here = await asyncio.to_thread(hauberk, "get", "policies", "-o", "json")
    there = await asked(hauberk, api_server, "get", "policies", "-o", "json")
    assert (there.returncode, there.stdout, there.stderr) == (0, here.stdout, here.stderr)
    assert "no-udp" in there.stdout
    assert kubelet.asked == [(f"/exec/{PLACE}/hauberk-cluster-x/cluster", ["hauberk", "get", "policies", "-o", "json"])]
    none = await asked(hauberk, api_server, "describe", "policy", "nobody")
    assert none.returncode == 1
    assert "expected policy `nobody`, there is none" in none.stderr


async def test_who_may_not_who_is_not_there_and_what_does_not_fit_are_one_sentence(
    hauberk: Any, api_server: Any, kubelet: Kubelet
) -> None:
    done = await asked(hauberk, api_server, "get", "policies", token="nobody")
    assert done.returncode == 3
    assert 'cannot list resource "pods"' in done.stderr
    rules = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]
    role = {"apiVersion": "rbac.authorization.k8s.io/v1", "metadata": {"name": "lists", "namespace": PLACE}}
    await asyncio.to_thread(
        api_server.apply, role | {"kind": "Role", "rules": rules},
        role | {"kind": "RoleBinding", "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "lists"},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "nobody"}]},
    )  # fmt: skip
    done = await asked(hauberk, api_server, "get", "policies", token="nobody")
    await asyncio.to_thread(api_server.kubectl, "delete", "role,rolebinding", "lists", "-n", PLACE)
    assert done.returncode == 3
    assert "needs `get` and `create` on `pods/exec`" in done.stderr
    done = await asked(hauberk, api_server, "summary")
    assert done.returncode == 3
    assert "expected a ready pod of Hauberk's component `sink-store` in namespace `laptop`" in done.stderr
    done = await asked(hauberk, api_server, "get", "policies", "--set", "bus.type=kafka")
    assert done.returncode == 2
    assert "--config, --set and --state are of a bus that is reached from here" in done.stderr
    kubelet._programs = {}
    done = await asked(hauberk, api_server, "get", "policies")
    assert done.returncode == 3
    assert "executable file not found" in done.stderr
    for text in (done.stderr, done.stdout):
        assert "Traceback" not in text
    assert not [path for path, _ in kubelet.asked if "sink-store" in path]


async def test_a_kubelet_that_does_not_answer_is_told(hauberk: Any, api_server: Any, kubelet: Kubelet) -> None:
    endpoint = {"daemonEndpoints": {"kubeletEndpoint": {"Port": 1}}}
    await asyncio.to_thread(api_server.status, "node", PLACE, NODE, endpoint)
    done = await asked(hauberk, api_server, "logs")
    assert done.returncode == 3
    assert "does the kubelet of its node answer?" in done.stderr
    assert "Traceback" not in done.stderr
    # Any of the three options sends the verb there, with the usual kubeconfig.
    done = await asyncio.to_thread(
        hauberk, "logs", "--installed-in", PLACE, KUBECONFIG=str(api_server.kubeconfig()), HAUBERK_STATE=str(hauberk.home / "laptop"),
    )  # fmt: skip
    assert done.returncode == 3
    assert f"in pod {PLACE}/hauberk-cluster-x" in done.stderr
