# SPDX-License-Identifier: Apache-2.0
"""A process that OpenSSL was left out of: what it does without, and that it speaks TLS and makes hashes of passwords once asked to."""

from __future__ import annotations

import hashlib
import hmac
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import kafka_certificates
import kafka_jars
import pytest
from kafka_cluster import PROTOCOLS

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

HEAD = """
import sys
from bus.openssl import leave_out, take_in
def loaded():
    return any(name in line for line in open("/proc/self/maps") for name in ("libcrypto", "libssl"))
assert leave_out() and not loaded()
import asyncio, hashlib, hmac
"""


def told(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", HEAD + code, *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_loop_and_hashes_do_without() -> None:
    code = """
async def ask():
    async def answer(reader, writer):
        writer.write(await reader.readline())
        writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"asked\\n")
    said = await reader.readline()
    writer.close()
    server.close()
    return said.decode().strip()
print(asyncio.run(ask()), hashlib.sha256(b"a").hexdigest(), hashlib.blake2b(b"a").hexdigest(), hmac.digest(b"k", b"a", "sha256").hex())
assert not loaded()
"""
    assert told(code).split() == [
        "asked", hashlib.sha256(b"a").hexdigest(), hashlib.blake2b(b"a").hexdigest(),
        hmac.digest(b"k", b"a", "sha256").hex(),
    ]  # fmt: skip


def test_no_module_goes_on_without_once_it_is_taken_in() -> None:
    code = """
take_in()
take_in()
import ssl
left = [name for name, module in sys.modules.items() if name.startswith("asyncio.") and getattr(module, "ssl", ssl) is not ssl]
print(left, asyncio.sslproto.SSLAgainErrors != (), hashlib.pbkdf2_hmac("sha256", b"p", b"s", 2).hex())
"""
    assert told(code) == f"[] True {hashlib.pbkdf2_hmac('sha256', b'p', b's', 2).hex()}"


def test_it_stays_where_somebody_uses_it_already() -> None:
    code = "import ssl, asyncio, hashlib\nfrom bus.openssl import leave_out, take_in\nprint(leave_out())\ntake_in()\nassert asyncio.sslproto.ssl is ssl"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


@needs_openssl
def test_a_context_of_ours_makes_connections_with_tls(tmp_path: Path) -> None:
    kafka_certificates.authority(tmp_path / "certificates")
    made = kafka_certificates.certificate(tmp_path / "certificates", "server")
    code = """
from bus.secret import Secret
from bus.tls import client_context
async def ask():
    context = client_context("bus.tls", sys.argv[1], "", "", Secret())
    import ssl
    served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    served.load_cert_chain(*sys.argv[2:])
    async def answer(reader, writer):
        writer.write(await reader.readline())
        await writer.drain()
        writer.close()
    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=served)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname(), ssl=context)
    writer.write(b"asked\\n")
    said = await reader.readline()
    writer.close()
    server.close()
    return said.decode().strip()
print(asyncio.run(ask()))
"""
    assert told(code, str(tmp_path / "certificates/ca.pem"), *made) == "asked"


@pytest.mark.parametrize("listener", ["SCRAM", "SASL"])
async def test_an_account_of_brokers_is_logged_in_to(kafka_secure: Any, tmp_path: Path, listener: str) -> None:
    code = """
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSettings
import json, msgspec
async def ask():
    bus = await KafkaBus.open(msgspec.convert(json.loads(sys.argv[1]), KafkaSettings))
    await bus.link.client()
    await bus.close()
asyncio.run(ask())
print("in")
"""
    (tmp_path / "password").write_text(kafka_jars.PASSWORD)
    (tmp_path / "password").chmod(0o600)
    authority, _, _ = kafka_secure.tls("node-1")
    settings = {
        "bootstrap": kafka_secure.addresses(listener), "security_protocol": PROTOCOLS[listener], "tls": {"ca_file": authority},
        "sasl": {"username": "node", "password": {"file": str(tmp_path / "password")}},
    }  # fmt: skip
    assert told(code, json.dumps(settings)) == "in"
