# SPDX-License-Identifier: Apache-2.0
"""All roles as processes over Kafka, each under an account of its own with the grants that are listed for it and no others: an event
becomes an alert at the other end and a plan is carried out; then the node boots again without a broker and enforces that plan."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import kafka_jars
import pytest
from kafka_grants import AUDIT, Grants, granted, used
from kafka_topics import create_topics

from bus.contract import Record
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
from schemas.identity import Identity, Kind, encode
from schemas.topics import INVENTORY

pytestmark = [pytest.mark.kernel, pytest.mark.usefixtures("live"), pytest.mark.timeout(900)]

NAME = f"hauberk-secure-{os.getpid()}"
PREFIX = "secure."
ACCOUNTS = {
    "node": "User:CN=node-1", "processor": "User:processor", "planner": "User:planner", "sink": "User:sink", "cli": "User:cli",
}  # fmt: skip
RARE = {
    (
        "User:CN=node-1",
        "topic",
        f"{PREFIX}alerts.v1",
        "Write",
    ): "losses, a stage that fails, a full disk, a name that is taken",
    ("User:CN=node-1", "topic", f"{PREFIX}dead.v1", "Write"): "what the brokers refuse for good while the spool drains",
}
"""Grants of the node that this run need not come to, and when a node does."""
POLICY = f"""\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: secure
spec:
  selector:
    matchLabels:
      kubearmor.io/container.name: {NAME}
  severity: 5
  network:
    matchProtocols:
    - protocol: tcp
  file:
    action: Audit
    matchDirectories:
    - dir: /tmp/{NAME}/
      recursive: true
  action: Block
"""


@pytest.fixture
def inside() -> Iterator[Callable[[str], str]]:
    """inside(code): what Python code prints in a cgroup of the test's own, which is declared as a container."""
    root = next(
        line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    )
    cgroup, files = Path(root, NAME), Path("/tmp", NAME)
    files.mkdir()
    cgroup.mkdir()

    def inside(code: str) -> str:
        command = f'echo $$ > {cgroup}/cgroup.procs && exec "$@"'
        done = subprocess.run(
            ["/bin/sh", "-c", command, "sh", sys.executable, "-S", "-c", code],
            capture_output=True,
            text=True,
            timeout=90,
        )
        return done.stdout.strip()

    yield inside
    for file in files.iterdir():
        file.unlink()
    files.rmdir()
    cgroup.rmdir()


class Accounts:
    """The settings of each account's bus, and its list of grants as the command prints it."""

    def __init__(self, kafka: Any, hauberk: Any) -> None:
        self.kafka, self.hauberk = kafka, hauberk
        self.password = hauberk.home / "password"
        self.password.write_text(kafka_jars.PASSWORD)
        self.password.chmod(0o600)

    def bus(self, role: str) -> str:
        authority, certificate, key = self.kafka.tls("node-1")
        common = {
            "type": "kafka",
            "prefix": PREFIX,
            "session_seconds": 6.0,
            "publish_seconds": 60.0,
            "call_seconds": 60.0,
        }
        if role == "node":
            tls = {"ca_file": authority, "cert_file": certificate, "key_file": key}
            own = {"bootstrap": self.kafka.addresses("MTLS"), "security_protocol": "SSL", "tls": tls}
        else:
            sasl = {"username": role, "password": {"file": str(self.password)}}
            own = {
                "bootstrap": self.kafka.addresses("SCRAM"), "security_protocol": "SASL_SSL", "sasl": sasl,
                "tls": {"ca_file": authority},
            }  # fmt: skip
        return json.dumps(common | own)

    def grants(self, role: str) -> list[dict[str, Any]]:
        done = self.hauberk(
            "topic", "acls", "--role", role, "--principal", ACCOUNTS[role], "-o", "json", HAUBERK__BUS=self.bus(role)
        )
        assert done.returncode == 0, done.stderr
        return list(json.loads(done.stdout))

    def start(self, role: str, **more: str) -> Any:
        return self.hauberk.start(
            role, HAUBERK_STATE=str(self.hauberk.home / f"state-{role}"), **{"HAUBERK__BUS": self.bus(role)} | more
        )


