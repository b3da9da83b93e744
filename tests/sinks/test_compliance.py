# SPDX-License-Identifier: Apache-2.0
"""What every sink must do (docs/specs/component.md), asked of every sink in the registry against a real far side."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import typing
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest

from bus.backoff import Backoff
from bus.contract import Record
from schemas.alert import encode_alert
from schemas.errors import HauberkError, Temporary
from schemas.topics import ALERTS, DEAD
from sinks import registry
from sinks.blackhole import BlackholeSettings
from sinks.console import ConsoleSettings, ConsoleSink
from sinks.delivery.consumer import SinkDelivery
from sinks.file import FileSettings
from sinks.prometheus import PrometheusSettings
from sinks.registry import build
from sinks.store.queries import SqliteReader
from sinks.store.sink import StoreSettings
from sinks.store.store import Query
from sinks.syslog import SyslogSettings

ALL = typing.get_args(registry.SinkSettings)
NAMES = [settings.__struct_config__.tag for settings in ALL]


class FarSide:
    """A sink and what its far side has got: `pids()` of the alerts there, None when it does not tell. `network`: what was
    accepted is with the kernel, which may take a moment to hand it over."""

    def __init__(
        self,
        sink,
        pids: Callable[[], list[int]] | None,
        close: Callable[[], object] = lambda: None,
        network: bool = False,
    ) -> None:
        self.sink = sink
        self.pids = pids
        self.close = close
        self.network = network


async def far_side(name: str, tmp_path) -> FarSide:
    match name:
        case "blackhole":
            return FarSide(build(BlackholeSettings()), None)
        case "prometheus":
            return FarSide(build(PrometheusSettings(port=0)), None)
        case "file":
            path = tmp_path / "alerts.jsonl"
            return FarSide(
                build(FileSettings(path=str(path))),
                lambda: (
                    [json.loads(line)["HostPID"] - 100 for line in path.read_text().splitlines()]
                    if path.exists()
                    else []
                ),
            )
        case "store":
            path = tmp_path / "store.db"

            def stored() -> list[int]:
                if not path.exists() or not path.stat().st_size:
                    return []
                reader = SqliteReader(str(path))
                try:
                    return [stored.alert.HostPID - 100 for stored in reversed(reader.alerts(Query()))]
                finally:
                    reader.close()

            return FarSide(build(StoreSettings(path=str(path))), stored)
        case "console":
            read, write = os.pipe()
            os.set_blocking(read, False)
            seen = bytearray()

            def shown() -> list[int]:
                try:
                    while data := os.read(read, 65536):
                        seen.extend(data)
                except BlockingIOError:
                    pass
                return [json.loads(line)["HostPID"] - 100 for line in seen.splitlines()]

            sink = ConsoleSink(ConsoleSettings(form="json"), fd=write)
            return FarSide(sink, shown, lambda: (os.close(read), os.close(write)))
        case "syslog":
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
            got: list[int] = []

            def received() -> list[int]:
                try:
                    while True:
                        got.append(json.loads(sock.recv(65536).partition(b"] ")[2])["HostPID"] - 100)
                except BlockingIOError:
                    return got

            settings = SyslogSettings(address=f"127.0.0.1:{sock.getsockname()[1]}", transport="udp")
            return FarSide(build(settings), received, sock.close, network=True)
    raise AssertionError(f"no far side for `{name}`: every sink in the registry needs one here")


@pytest.fixture(params=NAMES)
async def far(request, tmp_path) -> AsyncIterator[FarSide]:
    far = await far_side(request.param, tmp_path)
    yield far
    await far.sink.close()
    far.close()


def wire(sink, alerts):
    return [encode_alert(alert) if sink.takes_json else alert for alert in alerts]


async def test_check_passes_and_leaves_nothing_open(far, until):
    before = len(os.listdir("/proc/self/fd"))
    await far.sink.check()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    await far.sink.check()


async def test_closes_twice_and_unopened(far):
    await far.sink.close()
    other = far.sink
    await other.close()


async def test_opens_sends_in_order_and_closes_twice(far, make, until):
    sink = far.sink
    await sink.open()
    assert (await sink.send(wire(sink, [make.alert(n) for n in range(50)]))).refused == ()
    assert (await sink.send([])).retry == ()
    await sink.idle()
    if far.pids is not None:
        await until(lambda: len(far.pids()) >= 50)
        assert far.pids() == list(range(50))
    await sink.close()
    await sink.close()


async def test_accepted_means_the_far_side_has_it(far, make, until):
    """No flush, no close in between: what `send` returned for must be there."""
    await far.sink.open()
    for number in range(5):
        await far.sink.send(wire(far.sink, [make.alert(number)]))
        if far.pids is not None:
            if far.network:
                await until(lambda number=number: len(far.pids()) > number)
            assert far.pids() == list(range(number + 1))


async def test_a_repeat_is_no_error(far, make):
    await far.sink.open()
    for _ in range(2):
        assert (await far.sink.send(wire(far.sink, [make.alert(1)]))).refused == ()


async def test_through_delivery_everything_is_told_and_committed(far, bus, make, publish, until, caplog):
    caplog.set_level(logging.DEBUG)
    delivery = SinkDelivery(bus, far.sink, retry=Backoff(first_seconds=0.01))
    task = asyncio.create_task(delivery.run())
    await until(lambda: delivery.stats.up)
    await asyncio.sleep(0)
    secret = make.alert(
        7, Source="/bin/mysql --password=hunter2 -h db", Operation="Process", Resource="/bin/x TOKEN=hunter2"
    )
    total = 0
    if ALERTS in far.sink.topics:
        await publish(*[make.alert(n) for n in range(7)], secret)
        await bus.publish(ALERTS, [Record(b"k", b"not json")])
        total = 9
    if not far.sink.live:
        await until(lambda: delivery.stats.committed >= total)
    await until(lambda: delivery.stats.accepted >= total - 1 and delivery.stats.dead >= 1)
    delivery.stop()
    await task
    if far.pids is not None:
        if far.network:
            await until(lambda: len(far.pids()) >= 8)
        assert far.pids() == list(range(8))
    assert (delivery.stats.undecodable, delivery.stats.dead, delivery.stats.refused) == (1, 1, 0)
    assert delivery.stats.up == 0
    assert "hunter2" not in caplog.text
    assert bus.published[DEAD.name] == 1


async def test_cancelled_send_leaves_the_batch_and_the_next_one_works(far, bus, make, publish, until):
    delivery = SinkDelivery(bus, far.sink)
    task = asyncio.create_task(delivery.run())
    await until(lambda: delivery.stats.up)
    await asyncio.sleep(0)
    await publish(make.alert(1))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if far.sink.live:
        return
    lag = (await bus.lag(f"sink.{far.sink.name}"))["alerts"]
    assert lag == (0 if delivery.stats.committed else 1)


BROKEN = [
    (FileSettings(path="/proc/self/fd/none/x.jsonl"), "file sink: expected directory `/proc/self/fd/none`"),
    (FileSettings(path="/dev/null"), "expected a regular file at `/dev/null`"),
    (StoreSettings(path="/proc/none/store.db"), "store: expected directory `/proc/none`"),
    (SyslogSettings(address="nowhere"), "expected `address` as `host:port`, got `nowhere`"),
    (PrometheusSettings(host="192.0.2.1"), r"expected to listen on `192.0.2.1:9642`, but .*; set `port`"),
]


@pytest.mark.parametrize(("settings", "sentence"), BROKEN, ids=lambda value: getattr(value, "path", None))
async def test_check_fails_with_a_sentence(settings, sentence):
    sink = build(settings)
    with pytest.raises(HauberkError, match=sentence) as caught:
        await sink.check()
    assert "\n" not in str(caught.value)
    await sink.close()


async def test_a_closed_console_is_temporary():
    read, write = os.pipe()
    sink = ConsoleSink(ConsoleSettings(), fd=write)
    os.close(write)
    with pytest.raises(Temporary, match="expected standard output to be open"):
        await sink.check()
    os.close(read)


@pytest.mark.parametrize("settings", ALL, ids=NAMES)
def test_every_setting_says_what_it_is(settings):
    pending, seen = [settings], set()
    while pending:
        struct = pending.pop()
        if struct in seen:
            continue
        seen.add(struct)
        assert struct.__doc__
        assert struct.__struct_config__.forbid_unknown_fields, struct
        assert struct.__struct_config__.frozen, struct
        for field, hint in typing.get_type_hints(struct, include_extras=True).items():
            if field.startswith("__"):
                continue
            metas = [meta for meta in getattr(hint, "__metadata__", ()) if isinstance(meta, msgspec.Meta)]
            assert metas, f"{struct.__name__}.{field}"
            assert metas[0].description, f"{struct.__name__}.{field}"
            assert metas[0].examples, f"{struct.__name__}.{field}"
            inner = typing.get_args(hint)[0]
            if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
                pending.append(inner)


def test_settings_come_from_a_file_and_unknown_keys_have_a_path():
    given = [{"type": "file", "path": "a.jsonl", "filter": {"min_severity": 5}}, {"type": "syslog", "address": "a:1"}]
    made = msgspec.convert(given, list[registry.SinkSettings])
    assert [type(one) for one in made] == [FileSettings, SyslogSettings]
    for wrong, path in (
        ([{"type": "file", "pth": "a"}], r"unknown field `pth` - at `\$\[0\]`"),
        ([{"type": "fiel", "path": "a"}], r"Invalid value 'fiel' - at `\$\[0\].type`"),
        ([{"type": "blackhole", "filter": {"min_severity": 11}}], r"<= 10 - at `\$\[0\].filter.min_severity`"),
    ):
        with pytest.raises(msgspec.ValidationError, match=path):
            msgspec.convert(wrong, list[registry.SinkSettings])


def test_every_sink_has_its_file_and_its_settings_tag():
    import pkgutil

    import sinks

    files = {module.name for module in pkgutil.iter_modules(sinks.__path__)}
    assert set(NAMES) <= files
