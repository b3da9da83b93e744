# SPDX-License-Identifier: Apache-2.0
"""A real API server refuses, vanishes and comes back; each is one sentence that says what to do."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.server import Conflict, connected
from cluster.settings import ServerSettings
from schemas.errors import HauberkError, Incompatible, Refused, SettingsError, Unavailable

pytestmark = pytest.mark.kubernetes


async def asked(kubeconfig: Path, path: str = "/api/v1/pods", **more: Any) -> bytes:
    async with connected(ServerSettings(kubeconfig=str(kubeconfig), timeout_seconds=5.0, **more)) as server:
        return await server.get(path, {"limit": "1"})


async def test_it_answers(api_server: Any) -> None:
    assert b'"kind":"PodList"' in await asked(api_server.kubeconfig())


@pytest.mark.parametrize(
    ("token", "path", "kind", "says"),
    [
        ("nobody", "/api/v1/pods", Refused, r'cannot list resource "pods".*give the account that right'),
        ("wrong", "/api/v1/pods", Refused, "401.*renew the kubeconfig"),
        ("admin", "/apis/nothing.example/v1/things", Incompatible, "404.*does not have this kind"),
    ],
)
async def test_a_refusal_says_what_to_do(
    api_server: Any, token: str, path: str, kind: type[HauberkError], says: str
) -> None:
    with pytest.raises(kind, match=says):
        await asked(api_server.kubeconfig(token), path)


async def test_the_certificate_of_another_is_not_trusted(api_server: Any, tmp_path: Path) -> None:
    other = tmp_path / "other.pem"
    import subprocess

    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=other", "-keyout", tmp_path / "key", "-out", other],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(Refused, match="certificate of the kubeconfig's authority"):
        await asked(api_server.kubeconfig(**{"certificate-authority": str(other)}))


async def test_nobody_there_is_told_as_absence(api_server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(Unavailable, match="expected an answer of the API server"):
        await asked(api_server.kubeconfig(server=f"https://127.0.0.1:{port}"))


async def test_a_silent_server_is_given_up(api_server: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"https://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Unavailable):
            await asked(api_server.kubeconfig(server=address))


async def test_a_kubeconfig_that_is_not_there_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(SettingsError, match="there is no such file"):
        await asked(tmp_path / "none")
    assert caplog.text == ""


@pytest.mark.parametrize("text", [None, "", "not: [yaml", "kind: Config\n", "clusters: 7\n"])
async def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "config"
    if text is not None:
        file.write_text(text)
    with pytest.raises(
        SettingsError, match=r"expected a cluster's address and credentials in .*config.*cluster\.server\.kubeconfig"
    ):
        await asked(file)


async def test_two_writers_of_one_object_conflict(api_server: Any) -> None:
    async with connected(ServerSettings(kubeconfig=str(api_server.kubeconfig()))) as server:
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "twice", "namespace": "default"}}
        await server.send("POST", "/api/v1/namespaces/default/configmaps", body)
        with pytest.raises(Conflict, match="409"):
            await server.send("POST", "/api/v1/namespaces/default/configmaps", body)
        await server.send("DELETE", "/api/v1/namespaces/default/configmaps/twice", None)