@pytest.mark.fault(
    "node that boots without brokers, after its programs were unloaded",
    "enforces the last plan it had, from its own disk; all roles ran under accounts with their listed grants alone",
)
async def test_roles_with_their_grants_and_a_boot_without_brokers(
    hauberk: Any, kafka_clusters: Any, inside: Callable[[str], str], eventually: Callable[..., Any]
) -> None:
    from kernel.loading import unload

    kafka = kafka_clusters(secure=True, options=(AUDIT,))
    await asyncio.to_thread(kafka.start)
    await create_topics(kafka.bootstrap, PREFIX, 3)
    # A container that went while nobody looked: the node reads of it when it starts.
    left = Identity(kind=Kind.CONTAINER, node="node-1", uid="left", container_name="left")
    bus = await KafkaBus.open(KafkaSettings(bootstrap=kafka.bootstrap, prefix=PREFIX))
    await bus.publish(INVENTORY, [Record(left.key, encode(left))])
    await bus.close()
    accounts = Accounts(kafka, hauberk)
    hauberk.pins += "-secure"
    lines = hauberk.home / "alerts.jsonl"
    hauberk.sinks = [{"type": "file", "path": str(lines)}]
    watched = {
        "HAUBERK__NODE": "node-1", "HAUBERK__INVENTORY__WORKLOADS": json.dumps([{"name": NAME, "cgroup": f"/{NAME}"}]),
        "HAUBERK__INVENTORY__RUNTIMES": "[]", "HAUBERK__SENSOR__LOAD__HOST_VISIBILITY": "0",
    }  # fmt: skip
    (hauberk.home / "policy.yaml").write_text(POLICY)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        connect = (
            f"import socket,errno\ntry: socket.create_connection(('127.0.0.1',{port}),60); print('ok')\n"
            "except OSError as e: print(errno.errorcode[e.errno])"
        )

        def denied() -> bool:
            return inside(connect) == "EPERM"

        def told() -> bool:
            inside(f"open('/tmp/{NAME}/told','w').close()")
            return lines.exists() and f"/tmp/{NAME}/told" in lines.read_text()

        lists = {role: await asyncio.to_thread(accounts.grants, role) for role in ACCOUNTS}
        async with Grants(kafka.bootstrap) as grants:
            for entries in lists.values():
                await grants.add(entries)
            try:
                running = {role: accounts.start(role) for role in ("processor", "planner", "sink")}
                running["node"] = accounts.start("node", **watched)
                for one in running.values():
                    await asyncio.to_thread(one.ready)
                done = await asyncio.to_thread(
                    lambda: hauberk(
                        "apply", "-f", "policy.yaml", "--wait", "90", seconds=180, HAUBERK__BUS=accounts.bus("cli")
                    )
                )
                assert done.returncode == 0, done.stderr
                await asyncio.to_thread(eventually, denied)
                await asyncio.to_thread(eventually, told)
                for role, one in running.items():
                    assert "grant" not in one.said(), (role, one.said())
                assert running["node"].end(signal.SIGTERM) == 0
                # As a boot does: nothing of it is in the kernel any more.
                unload(hauberk.pins)
                assert inside(connect) == "ok"
                away = json.dumps(json.loads(accounts.bus("node")) | {"bootstrap": "127.0.0.1:1"})
                again = accounts.start("node", HAUBERK__BUS=away, **watched)
                await asyncio.to_thread(again.ready)
                await asyncio.to_thread(eventually, denied)
                assert again.end(signal.SIGTERM) == 0
                for role in ("processor", "planner", "sink"):
                    assert running[role].end(signal.SIGTERM) == 0, running[role].said()
            finally:
                hauberk.close()
                with suppress(Exception):
                    unload(hauberk.pins)
    # That none of the others' is for nothing: test_kafka_used_grants.
    found = used((kafka.nodes[1].directory / "log").read_text(errors="replace"))
    assert {granted(entry) for entry in lists["node"]} - found <= RARE.keys()
