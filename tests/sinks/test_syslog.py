# SPDX-License-Identifier: Apache-2.0
"""Against a real rsyslog: TCP, TLS with a CA of our own, UDP, unix; killed in the middle; and what its messages look like."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from bus.backoff import Backoff
from bus.secret import Secret
from schemas.errors import SettingsError, Unavailable
from sinks.delivery.consumer import SinkDelivery
from sinks.formats.syslog_message import _structured
from sinks.syslog import SyslogSettings, SyslogSink
from sinks.syslog_wire import Tls, host_and_port

needs_rsyslog = pytest.mark.skipif(shutil.which("rsyslogd") is None, reason="needs rsyslogd (apt install rsyslog)")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
pytestmark = pytest.mark.servers

CONF = """
global(workDirectory="{dir}" maxMessageSize="64k" {tls_files})
module(load="imtcp" {tls_driver})
module(load="imudp")
module(load="imuxsock" SysSock.Use="off")
template(name="raw" type="string" string="%rawmsg%\\n")
ruleset(name="all" queue.type="Direct") {{
    action(type="omfile" file="{dir}/out" template="raw" asyncWriting="off" flushOnTXEnd="on")
}}
input(type="imtcp" address="127.0.0.1" port="{port}" ruleset="all")
input(type="imudp" address="127.0.0.1" port="{port}" ruleset="all")
input(type="imuxsock" Socket="{dir}/log" ruleset="all" UseSpecialParser="off")
"""


class Rsyslog:
    """A server of this test's own, killed by its pid."""

    def __init__(self, directory: Path, tls: bool = False) -> None:
        self.dir = directory
        self.port = free_port()
        driver = 'StreamDriver.Name="gtls" StreamDriver.Mode="1" StreamDriver.AuthMode="anon"' if tls else ""
        files = (
            f'defaultNetstreamDriverCAFile="{directory}/ca.pem" defaultNetstreamDriverCertFile="{directory}/server.pem" '
            f'defaultNetstreamDriverKeyFile="{directory}/server.key"'
        )
        conf = CONF.format(dir=directory, port=self.port, tls_driver=driver, tls_files=files if tls else "")
        (directory / "conf").write_text(conf)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            # Without a pid file: a killed server's would keep the next one from starting.
            ["rsyslogd", "-n", "-C", "-f", str(self.dir / "conf"), "-iNONE"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not self._listens():
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise AssertionError("rsyslogd did not start; try `rsyslogd -N1 -f` with the test's configuration")
            time.sleep(0.02)

    def _listens(self) -> bool:
        """On all three: its inputs come up one after the other, and a datagram that comes before its own is gone."""
        # Looked up, not tried: to bind it here could keep the server from it.
        if f": 0100007F:{self.port:04X} " not in Path("/proc/net/udp").read_text():
            return False
        with socket.socket() as tcp, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
            return tcp.connect_ex(("127.0.0.1", self.port)) == 0 and unix.connect_ex(str(self.dir / "log")) == 0

    def stop(self, how: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(30)

    def lines(self) -> list[str]:
        """Whole ones: the last may still be on its way into the file."""
        out = self.dir / "out"
        whole = out.read_text().rpartition("\n")[0] if out.exists() else ""
        return [line for line in whole.splitlines() if "hauberk@" in line]

    def ids(self) -> list[int]:
        return [int(number) for line in self.lines() for number in re.findall(r'eventId="node-1:boot:(\d+)"', line)]


def free_port() -> int:
    """One that is free for TCP and for UDP."""
    while True:
        with socket.socket() as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            tcp.bind(("127.0.0.1", 0))
            with contextlib.suppress(OSError):
                udp.bind(tcp.getsockname())
                return int(tcp.getsockname()[1])


@pytest.fixture
def server(tmp_path):
    server = Rsyslog(tmp_path)
    yield server
    server.stop()


def openssl(*arguments: str, directory: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture
def certificates(tmp_path):
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj",
            "/CN=test ca", "-addext", "keyUsage=critical,keyCertSign,cRLSign", directory=tmp_path)  # fmt: skip
    (tmp_path / "ext").write_text("subjectAltName=IP:127.0.0.1,DNS:siem.test\n")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=siem.test",
            directory=tmp_path)  # fmt: skip
    openssl("x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out",
            "server.pem", "-days", "2", "-extfile", "ext", directory=tmp_path)  # fmt: skip
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "other.key", "-out", "other.pem", "-days", "2",
            "-subj", "/CN=other ca", directory=tmp_path)  # fmt: skip
    return tmp_path


