# SPDX-License-Identifier: Apache-2.0
"""No broker, the wrong door, the wrong name: each is told apart in one sentence, in time, and mended without a restart."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time

import kafka_jars
import msgspec
import pytest
from kafka_certificates import authority, certificate
from kafka_cluster import free_ports
from kafka_topics import create_topics

from bus.contract import Record
from bus.kafka.bus import KafkaBus
from bus.kafka.settings import KafkaSasl, KafkaSettings, KafkaTls
from bus.secret import Secret
from schemas.errors import MissingDependency, Refused, SettingsError, Unavailable
from schemas.topics import ALERTS, POLICIES

QUICK = {"call_seconds": 9.0, "publish_seconds": 9.0, "away_seconds": 3.0}


@pytest.fixture
async def opened():
    made = []

    async def opened(bootstrap: str, **settings) -> KafkaBus:
        made.append(await KafkaBus.open(KafkaSettings(bootstrap=bootstrap, **QUICK | settings)))
        return made[-1]

    yield opened
    for bus in made:
        await bus.close()


async def said(bus: KafkaBus) -> str:
    began = time.monotonic()
    with pytest.raises(Unavailable) as caught:
        await bus.publish(ALERTS, [Record(b"k", b"v")])
    assert time.monotonic() - began < 30
    text = str(caught.value)
    assert "\n" not in text
    return text


@contextlib.asynccontextmanager
async def serving(answer: bytes | None, context: ssl.SSLContext | None = None):
    """Something that is no broker: answers with these bytes, or not at all. `context`: behind TLS."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            await reader.read(1)
            if answer is not None:
                writer.write(answer)
            await reader.read()
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0, ssl=context)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def test_opening_needs_no_broker_and_every_call_says_so_in_time(opened):
    bus = await opened(f"127.0.0.1:{free_ports(1)[0]}")
    assert "nobody there" in await said(bus)
    for call in (bus.end(ALERTS), bus.lag("g"), bus.groups(), bus.forget("g"), bus.latest(POLICIES)):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(call, 30)
    for group in ("g", None):
        with pytest.raises(Unavailable):
            async with asyncio.timeout(30), bus.subscribe([ALERTS], group):
                pass


async def test_while_the_back_off_lasts_nothing_is_tried(opened, caplog):
    bus = await opened(f"127.0.0.1:{free_ports(1)[0]}")
    await said(bus)
    began = time.monotonic()
    for _ in range(200):
        with pytest.raises(Unavailable):
            await bus.publish(ALERTS, [Record(b"k", b"v")])
    assert bus.link._attempt <= 2 + 2 * (time.monotonic() - began)
    assert len([one for one in caplog.records if one.levelno >= logging.WARNING]) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP server"),
        (b"220 smtp.example.org ESMTP ready\r\n", "no Kafka broker"),
    ],
)
async def test_something_else_answers(opened, answer, words):
    async with serving(answer) as address:
        assert words in await said(await opened(address))


async def test_nothing_answers(opened):
    async with serving(None) as address:
        assert "nothing answers" in await said(await opened(address))


async def test_a_certificate_that_is_over(opened, tmp_path):
    authority(tmp_path / "tls")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate(tmp_path / "tls", "over", days=-1))
    async with serving(b"", context) as address:
        bus = await opened(address, security_protocol="SSL", tls=KafkaTls(ca_file=str(tmp_path / "tls/ca.pem")))
        assert "its certificate is not accepted (certificate has expired)" in await said(bus)


async def test_packets_that_go_nowhere(opened):
    # A queue of connections that is full: the kernel answers no further one (listen(2)).
    with socket.create_server(("127.0.0.1", 0), backlog=0) as server, contextlib.ExitStack() as waiting:
        for _ in range(8):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        text = await said(await opened(f"127.0.0.1:{server.getsockname()[1]}"))
    assert "no connection within" in text
    assert "firewall" in text


async def test_a_topic_that_is_not_there_is_named(kafka, kafka_prefix, opened):
    bus = await opened(kafka.bootstrap, prefix=kafka_prefix)
    assert f"`{kafka_prefix}alerts.v1`" in (text := await said(bus))
    assert "hauberk topic create" in text
    await create_topics(kafka.bootstrap, kafka_prefix, topics=(ALERTS,))
    await bus.publish(ALERTS, [Record(b"k", b"v")])


@pytest.mark.parametrize("bootstrap", ["kafka", "kafka:port", "a:1,,b:2", ":9092", "a:99999", "http://a:1"])
async def test_an_address_that_is_none_is_told_at_once(bootstrap):
    with pytest.raises(SettingsError, match="bootstrap"):
        await KafkaBus.open(KafkaSettings(bootstrap=bootstrap))


async def test_files_and_names_that_lack_are_told_at_once(tmp_path):
    with pytest.raises(SettingsError, match=r"username"):
        await KafkaBus.open(KafkaSettings(security_protocol="SASL_SSL"))
    with pytest.raises(SettingsError, match=r"tls.*no\.pem"):
        await KafkaBus.open(KafkaSettings(security_protocol="SSL", tls=KafkaTls(ca_file=str(tmp_path / "no.pem"))))
    secret = Secret(file=str(tmp_path / "no.password"))
    with pytest.raises(SettingsError, match=r"no\.password"):
        await KafkaBus.open(
            KafkaSettings(security_protocol="SASL_PLAINTEXT", sasl=KafkaSasl(username="u", password=secret))
        )


