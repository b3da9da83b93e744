# SPDX-License-Identifier: Apache-2.0
"""The validating webhook on a real API server: `kubectl apply` is refused in the words of `policy check`, and fails open without it."""

from __future__ import annotations

import asyncio
import base64
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytestmark = pytest.mark.kubernetes

PLACE = "webhook"


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=hauberk",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", tmp_path / "tls.key", "-out", tmp_path / "tls.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    return tmp_path / "tls.crt"


@pytest.fixture
def place(api_server: Any) -> Iterator[None]:
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}})
    yield
    api_server.kubectl("delete", "validatingwebhookconfiguration", "--ignore-not-found", PLACE)
    api_server.kubectl("delete", "ksp", "--all", "-n", PLACE)


def policy(protocol: str, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": name, "namespace": PLACE},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "network": {"matchProtocols": [{"protocol": protocol}]}, "action": "Block"},
    }  # fmt: skip


def configuration(port: int, certificate: Path) -> dict[str, Any]:
    """As the chart's, with an address where that has a service."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration", "metadata": {"name": PLACE},
        "webhooks": [{
            "name": "policies.hauberk.io", "failurePolicy": "Ignore", "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "timeoutSeconds": 5, "matchPolicy": "Equivalent",
            "clientConfig": {"url": f"https://127.0.0.1:{port}/validate", "caBundle": base64.b64encode(certificate.read_bytes()).decode()},
            "rules": [{"apiGroups": ["security.kubearmor.com"], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"],
                       "resources": ["kubearmorpolicies", "kubearmorhostpolicies", "kubearmorclusterpolicies", "kubearmornetworkpolicies"]}],
        }],
    }  # fmt: skip


async def test_apply_is_refused_in_the_words_of_policy_check_and_taken_when_nobody_answers(
    hauberk: Any, api_server: Any, place: None, certificate: Path, until: Any
) -> None:
    def apply(protocol: str, name: str) -> subprocess.CompletedProcess[str]:
        given = msgspec.json.encode(policy(protocol, name)).decode()
        done: subprocess.CompletedProcess[str] = api_server.kubectl("apply", "-f", "-", given=given, check=False)
        return done

    settings = {
        "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig()),
        "HAUBERK__CLUSTER__LEASE__ENABLED": "false", "HAUBERK__CLUSTER_WEBHOOK__ENABLED": "true",
        "HAUBERK__CLUSTER_WEBHOOK__PORT": "0", "HAUBERK__CLUSTER_WEBHOOK__CERT_FILE": str(certificate),
        "HAUBERK__CLUSTER_WEBHOOK__KEY_FILE": str(certificate.with_name("tls.key")),
    }  # fmt: skip
    running = hauberk.start("cluster", **settings)
    found = re.search(r"policies are checked on port (\d+)", await asyncio.to_thread(running.ready))
    assert found
    await asyncio.to_thread(api_server.apply, configuration(int(found[1]), certificate))

    async def refused() -> subprocess.CompletedProcess[str] | None:
        done = await asyncio.to_thread(apply, "carrier-pigeon", "wrong")
        return done if done.returncode else None

    # The API server reads a new configuration within a second or so.
    done = await until(refused)
    await asyncio.to_thread(api_server.kubectl, "delete", "ksp", "--all", "-n", PLACE)
    file = hauberk.home / "wrong.json"
    file.write_bytes(msgspec.json.encode(policy("carrier-pigeon", "wrong")))
    checked = hauberk("policy", "check", "-o", "json", str(file))
    assert checked.returncode == 2
    errors = [one for one in msgspec.json.decode(checked.stdout)["diagnostics"] if one["level"] == "error"]
    assert errors
    for one in errors:
        assert f"{one['path']}: {one['message']}" in done.stderr
    assert 'admission webhook "policies.hauberk.io" denied the request: hauberk policy check: ' in done.stderr
    assert (await asyncio.to_thread(apply, "udp", "right")).returncode == 0
    # What is in the cluster cannot be made wrong either, and stays.
    assert (await asyncio.to_thread(apply, "carrier-pigeon", "right")).returncode == 1
    assert running.end() == 0
    # Fails open: taken, and told where it stands.
    assert (await asyncio.to_thread(apply, "carrier-pigeon", "late")).returncode == 0
    running = hauberk.start("cluster", **settings)

    async def told() -> Any:
        path = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies/late"
        return ((await asyncio.to_thread(api_server.get, path)).get("status") or {}).get("errors")

    (error,) = await until(told)
    assert f"{errors[0]['path']}: {errors[0]['message']}" in error
    assert running.end() == 0