def settings(server: Rsyslog, **fields: object) -> SyslogSettings:
    return SyslogSettings(**{"address": f"127.0.0.1:{server.port}", **fields})  # type: ignore[arg-type]


async def send(sink: SyslogSink, items: list) -> None:
    await sink.check()
    await sink.open()
    assert (await sink.send(items)).refused == ()
    await sink.close()


@needs_rsyslog
@pytest.mark.parametrize("framing", ["octets", "newline"])
async def test_tcp_json(server, make, until, framing):
    server.start()
    nasty = make.alert(2, Resource='/tmp/a]b"c\\d\nnext line', Message="café")
    await send(SyslogSink(settings(server, framing=framing)), [make.alert(1), nasty, make.alert(3)])
    await until(lambda: server.ids() == [1, 2, 3])
    line = server.lines()[1]
    head, _, body = line.partition("] ")
    assert head.startswith("<107>1 2023-11-14T22:14:00.000001Z node-1 hauberk - File [hauberk@32473 eventId=")
    assert json.loads(body)["Resource"] == '/tmp/a]b"c\\d\nnext line'
    assert json.loads(body)["Message"] == "café"


@needs_rsyslog
async def test_tcp_cef(server, make, until):
    server.start()
    await send(
        SyslogSink(settings(server, payload="cef", app="my app", facility="local3")), [make.alert(1, Severity="10")]
    )
    await until(lambda: server.ids() == [1])
    (line,) = server.lines()
    assert line.startswith("<154>1 ")
    assert " my_app - File [" in line
    assert "] CEF:0|Hauberk|hauberk|" in line
    assert " filePath=/etc/shadow fname=shadow" in line


@needs_rsyslog
@needs_openssl
async def test_tls_with_a_ca_of_our_own(certificates, make, until):
    server = Rsyslog(certificates, tls=True)
    server.start()
    try:
        tls = Tls(ca_file=str(certificates / "ca.pem"))
        await send(SyslogSink(settings(server, transport="tls", tls=tls)), [make.alert(n) for n in range(500)])
        await until(lambda: server.ids() == list(range(500)))
        named = Tls(ca_file=str(certificates / "ca.pem"), server_name="siem.test")
        await SyslogSink(settings(server, transport="tls", tls=named)).check()
        for wrong, why in (
            (Tls(ca_file=str(certificates / "other.pem")), "unable to get local issuer|self.signed"),
            (Tls(), "unable to get local issuer|self.signed"),
            (Tls(ca_file=str(certificates / "ca.pem"), server_name="other.test"), "Hostname mismatch"),
        ):
            sink = SyslogSink(settings(server, transport="tls", tls=wrong))
            with pytest.raises(SettingsError, match=why):
                await sink.check()
            with pytest.raises(Unavailable, match=why):
                await sink.open()
            await sink.close()
    finally:
        server.stop()


@needs_rsyslog
async def test_udp_and_unix(server, make, until):
    server.start()
    await send(SyslogSink(settings(server, transport="udp")), [make.alert(1), make.alert(2, Source="x" * 5000)])
    await until(lambda: server.ids() == [1, 2])
    assert max(len(line) for line in server.lines()) <= 2048
    await send(SyslogSink(settings(server, transport="unix", address=str(server.dir / "log"))), [make.alert(3)])
    await until(lambda: 3 in server.ids())


@needs_rsyslog
async def test_killed_in_the_middle_nothing_is_lost(bus, server, make, publish, until):
    server.start()
    # Room for all of it: how far behind a server is when it dies is up to the machine, megabytes where it gets no turn.
    sink = SyslogSink(settings(server, resend_bytes=16 << 20))
    delivery = SinkDelivery(bus, sink, retry=Backoff(first_seconds=0.01, max_seconds=0.05))
    task = asyncio.create_task(delivery.run())
    total = 3000

    async def tell() -> None:
        for start in range(0, total, 20):
            await publish(*[make.alert(number) for number in range(start, start + 20)])
            await asyncio.sleep(0.002)

    telling = asyncio.create_task(tell())
    for seen in (300, 1200):
        await until(lambda seen=seen: len(set(server.ids())) > seen)
        server.stop(signal.SIGKILL)
        await until(lambda: delivery.stats.failing)
        server.start()
    await telling
    await until(lambda: set(server.ids()) == set(range(total)))
    await until(lambda: delivery.stats.committed == total)
    delivery.stop()
    await task
    assert sink.stats.reconnects >= 2
    assert (delivery.stats.dead, delivery.stats.failing) == (0, 0)