async def test_a_codec_that_is_not_installed_is_told_at_once(monkeypatch):
    from aiokafka import codec

    monkeypatch.setattr(codec, "cramjam", None)
    with pytest.raises(MissingDependency, match=r"aiokafka\[zstd\]"):
        await KafkaBus.open(KafkaSettings())


@pytest.fixture(scope="module")
def secure(kafka_clusters_of_the_run):
    cluster = kafka_clusters_of_the_run(secure=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


def by_password(cluster, tmp_path, password: str, user: str = "admin") -> KafkaSettings:
    file = tmp_path / "password"
    file.write_text(password + "\n")
    file.chmod(0o600)
    return KafkaSettings(
        bootstrap=cluster.addresses("SCRAM"), security_protocol="SASL_SSL", tls=KafkaTls(ca_file=cluster.tls("client")[0]),
        sasl=KafkaSasl(username=user, password=Secret(file=str(file))), **QUICK,
    )  # fmt: skip


@pytest.mark.fault("wrong password that becomes right", "told by name; works after the next look, without a restart")
async def test_a_password_that_becomes_right(secure, tmp_path, opened, until):
    settings = by_password(secure, tmp_path, "wrong")
    await create_topics(secure.bootstrap, "password.", topics=(ALERTS,))
    bus = await KafkaBus.open(msgspec.structs.replace(settings, prefix="password."))
    try:
        text = await said(bus)
        assert "name or password are wrong for `admin`" in text
        assert "wrong\n" not in text
        (tmp_path / "password").write_text(kafka_jars.PASSWORD)

        async def written() -> bool:
            try:
                await bus.publish(ALERTS, [Record(b"k", b"v")])
            except Unavailable:
                return False
            return True

        await until(written)
    finally:
        await bus.close()


async def test_each_wrong_door_has_its_sentence(secure, tmp_path, opened):
    ca, certificate, key = secure.tls("client")
    expired = secure.tls("yesterday", days=-1)[1:]
    tls, mtls, scram, plain = (secure.addresses(name) for name in ("TLS", "MTLS", "SCRAM", "PLAINTEXT"))
    cases = {
        "certificate is not accepted": (tls, {"security_protocol": "SSL", "tls": KafkaTls(ca_file=certificate)}),
        "ask for a certificate|our certificate": (mtls, {"security_protocol": "SSL", "tls": KafkaTls(ca_file=ca)}),
        "has `bus.tls.cert_file` expired": (
            mtls,
            {"security_protocol": "SSL", "tls": KafkaTls(ca_file=ca, cert_file=expired[0], key_file=expired[1])},
        ),
        "no TLS there|closed the connection": (plain, {"security_protocol": "SSL", "tls": KafkaTls(ca_file=ca)}),
        "is this listener for": (tls, {}),
        "takes no PLAIN": (
            scram,
            {
                "security_protocol": "SASL_SSL",
                "tls": KafkaTls(ca_file=ca),
                "sasl": KafkaSasl(mechanism="PLAIN", username="admin"),
            },
        ),
        "name or password are wrong": (
            scram,
            {
                "security_protocol": "SASL_SSL",
                "tls": KafkaTls(ca_file=ca),
                "sasl": KafkaSasl(username="stranger"),
            },
        ),
    }
    for words, (address, settings) in cases.items():
        text = await said(await opened(address, **settings))
        assert any(word in text for word in words.split("|")), f"{words}: {text}"
    bus = await opened(mtls, security_protocol="SSL", tls=KafkaTls(ca_file=ca, cert_file=certificate, key_file=key))
    # The door is open, and behind it this account may nothing.
    assert "expected to have the grant Write on topic" in await said(bus)


async def test_a_grant_that_lacks_is_named_and_no_dead_letter(secure, tmp_path):
    await create_topics(secure.bootstrap, "grant.", topics=(ALERTS,))
    settings = by_password(secure, tmp_path, kafka_jars.PASSWORD, "nobody")
    bus = await KafkaBus.open(msgspec.structs.replace(settings, prefix="grant."))
    try:
        # On a busy machine the first connection may come too late to count.
        while "the broker answers now" in (text := await said(bus)):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert "grant" in text
        assert "`grant.alerts.v1`" in text
        with pytest.raises(Unavailable, match="grant"):
            async with asyncio.timeout(30), bus.subscribe([ALERTS], "g") as subscription:
                await subscription.take(1, 10.0)
        with pytest.raises(Unavailable, match="grant"):
            async with asyncio.timeout(30), bus.subscribe([ALERTS], None) as subscription:
                await subscription.take(1, 10.0)
    finally:
        await bus.close()


async def test_closing_while_brokers_are_away_takes_a_second(opened, kafka_clusters):
    bus = await opened(f"127.0.0.1:{free_ports(1)[0]}", publish_seconds=30.0)
    publishing = asyncio.create_task(bus.publish(ALERTS, [Record(b"k", b"v")]))
    await asyncio.sleep(0)
    began = time.monotonic()
    await bus.close()
    with pytest.raises((Refused, Unavailable)):
        await asyncio.wait_for(publishing, 30)
    assert time.monotonic() - began < 10
