# SPDX-License-Identifier: Apache-2.0
"""Credentials of `hauberk cluster` that the API server does not take, or no longer: told of each kind once, and read again once renewed."""

from __future__ import annotations

import json
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import kafka_cluster
import pytest
from service_tokens import account, signed

from cluster.policy_object import KINDS

pytestmark = pytest.mark.kubernetes

PLACE = "credentials"
REFUSED = "(?:cannot be followed|wait for)[^\\n]* got 401: "
"""Not what else a server may say: 429 of a kind that was defined a moment ago."""
FOLLOWED = {"replicasets", "jobs", "namespaces", "nodes", "services", "endpointslices", "pods", *KINDS}


class Watching:
    """`hauberk cluster` by the kubeconfig at `file`."""

    def __init__(self, hauberk: Any, file: Any) -> None:
        self._port = kafka_cluster.free_ports(1)[0]
        environment = {
            "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(file), "HAUBERK__CLUSTER__LEASE__ENABLED": "false",
            "HAUBERK__METRICS__ENABLED": "true", "HAUBERK__METRICS__PORT": str(self._port),
        }  # fmt: skip
        self.running = hauberk.start("cluster", **environment)

    def not_ready(self) -> set[str] | None:
        """What `/readyz` names; None while nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=60) as answer:
                body = answer.read()
        except urllib.error.HTTPError as error:
            body = error.read()
        except OSError:
            return None
        return set(json.loads(body)["not_ready"])

    def told(self, words: str) -> list[str]:
        """The kinds that were told so, each as often as it was."""
        return re.findall(rf"(\w+) of the cluster {words}", self.running.said())


def test_credentials_that_were_never_good_are_told_of_each_kind(
    hauberk: Any, api_server: Any, eventually: Callable[..., Any]
) -> None:
    file = hauberk.home / "kubeconfig"
    shutil.copy(api_server.kubeconfig("wrong"), file)
    watching = Watching(hauberk, file)
    eventually(lambda: set(watching.told(REFUSED)) == FOLLOWED)
    assert watching.not_ready() == {f"cluster.{kind}" for kind in FOLLOWED}
    assert sorted(watching.told(REFUSED)) == sorted(FOLLOWED)
    shutil.copy(api_server.kubeconfig(), file)
    eventually(lambda: watching.not_ready() == set())
    assert set(watching.told("are followed again")) == FOLLOWED
    assert watching.running.end() == 0


def test_a_token_that_expires_is_told_of_each_kind_at_once_and_a_renewed_kubeconfig_is_taken(
    hauberk: Any, api_server: Any, eventually: Callable[..., Any]
) -> None:
    uid = account(api_server, PLACE, "watcher")
    file = hauberk.home / "kubeconfig"
    shutil.copy(api_server.kubeconfig(signed(api_server, PLACE, "watcher", uid, 25.0)), file)
    watching = Watching(hauberk, file)
    try:
        eventually(lambda: watching.not_ready() == set())

        def refused() -> bool:
            # The server takes a token for some seconds after its end. Watches that began before go on: it is the status of a policy
            # that is written, and refused.
            policy(api_server)
            return bool(watching.told(REFUSED))

        eventually(refused)
        eventually(lambda: set(watching.told(REFUSED)) == FOLLOWED, 5)
        assert watching.not_ready() == {f"cluster.{kind}" for kind in FOLLOWED}
        assert sorted(watching.told(REFUSED)) == sorted(FOLLOWED)
        assert "renew the kubeconfig" in watching.running.said()
        shutil.copy(api_server.kubeconfig(signed(api_server, PLACE, "watcher", uid, 3600.0)), file)
        eventually(lambda: watching.not_ready() == set())
        assert set(watching.told("are followed again")) == FOLLOWED
        generation = policy(api_server)

        def written() -> bool:
            path = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies/one"
            return bool((api_server.get(path).get("status") or {}).get("observedGeneration") == generation)

        eventually(written)
        assert "Traceback" not in watching.running.said()
        assert watching.running.end() == 0
    finally:
        api_server.kubectl("delete", "ksp", "--all", "-n", PLACE)
        api_server.kubectl("delete", "clusterrolebinding", f"{PLACE}-watcher")


def policy(api_server: Any) -> int:
    """A policy that changes with each call; its generation."""
    path = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies/one"
    before = (api_server.get(path).get("metadata") or {}).get("generation", 0)
    api_server.apply({
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "one", "namespace": PLACE},
        "spec": {"selector": {}, "network": {"matchProtocols": [{"protocol": "udp"}]}, "action": "Block", "message": f"version {before}"},
    })  # fmt: skip
    return int(api_server.get(path)["metadata"]["generation"])
