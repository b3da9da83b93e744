# SPDX-License-Identifier: Apache-2.0
"""Every role serves metrics and health where the settings say, and says what of it is not ready."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from types import SimpleNamespace
from typing import Any

import pytest

from hauberk import health
from hauberk.health import STILL, StageProgress
from hauberk.metrics import parts
from schemas.stats import declared
from sinks.formats.exposition import metric_name

ON = {"HAUBERK__METRICS__ENABLED": "true", "HAUBERK__METRICS__PORT": "0"}
SHOWN = {
    "processor": {"bus", "listener", "memory", "processor", "pump", "stage"},
    "planner": {"bus", "listener", "memory", "planner", "stage"},
    "sink": {"bus", "listener", "memory", "sink", "stage"},
    "up": {
        "applier",
        "bus",
        "handover",
        "inventory",
        "listener",
        "memory",
        "planner",
        "processor",
        "pump",
        "rings",
        "sensor",
        "sink",
        "stage",
    },
    "node": {"applier", "bus", "inventory", "listener", "memory", "rings", "sensor", "stage"},
}


def ask(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def served(running: Any) -> str:
    """Where a role says it serves."""
    said = running.until(r"metrics and health: http://\S+/metrics")
    found = re.search(r"metrics and health: (http://\S+)/metrics", said)
    assert found is not None
    return found[1]


def shown(text: str) -> set[str]:
    """Parts of which every metric is on a page."""
    names = set(re.findall(r"^# TYPE (\S+) ", text, re.M))
    return {
        part
        for part, struct in parts().items()
        if {metric_name(part, field, kind) for field, kind in declared(struct).items() if kind in ("counter", "gauge")}
        <= names
    }


@pytest.mark.parametrize("role", ["processor", "planner", "sink"])
def test_a_role_serves_what_it_counts_and_whether_it_is_ready(hauberk: Any, eventually: Any, role: str) -> None:
    hauberk.sinks = [{"type": "file", "path": f"{hauberk.state}/alerts.jsonl"}]
    running = hauberk.start(role, **ON)
    running.ready()
    url = served(running)
    assert url.startswith("http://127.0.0.1:")
    assert ask(f"{url}/healthz") == (200, '{"live":true}\n')
    eventually(lambda: ask(f"{url}/readyz")[0] == 200)
    assert shown(ask(f"{url}/metrics")[1]) == SHOWN[role]
    assert running.end() == 0


def test_a_role_says_nothing_unless_it_is_asked_to(hauberk: Any) -> None:
    running = hauberk.start("processor")
    assert "metrics and health" not in running.ready()
    running.end()


def test_a_replay_serves_too(hauberk: Any) -> None:
    done = hauberk.replay(**ON)
    assert done.returncode == 0, done.stderr
    assert "metrics and health: http://127.0.0.1:" in done.stderr


def test_a_port_in_use_ends_the_role_with_the_setting(hauberk: Any) -> None:
    first = hauberk.start("processor", **ON)
    port = served(first).rpartition(":")[2]
    done = hauberk("planner", HAUBERK__METRICS__ENABLED="true", HAUBERK__METRICS__PORT=port)
    assert done.returncode == 2, done.stderr
    assert "it is in use; set `metrics.port`" in done.stderr
    first.end()


def test_stuck_is_no_progress_while_there_is_work() -> None:
    now = [0.0]
    progress = StageProgress(lambda: now[0])
    assert not progress.stuck(1)
    now[0] = STILL - 1
    assert not progress.stuck(1)
    now[0] = STILL
    assert progress.stuck(1)
    assert not progress.stuck(2)
    now[0] = 10 * STILL
    assert not progress.stuck(2, work=False)
    now[0] += 2 * STILL
    assert not progress.stuck(2), "the work may have come a moment ago, whoever asks once a minute"
    now[0] += STILL
    assert progress.stuck(2)


def test_each_check_names_what_is_not_ready() -> None:
    class Event:
        def __init__(self, value: bool) -> None:
            self.is_set = lambda: value

    def part(**fields: Any) -> Any:
        return SimpleNamespace(engine=SimpleNamespace(**fields))

    stats = SimpleNamespace(drains=0)
    checks = health.of_sensor(part(stats=stats))
    assert checks() == {"sensor": "the kernel's rings have not been drained yet"}
    stats.drains = 1
    assert checks() == {}
    assert list(health.of_inventory(lambda: SimpleNamespace(ready=Event(False)))()) == ["inventory"]  # type: ignore[arg-type,return-value]
    assert health.of_enforcement(part(ready=Event(True), idle="", problem=""))() == {}
    assert health.of_enforcement(part(ready=Event(True), idle="nothing is enforced: x", problem=""))() == {
        "enforcement": "nothing is enforced: x"
    }
    assert health.of_enforcement(part(ready=Event(False), idle="", problem="away"))() == {"enforcement": "away"}
    plain = {"ready": Event(True), "failure": "", "unplanned": [], "stats": SimpleNamespace(problem="")}
    active = SimpleNamespace(state="active")

    def planner(**fields: Any) -> Any:
        return SimpleNamespace(engine=SimpleNamespace(**fields), election=active)

    assert health.of_planner(planner(**plain))() == {}
    assert health.of_planner(planner(**(plain | {"unplanned": ["n1"]})))() == {
        "planner": "no plan for n1: not made yet"
    }
    assert health.of_planner(planner(**(plain | {"failure": "the bus is away"})))() == {"planner": "the bus is away"}
    pump = SimpleNamespace(records=0, commits=0, lag=0, failure="the bus is away")
    engine = part(facts=SimpleNamespace(ready=Event(False), failure=""), pump=SimpleNamespace(stats=pump))
    assert set(health.of_processor(engine)()) == {"policies", "frames"}
    down = SimpleNamespace(down=["processor"], stats={"processor": SimpleNamespace(last="it broke")})
    assert health.of_stages(down)() == {"stage.processor": "it broke"}  # type: ignore[arg-type]


@pytest.mark.kernel
@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("role", ["node", "up"])
def test_who_watches_this_kernel_serves_too(hauberk: Any, eventually: Any, role: str) -> None:
    from kernel.loading import unload

    hauberk.pins += "-health"
    hauberk.sinks = [{"type": "file", "path": f"{hauberk.state}/alerts.jsonl"}]
    running = hauberk.start(role, **ON, HAUBERK__INVENTORY__RUNTIMES="[]")
    try:
        running.ready()
        url = served(running)
        eventually(lambda: ask(f"{url}/readyz")[0] == 200)
        _, text = ask(f"{url}/metrics")
        assert shown(text) == SHOWN[role]
        assert "# TYPE hauberk_enforcement_backend_rules gauge" in text
        if role == "up":  # nobody makes plans for the node alone
            eventually(lambda: 'hauberk_enforcement_backend_rules{node="' in ask(f"{url}/metrics")[1])
        status, body = ask(f"{url}/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "not_ready": {}})
    finally:
        running.end()
        unload(hauberk.pins)


def test_a_topic_that_is_not_served_is_named() -> None:
    assert health.of_spool(SimpleNamespace(unserved={}))() == {}
    assert health.of_spool(SimpleNamespace(unserved={"events.raw": "it is not there"}))() == {
        "spool.events.raw": "it is not there"
    }
    assert health.of_spool(SimpleNamespace())() == {}, "a bus that lies here has no spool"
