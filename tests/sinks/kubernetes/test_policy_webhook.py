# SPDX-License-Identifier: Apache-2.0
"""The webhook over TLS: what it refuses and lets through, and that no body, however made, does more than be refused."""

from __future__ import annotations

import asyncio
import contextlib
import io
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from hauberk.policy_findings import findings
from schemas.errors import SettingsError
from sinks import listener
from sinks.kubernetes import policy_webhook
from sinks.kubernetes.policy_webhook import MOST_BODY, PolicyWebhook, answer
from sinks.kubernetes.settings import ClusterWebhookSettings


def certificate(directory: Path, name: str = "127.0.0.1") -> ClusterWebhookSettings:
    """Signed by itself, for `name`."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", directory / "tls.key", "-out", directory / "tls.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    return ClusterWebhookSettings(
        enabled=True, port=0, cert_file=str(directory / "tls.crt"), key_file=str(directory / "tls.key")
    )


def review(protocol: str = "udp", kind: str = "KubeArmorPolicy", **more: Any) -> bytes:
    meta = {"name": "one", "namespace": "shop", "uid": "o1", "managedFields": [{"manager": "kubectl"}], **more}
    spec = {
        "selector": {"matchLabels": {"a": "b"}},
        "network": {"matchProtocols": [{"protocol": protocol}]},
        "action": "Block",
    }
    made = {
        "apiVersion": "security.kubearmor.com/v1",
        "kind": kind,
        "metadata": meta,
        "spec": spec,
        "status": {"status": "old"},
    }
    return msgspec.json.encode({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {"uid": "r1", "kind": {"group": "security.kubearmor.com", "version": "v1", "kind": kind}, "operation": "CREATE", "object": made},
    })  # fmt: skip


def said(body: bytes) -> dict[str, Any]:
    allowed, made = answer(body, findings)
    response: dict[str, Any] = msgspec.json.decode(made)["response"]
    assert (response["uid"], response["allowed"]) == ("r1", allowed)
    return response


def test_a_policy_with_errors_is_refused_with_every_path() -> None:
    response = said(review("carrier-pigeon"))
    assert (response["allowed"], response["status"]["code"]) == (False, 422)
    assert "spec.network.matchProtocols[0]" in response["status"]["message"]
    assert "carrier-pigeon" in response["status"]["message"]


def test_a_valid_policy_is_let_through_without_a_word() -> None:
    assert said(review()) == {"uid": "r1", "allowed": True}


def test_what_is_being_deleted_and_what_is_not_ours_is_let_through() -> None:
    """A finalizer is taken off by an update: refused, a policy that came in while the webhook was away would never go."""
    assert said(review("carrier-pigeon", deletionTimestamp="2026-11-28T10:00:00Z"))["allowed"]
    assert said(review("carrier-pigeon", kind="Pod"))["allowed"]


def test_a_thousand_errors_are_a_bounded_message() -> None:
    body = msgspec.json.decode(review())
    body["request"]["object"]["spec"]["network"]["matchProtocols"] = [{"protocol": "x" * 3000}] * 1000
    assert 100 < len(said(msgspec.json.encode(body))["status"]["message"]) <= 8192


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"request": {}}', b'{"request": {"uid": 1, "kind": {"kind": "KubeArmorPolicy"}}}',
     review().replace(b'"metadata":{', b'"metadata":7,"more":{'), review().replace(b'"name":"one"', b'"name":\xff'),
     b'{"request":{"uid":"r1","kind":{"kind":"KubeArmorPolicy"}}}',
     b'{"request":{"uid":"r1","kind":{"kind":"KubeArmorPolicy"},"object":' + b"[" * 200_000 + b"]" * 200_000 + b"}}",
     b'{"request":{"uid":"r1","kind":{"kind":"KubeArmorPolicy"},"object":{"metadata":{},"spec":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001 + b"}}"],
)  # fmt: skip
def test_what_is_no_review_is_one_sentence(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"^expected an AdmissionReview of admission\.k8s\.io/v1, got: "):
        answer(body, findings)


@pytest.mark.parametrize(
    "spec", [7, "x", [], {"selector": 7}, {"action": ["Block"]}, {"network": {"matchProtocols": "udp"}}]
)
def test_a_spec_of_another_shape_is_refused(spec: Any) -> None:
    body = msgspec.json.decode(review())
    body["request"]["object"]["spec"] = spec
    response = said(msgspec.json.encode(body))
    assert not response["allowed"]
    assert response["status"]["message"].startswith("hauberk policy check: ")


@pytest.fixture
async def webhook(tmp_path: Path) -> AsyncIterator[PolicyWebhook]:
    made = PolicyWebhook(certificate(tmp_path), findings)
    await made.open()
    yield made
    await made.close()


async def asked(
    webhook: PolicyWebhook, tmp_path: Path, body: Any, method: str = "POST", path: str = "/validate"
) -> tuple[int, bytes]:
    trusted = ssl.create_default_context(cafile=str(tmp_path / "tls.crt"))
    url = f"https://127.0.0.1:{webhook.port}{path}"
    connector = aiohttp.TCPConnector(ssl=trusted)
    async with aiohttp.ClientSession(connector=connector) as session, session.request(method, url, data=body) as got:
        return got.status, await got.read()


async def test_it_answers_over_tls_and_bounds_what_it_reads(webhook: PolicyWebhook, tmp_path: Path) -> None:
    status, body = await asked(webhook, tmp_path, review("carrier-pigeon"))
    assert (status, msgspec.json.decode(body)["response"]["allowed"]) == (200, False)
    assert (await asked(webhook, tmp_path, review()))[0] == 200
    assert (await asked(webhook, tmp_path, io.BytesIO(bytes(MOST_BODY + 1))))[0] == 413
    assert (await asked(webhook, tmp_path, b"{"))[0] == 400
    assert (await asked(webhook, tmp_path, None, "GET"))[0] == 405
    assert (await asked(webhook, tmp_path, b"", path="/"))[0] == 404
    stats = webhook.stats
    assert (stats.allowed, stats.refused, stats.unreadable) == (1, 1, 2)


async def test_handshakes_that_nobody_goes_on_with_are_counted_and_make_room(
    webhook: PolicyWebhook, tmp_path: Path, until: Callable[..., Any]
) -> None:
    silent = [await asyncio.open_connection("127.0.0.1", webhook.port) for _ in range(100)]
    await until(lambda: webhook.listening.evicted >= 36)
    assert webhook.listening.connections == 64
    assert (await asked(webhook, tmp_path, review()))[0] == 200
    assert webhook.listening.connections <= 64
    for _, writer in silent:
        writer.transport.abort()
    await until(lambda: webhook.listening.connections == 0)


async def test_a_handshake_that_takes_too_long_or_is_none_ends(
    webhook: PolicyWebhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    monkeypatch.setattr(listener, "HEADER_SECONDS", 0.1)
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", webhook.port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(60):
                await reader.read()
        writer.transport.abort()
    await until(lambda: webhook.listening.connections == 0)
    assert webhook.listening.late == 1
    assert (await asked(webhook, tmp_path, review()))[0] == 200


async def test_a_body_that_never_ends_is_given_up(
    webhook: PolicyWebhook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_webhook, "HEADER_SECONDS", 0.2)
    waiting = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield b'{"request"'
        await waiting.wait()

    status, body = await asked(webhook, tmp_path, slowly())
    assert (status, body) == (408, b"expected a whole review within 0.2 s\n")


async def test_a_renewed_certificate_is_shown_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., Any]
) -> None:
    monkeypatch.setattr(policy_webhook, "_LOOK_SECONDS", 0.01)
    webhook = PolicyWebhook(certificate(tmp_path), findings)
    await webhook.open()
    try:
        (tmp_path / "tls.crt").write_text("half a file")
        certificate(tmp_path)

        async def shown() -> bool:
            try:
                return (await asked(webhook, tmp_path, review()))[0] == 200
            except aiohttp.ClientConnectorCertificateError:
                return False

        await until(shown)
    finally:
        await webhook.close()


async def test_no_certificate_is_a_setting_to_mend(tmp_path: Path) -> None:
    settings = ClusterWebhookSettings(enabled=True, cert_file=str(tmp_path / "none"), key_file=str(tmp_path / "none"))
    with pytest.raises(SettingsError, match=r"`cluster_webhook`: expected a certificate in .*Secret of type"):
        await PolicyWebhook(settings, findings).open()
