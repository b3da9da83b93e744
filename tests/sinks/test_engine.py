# SPDX-License-Identifier: Apache-2.0
"""The whole way out: records on a bus, several sinks, clean stop."""

from __future__ import annotations

import asyncio
import json

import pytest

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from schemas.alert import encode_alert
from schemas.errors import SettingsError
from schemas.topics import ALERTS
from sinks.blackhole import BlackholeSettings
from sinks.delivery.engine import SinkEngine
from sinks.file import FileSettings
from sinks.store.queries import SqliteReader
from sinks.store.sink import StoreSettings
from sinks.store.store import Query


async def test_file_and_store_get_alerts_logs_and_summaries(bus, make, publish, until, tmp_path):
    settings = [
        FileSettings(path=str(tmp_path / "alerts.jsonl")),
        FileSettings(path=str(tmp_path / "logs.jsonl"), content="logs", name="telemetry"),
        StoreSettings(path=str(tmp_path / "store.db")),
        BlackholeSettings(),
    ]
    engine = SinkEngine(bus, settings)
    await engine.check()
    await publish(make.alert(1), make.alert(2), make.summary(0), make.summary(1), make.frame(1000))
    task = asyncio.create_task(engine.run())
    await until(lambda: [state.stats.committed for state in engine.states()] == [2, 1, 4, 3])
    engine.stop()
    await task
    alerts = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [alert["EventID"] for alert in alerts] == ["node-1:boot:1", "node-1:boot:2"]
    logs = [json.loads(line) for line in (tmp_path / "logs.jsonl").read_text().splitlines()]
    assert len(logs) == 1000
    assert logs[0]["Resource"] == "/etc/shadow"
    reader = SqliteReader(str(tmp_path / "store.db"))
    assert [row.count for row in reader.totals(Query(namespace="shop"))] == [2]
    assert [row.alert.PID for row in reader.alerts(Query())] == [2, 1]
    reader.close()
    assert not any(state.running or state.failure for state in engine.states())
    assert await bus.lag("sink.store") == {"summaries": 0, "alerts": 0}


async def test_check_names_everything_that_is_wrong_at_once(bus, tmp_path):
    (tmp_path / "hosts").write_text("127.0.0.1 localhost\n")
    engine = SinkEngine(
        bus, [FileSettings(path=str(tmp_path / "no/dir.jsonl")), FileSettings(path=str(tmp_path / "hosts"), name="b")]
    )
    with pytest.raises(SettingsError, match=r"(?s)does not exist; create it.*it is not ours"):
        await engine.check()


async def test_two_sinks_of_one_name_are_refused(bus):
    with pytest.raises(SettingsError, match="got `blackhole` 2 times"):
        SinkEngine(bus, [BlackholeSettings(), BlackholeSettings()])


async def test_a_sink_that_cannot_open_does_not_stop_the_others(bus, make, publish, until, tmp_path):
    engine = SinkEngine(bus, [FileSettings(path=str(tmp_path / "no/dir.jsonl")), BlackholeSettings()])
    await publish(make.alert(1))
    task = asyncio.create_task(engine.run())
    await until(lambda: engine.states()[1].stats.committed == 1)
    await until(lambda: "does not exist" in engine.states()[0].failure)
    engine.stop()
    await task


async def test_run_raises_when_no_sink_is_left(bus, tmp_path):
    engine = SinkEngine(bus, [FileSettings(path=str(tmp_path / "no/dir.jsonl"))])
    with pytest.raises(SettingsError, match="does not exist"):
        await engine.run()


async def test_over_the_embedded_bus_a_restart_goes_on_where_it_was(make, until, tmp_path):
    settings = [FileSettings(path=str(tmp_path / "alerts.jsonl"))]
    for start in (0, 50):
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus")))
        await bus.publish(ALERTS, [Record(b"k", encode_alert(make.alert(n))) for n in range(start, start + 50)])
        engine = SinkEngine(bus, settings)
        task = asyncio.create_task(engine.run())
        await until(lambda engine=engine: engine.states()[0].stats.committed == 50)
        engine.stop()
        await task
        await bus.close()
    lines = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text().splitlines()]
    assert [line["EventID"] for line in lines] == [f"node-1:boot:{n}" for n in range(100)]
