# SPDX-License-Identifier: Apache-2.0
"""A cluster that is not as it should be, on a real API server: each is one sentence with what to do, and nothing is dropped unsaid.

Rights that are missing: test_cluster_rights; definitions without status: test_cluster_status; an API server that is gone: tests/cluster.
"""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from service_tokens import signed

from bus.contract import Bus
from bus.embedded.bus import EmbeddedSettings
from bus.registry import open_bus
from cluster import server as cluster_server
from cluster.server import connected
from cluster.settings import ServerSettings
from schemas.topics import POLICIES

pytestmark = pytest.mark.kubernetes

PLACE = "badinput"
CRDS = Path(__file__).parents[2] / "deploy/kubernetes/crds"


@pytest.fixture
async def bus(hauberk: Any, api_server: Any) -> AsyncIterator[Bus]:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}
    await asyncio.to_thread(api_server.apply, namespace)
    opened = await open_bus(EmbeddedSettings(directory=str(hauberk.state / "bus")))
    yield opened
    await opened.close()
    await asyncio.to_thread(api_server.kubectl, "delete", "ksp", "--all", "-n", PLACE)


def settings(api_server: Any, token: str = "admin", **more: str) -> dict[str, str]:
    return {
        "HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig(token)), "HAUBERK__CLUSTER__LEASE__ENABLED": "false",
        "HAUBERK__CLUSTER_STATUS__WRITES_PER_SECOND": "1000",
    } | more  # fmt: skip


def policy(name: str, protocol: str = "udp", **spec: Any) -> dict[str, Any]:
    network = {"matchProtocols": [{"protocol": protocol}]}
    return {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": name, "namespace": PLACE},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "network": network, "action": "Block"} | spec,
    }  # fmt: skip


async def status(api_server: Any, name: str) -> dict[str, Any]:
    path = f"/apis/security.kubearmor.com/v1/namespaces/{PLACE}/kubearmorpolicies/{name}"
    found: dict[str, Any] = (await asyncio.to_thread(api_server.get, path)).get("status") or {}
    return found


async def test_a_definition_that_is_missing_is_told_and_followed_once_it_is_there(
    hauberk: Any, bus: Bus, api_server: Any, until: Callable[..., Any]
) -> None:
    name = "kubearmornetworkpolicies.security.kubearmor.com"
    await asyncio.to_thread(api_server.kubectl, "delete", "crd", name)
    try:
        running = hauberk.start("cluster", **settings(api_server))
        said = await asyncio.to_thread(running.until, "kubearmornetworkpolicies of the cluster cannot be followed")
        assert "`kubectl apply --server-side -f deploy/kubernetes/crds` defines it" in said
        # The other kinds are followed all the same.
        await asyncio.to_thread(running.ready)
        await asyncio.to_thread(api_server.apply, policy("other"))

        async def there() -> bool:
            return f"KubeArmorPolicy/{PLACE}/other".encode() in await bus.latest(POLICIES)

        await until(there)
    finally:
        await asyncio.to_thread(api_server.kubectl, "apply", "--server-side", "-f", str(CRDS))
        await asyncio.to_thread(
            api_server.kubectl, "wait", "--for=condition=Established", "-f", str(CRDS), "--timeout=60s"
        )
    await asyncio.to_thread(running.until, "kubearmornetworkpolicies of the cluster are followed again")
    firewall = {
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorNetworkPolicy", "metadata": {"name": PLACE},
        "spec": {"nodeSelector": {"matchLabels": {"kubernetes.io/hostname": "nowhere"}},
                 "ingress": [{"ports": [{"protocol": "TCP", "port": "22"}]}], "action": "Block"},
    }  # fmt: skip
    await asyncio.to_thread(api_server.apply, firewall)
    try:

        async def followed() -> bool:
            return f"KubeArmorNetworkPolicy//{PLACE}".encode() in await bus.latest(POLICIES)

        await until(followed)
    finally:
        await asyncio.to_thread(api_server.kubectl, "delete", "kubearmornetworkpolicy", PLACE)
    assert running.end() == 0


async def test_credentials_that_are_wrong_or_expired_are_one_sentence_and_nothing_is_removed(
    hauberk: Any, bus: Bus, api_server: Any, until: Callable[..., Any]
) -> None:
    first = hauberk.start("cluster", **settings(api_server))
    await asyncio.to_thread(api_server.apply, policy("stays"))
    key = f"KubeArmorPolicy/{PLACE}/stays".encode()

    async def there() -> bool:
        return key in await bus.latest(POLICIES)

    await until(there)
    assert first.end() == 0
    for token in ("wrong", signed(api_server, PLACE, "old", "u", -3600.0)):
        running = hauberk.start("cluster", **settings(api_server, token))
        said = await asyncio.to_thread(running.until, "of the cluster cannot be followed.*renew the kubeconfig")
        assert "got 401: Unauthorized; the token or certificate is wrong or expired" in said
        assert "Traceback" not in said
        assert running.end() == 0
        assert await there()


@pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
async def test_a_cluster_whose_clock_is_off_is_told_once(
    api_server: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, ahead: float
) -> None:
    class Clock:
        monotonic, gmtime, strftime = time.monotonic, time.gmtime, time.strftime

        @staticmethod
        def time() -> float:
            return time.time() - ahead

    async with connected(ServerSettings(kubeconfig=str(api_server.kubeconfig()))) as server:
        await server.get("/version")
        assert caplog.text == ""
        monkeypatch.setattr(cluster_server, "time", Clock)
        for _ in range(3):
            await server.get("/version")
        assert abs(server.clock_off - ahead) < 60
    (told,) = [one for one in caplog.messages if "expected the clock of the API server" in one]
    assert "set the clocks right (NTP)" in told


OLD = """\
[ca]
default_ca = old
[old]
database = index
serial = serial
new_certs_dir = .
policy = any
default_md = sha256
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
subjectAltName = IP:127.0.0.1
basicConstraints = CA:TRUE
"""


def valid_in_2020(directory: Path) -> None:
    """`crt` and `key`: a certificate of its own authority for 127.0.0.1, which has expired."""
    for name, text in {"conf": OLD, "index": "", "serial": "01\n"}.items():
        (directory / name).write_text(text)
    for words in (
        "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=old -keyout key -out csr",
        "ca -batch -config conf -selfsign -keyfile key -in csr -out crt -notext -startdate 20200101000000Z -enddate 20210101000000Z",
    ):
        subprocess.run(["openssl", *words.split()], cwd=directory, check=True, capture_output=True)


async def test_a_certificate_that_is_not_valid_by_this_clock_is_told_as_that(tmp_path: Path, api_server: Any) -> None:
    await asyncio.to_thread(valid_in_2020, tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "crt", tmp_path / "key")
    old = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    async with old:
        address = f"https://127.0.0.1:{old.sockets[0].getsockname()[1]}"
        file = api_server.kubeconfig(**{"server": address, "certificate-authority": str(tmp_path / "crt")})
        async with connected(ServerSettings(kubeconfig=str(file))) as server:
            with pytest.raises(
                cluster_server.Refused, match=r"has expired.*; set the clock right, or renew the server's certificate"
            ):
                await server.get("/version")


async def test_a_policy_larger_than_the_bus_takes_is_told_in_its_status(
    hauberk: Any, bus: Bus, api_server: Any, until: Callable[..., Any]
) -> None:
    """And the one of that name before it stays in force."""
    running = hauberk.start("cluster", **settings(api_server, HAUBERK__BUS__RECORD_BYTES="20000"))
    await asyncio.to_thread(api_server.apply, policy("grows"))
    key = f"KubeArmorPolicy/{PLACE}/grows".encode()

    async def there() -> Any:
        return (await bus.latest(POLICIES)).get(key)

    before = await until(there)
    await asyncio.to_thread(api_server.apply, policy("grows", message="m" * 30_000))

    async def refused() -> dict[str, Any] | None:
        found = await status(api_server, "grows")
        return found if found.get("status") == "Refused" else None

    found = await until(refused)
    assert "the bus does not take it" in found["errors"][0]
    assert "`record_bytes` 20000" in found["errors"][0]
    assert "what was valid before stays in force" in found["conditions"][0]["message"]
    assert (await there()).value == before.value
    await asyncio.to_thread(api_server.apply, policy("grows", message="short"))

    async def taken() -> bool:
        return (await there()).value != before.value and (await status(api_server, "grows")).get("status") == "Waiting"

    await until(taken)
    assert running.end() == 0


async def test_an_object_as_large_as_etcd_takes_has_a_short_status_or_a_line_in_the_log(
    hauberk: Any, bus: Bus, api_server: Any, until: Callable[..., Any]
) -> None:
    """1.5 MiB with what the server adds. Ten uploads of that size find the last bytes, which is what takes the time."""
    running = hauberk.start("cluster", **settings(api_server))
    wrong = policy("full", network={"matchProtocols": [{"protocol": f"pigeon-{number}"} for number in range(60)]})

    async def written(verb: str, size: int) -> subprocess.CompletedProcess[str]:
        given = msgspec.json.encode(wrong | {"spec": wrong["spec"] | {"message": "m" * size}}).decode()
        done: subprocess.CompletedProcess[str] = await asyncio.to_thread(
            api_server.kubectl, verb, "-f", "-", "--field-manager=t", given=given, check=False
        )
        return done

    taken, refused = 1_530_000, 1_580_000
    while refused - taken > 200:
        size = (taken + refused) // 2
        done = await written("create", size)
        if done.returncode == 0:
            taken = size
            await asyncio.to_thread(api_server.kubectl, "delete", "ksp", "full", "-n", PLACE)
        else:
            assert "too large" in done.stderr
            refused = size
    done = await written("create", taken)
    assert done.returncode == 0, done.stderr
    await asyncio.to_thread(running.until, f"what became of KubeArmorPolicy/{PLACE}/full is told in no status")
    assert "etcd takes objects of 1.5 MiB: write a smaller one" in running.said()
    assert await status(api_server, "full") == {}
    done = await written("replace", taken - 4000)
    assert done.returncode == 0, done.stderr

    async def told() -> dict[str, Any] | None:
        found = await status(api_server, "full")
        return found if found.get("status") == "Refused" else None

    found = await until(told)
    assert "pigeon-0" in found["errors"][0]
    assert found["errors"][1].startswith("and ")
    assert running.end() == 0