@needs_rsyslog
async def test_the_last_message_is_not_left_in_a_dead_servers_socket(bus, server, make, publish, until):
    """Accepted by the kernel, never read by the server: comes again without waiting for another alert."""
    server.start()
    sink = SyslogSink(settings(server))
    delivery = SinkDelivery(bus, sink, retry=Backoff(first_seconds=0.01, max_seconds=0.05))
    task = asyncio.create_task(delivery.run())
    await publish(make.alert(1))
    await until(lambda: server.ids() == [1])
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGSTOP)
    # Until its last thread has stopped it reads.
    os.waitid(os.P_PID, server.process.pid, os.WSTOPPED | os.WNOWAIT)
    await publish(make.alert(2))
    await until(lambda: delivery.stats.committed == 2)
    assert delivery.wait() < 6
    server.stop(signal.SIGKILL)
    server.start()
    await until(lambda: 2 in server.ids())
    delivery.stop()
    await task


async def test_away_is_a_sentence_and_temporary(make, tmp_path):
    # Held, so that nobody else listens there meanwhile.
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        sink = SyslogSink(SyslogSettings(address=f"127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(Unavailable, match=r"expected a server at `127.0.0.1:\d+`, got .*nothing is lost"):
            await sink.check()
        with pytest.raises(Unavailable):
            await sink.send([make.alert(1)])
        await sink.close()
    with pytest.raises(Unavailable, match="expected a server at"):
        await SyslogSink(SyslogSettings(address=str(tmp_path / "none"), transport="unix")).check()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"address": "localhost"}, "expected `address` as `host:port`, got `localhost`"),
        ({"address": "localhost:0"}, "expected `address`"),
        ({"address": "a:6514", "transport": "tls", "framing": "newline"}, "expected `framing: octets`"),
        ({"address": "a:514", "max_bytes": 100}, "expected `max_bytes` of 480 or more, got 100"),
        (
            {"address": "127.0.0.1:6514", "transport": "tls", "tls": Tls(ca_file="/no/ca.pem")},
            "expected PEM files `/no/ca.pem`",
        ),
    ],
)
async def test_wrong_settings_are_a_sentence(fields, why):
    with pytest.raises(SettingsError, match=re.escape(why)):
        await SyslogSink(SyslogSettings(**fields)).check()


async def test_what_cannot_be_cut_to_size_is_refused_and_the_rest_goes(make):
    received = bytearray()
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            received.extend(data)
        writer.close()
        over.set()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sink = SyslogSink(SyslogSettings(address=f"127.0.0.1:{port}", max_bytes=1000))
    huge = make.alert(2, PodName="p" * 3000)
    long = make.alert(3, Source="/bin/x " + "é" * 3000, Resource="r" * 3000)
    result = await sink.send([make.alert(1, EventData=None), huge, long])
    assert [bad.index for bad in result.refused] == [1]
    assert "at most 1000 bytes" in result.refused[0].why
    await sink.close()
    await asyncio.wait_for(over.wait(), 60)
    server.close()
    await server.wait_closed()
    count, _, rest = bytes(received).partition(b" ")
    second = rest[int(count) :]
    count, _, rest = second.partition(b" ")
    assert len(rest) == int(count) <= 1000
    assert b" cut]" in rest


async def test_a_key_password_is_never_shown(monkeypatch):
    monkeypatch.setenv("SYSLOG_KEY_PASSWORD", "hunter2")
    tls = Tls(cert_file="/no/cert.pem", key_password=Secret(env="SYSLOG_KEY_PASSWORD"))
    sink = SyslogSink(SyslogSettings(address="127.0.0.1:1", transport="tls", tls=tls))
    with pytest.raises(SettingsError) as caught:
        await sink.check()
    assert "hunter2" not in f"{caught.value!r} {tls!r} {sink._settings!r}"
    assert "***" in repr(tls)
    monkeypatch.delenv("SYSLOG_KEY_PASSWORD")
    with pytest.raises(SettingsError, match=r"`SYSLOG_KEY_PASSWORD`, it is not set"):
        await sink.check()


def test_addresses():
    assert host_and_port("[::1]:514") == ("::1", 514)
    assert host_and_port("a.b:6514") == ("a.b", 6514)


@pytest.mark.parametrize("mode", ["shadow", "baseline", ""])
def test_that_nothing_was_enforced_is_said(make, mode):
    found = _structured(make.alert(1, Mode=mode))
    assert (f' mode="{mode}"]' in found) == bool(mode)
    assert (" mode=" in found) == bool(mode)
