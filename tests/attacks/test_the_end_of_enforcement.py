# SPDX-License-Identifier: Apache-2.0
"""Ending enforcement by making the agent fail: programs and rules come down only on a stop that was asked for.

The faults of the first tests are put in from outside (`sitecustomize`), one per stage; kernel, bus and processes are real.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: held, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  process: {{matchPaths: [{{path: {blocked}}}]}}
  network: {{matchProtocols: [{{protocol: tcp}}]}}
  action: Block
"""
MORE = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: more-{number}, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  process: {{matchPaths: [{{path: {path}}}]}}
  action: Block
"""
FAULTS = """
import os
def spoil(module, holder, method, name):
    try:
        cls = getattr(__import__(module, fromlist=["x"]), holder)
    except ImportError:
        return
    real = getattr(cls, method)
    def spoiled(self, *given, **named):
        if os.path.exists(f"{os.environ['FAULTS']}/{name}"):
            raise RecursionError("put in by a test")
        return real(self, *given, **named)
    setattr(cls, method, spoiled)
if "FAULTS" in os.environ and os.environ.get("FAULTS_FOR", "") == "up":
    spoil("enforcers.agent", "Enforcement", "_tell", "enforcement")
    spoil("sensors.node.rings", "RingSource", "drain", "sensor")
    spoil("enforcers.planner", "PlannerEngine", "_compile", "planner")
    spoil("sensors.containers.inventory", "NodeInventory", "on_cgroup", "inventory")
    spoil("processors.pipeline", "Pipeline", "settle", "processor")
    spoil("hauberk.supervision", "Supervision", "_report", "whole")
"""


@pytest.fixture(scope="module")
def node(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("ends")))
    shutil.copy("/bin/true", home / "blocked")
    (home / "sitecustomize.py").write_text(FAULTS)
    (home / "faults").mkdir()
    made = make_node(POLICY.format(blocked=home / "blocked"), make_container("box"), start=False)
    made.environment |= {"PYTHONPATH": str(home), "FAULTS": str(home / "faults")}
    made.place = home
    return made


@pytest.fixture
def up(node: Any) -> Any:
    """The node, running, whatever the test before it did."""
    if node.process is None or node.process.poll() is not None:
        start(node)
    # A stage that failed in the test before waits for its next start: until then the exit code counts it as down.
    eventually(lambda: running(node), what="every stage runs")
    assert holds(node)
    return node


def running(node: Any) -> bool:
    """Whether every stage of `up` runs."""
    url = re.findall(r"(?m)^  metrics +(http://\S+)", node.said())[-1]
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=30) as answer:
        stages = re.findall(r'(?m)^hauberk_stage_up{stage="\w+"} (\d)', answer.read().decode())
        return len(stages) > 4 and set(stages) == {"1"}
    return False


def start(node: Any, *words: str) -> None:
    plain = dict(node.environment)
    node.environment["FAULTS_FOR"] = "up"
    try:
        node.start(*words)
    finally:
        node.environment = plain


def holds(node: Any) -> bool:
    """Whether both kinds of rules are in force: a guard's and a kill."""
    box = node.containers["box"]
    code = "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 5)\nexcept PermissionError: print('denied')\nexcept OSError as e: print(e)"
    denied = box.run(sys.executable, "-S", "-c", code).stdout == "denied\n"
    return denied and box.run(str(node.place / "blocked")).returncode == -9


def kills(node: Any, program: str) -> bool:
    return bool(node.containers["box"].run(program).returncode == -9)


@pytest.fixture
def fault(node: Any) -> Iterator[Callable[[str], Path]]:
    made: list[Path] = []

    def put(name: str) -> Path:
        made.append(node.place / "faults" / name)
        made[-1].touch()
        return made[-1]

    yield put
    for one in made:
        one.unlink(missing_ok=True)


def trigger(node: Any, number: int) -> str:
    """Something for every stage to do: a policy more, a cgroup more, an exec. The program it blocks."""
    program = node.place / f"program-{number}"
    shutil.copy("/bin/true", program)
    path = node.home / f"more-{number}.yaml"
    path.write_text(MORE.format(number=number, path=program))
    node.hauberk("apply", "-f", str(path))
    below = node.containers["box"].path / f"below-{number}"
    below.mkdir()
    below.rmdir()
    return str(program)


@pytest.mark.parametrize("stage", ["enforcement", "sensor", "planner", "inventory", "processor"])
def test_a_stage_that_fails_takes_no_rule_along_and_comes_back(
    up: Any, stage: str, fault: Callable[[str], Path], eventually: Callable[..., Any]
) -> None:
    node = up
    before = node.said().count(f"stage `{stage}` failed")
    put = fault(stage)
    program = trigger(node, len(list(node.place.glob("program-*"))))
    below = node.containers["box"].path / f"below-{stage}"

    def failed_twice() -> bool:
        # What is started again must meet its fault again: a cgroup that came and went is not seen a second time.
        below.mkdir()
        below.rmdir()
        return bool(node.said().count(f"stage `{stage}` failed") >= before + 2)

    eventually(failed_twice)
    assert holds(node)
    assert node.process.poll() is None
    put.unlink()
    eventually(lambda: kills(node, program))
    assert holds(node)
    alert = node.alert(Operation="StageFailed", Resource=stage)
    assert "RecursionError: put in by a test" in alert["EventData"]["why"]
    node.alert(program, Action="Block")


def test_the_end_says_what_failed_and_had_come_back(
    up: Any, fault: Callable[[str], Path], eventually: Callable[..., Any]
) -> None:
    put = fault("sensor")
    eventually(lambda: "stage `sensor` failed" in up.said().rpartition("hauberk 0.")[2])
    put.unlink()
    program = trigger(up, len(list(up.place.glob("program-*"))))
    eventually(lambda: kills(up, program))
    up.alert(program, Action="Block")
    assert up.ended() == 0
    said = up.said().rpartition("hauberk 0.")[2]
    assert "stage `sensor` failed" in said
    assert "had come back; last: RecursionError: put in by a test" in said
    assert not Path(up.pins).exists()
    assert not holds(up)


def test_an_end_by_an_error_leaves_programs_and_rules_and_the_next_start_takes_them_over(
    up: Any, fault: Callable[[str], Path]
) -> None:
    node = up
    fault("whole")
    fault("sensor")
    assert node.process.wait(120) not in (0, None)
    assert "ended by an error, not by a stop that was asked for: programs and rules stay" in node.said()
    assert holds(node)
    for one in (node.place / "faults").iterdir():
        one.unlink()
    start(node)
    assert node.said().rpartition("hauberk 0.")[2].count("reused from the last run") == 1
    assert holds(node)


def test_the_agent_killed_leaves_rules_in_force(up: Any) -> None:
    node = up
    node.process.kill()
    node.process.wait(60)
    assert holds(node)
    start(node)
    assert holds(node)


@pytest.mark.attack("SIGTERM and SIGINT again and again while the agent stops", "held", by="hauberk up")
@pytest.mark.parametrize("numbers", [[signal.SIGTERM] * 2, [signal.SIGINT, signal.SIGTERM, signal.SIGINT, signal.SIGTERM]])  # fmt: skip
def test_told_more_than_once_to_stop_it_still_takes_its_programs_down(up: Any, numbers: list[int]) -> None:
    node = up
    before = len(node.said())
    for number in numbers:
        node.process.send_signal(number)
        time.sleep(0.05)  # apart, as `timeout`, make and a shell's own Ctrl-C send them
    assert node.process.wait(60) == 0
    said = node.said()[before:]
    assert "its programs are removed: nothing is enforced now" in said
    assert not Path(node.pins).exists()
    assert not holds(node)
    assert "Traceback" not in said


def test_timeout_ends_it_clean(node: Any) -> None:
    # timeout(1) sends its signal to the process and then to its whole group: two for the process.
    if node.process is not None and node.process.poll() is None:
        node.ended()
    words = [sys.executable, "-m", "hauberk", "up", "-q"]
    done = subprocess.run(
        ["timeout", "-k", "90", "30", *words], env=node.environment, cwd=node.home, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    # On a crowded machine it is told while it still loads: that end is clean too.
    assert done.returncode == 124, done.stderr
    assert "Traceback" not in done.stderr
    assert not Path(node.pins).exists()


@pytest.mark.attack("SIGKILL of the agent with events in its hands", "told", by="hauberk up")
def test_what_a_killed_agent_had_in_hand_is_told_by_the_next(up: Any, eventually: Callable[..., Any]) -> None:
    from kernel.maps import Map
    from schemas.kernel import Config

    key = Config.IN_HAND.to_bytes(4, sys.byteorder)
    with Map.open(f"{up.pins}/maps/config") as config:

        def stopped_with_events() -> int:
            assert holds(up)
            eventually(lambda: config.sum_u64(key))
            up.process.send_signal(signal.SIGSTOP)
            # Until it is stopped it may commit.
            eventually(lambda: Path(f"/proc/{up.process.pid}/stat").read_text().rpartition(") ")[2][0] == "T")
            events = config.sum_u64(key)
            if not events:
                up.process.send_signal(signal.SIGCONT)
            return events

        events = eventually(stopped_with_events)
        up.process.kill()
        up.process.wait(60)
        assert config.sum_u64(key) == events
        # What kills of other tests cost is told in the same file.
        told = len(up.alerts("handed_over=", Operation="EventsLost"))
        start(up)
        lost = eventually(lambda: up.alerts("handed_over=", Operation="EventsLost")[told:])
        assert [int(alert["EventData"]["handed_over"]) for alert in lost] == [events]
    assert holds(up)


@pytest.mark.attack("SIGKILL of the agent: a machine whose calls nobody reads any more", "held", by="hauberk up")
def test_what_nobody_drains_stops_by_itself_and_is_told_when_somebody_does(
    up: Any, eventually: Callable[..., Any]
) -> None:
    from kernel.maps import Map
    from schemas.kernel import Config, Loss

    key = Config.OBSERVED_UNTIL.to_bytes(4, sys.byteorder)
    up.process.kill()
    up.process.wait(60)
    with Map.open(f"{up.pins}/maps/config") as config, Map.open(f"{up.pins}/maps/losses") as losses:
        soon = config.sum_u64(key) - 60_000_000_000 + 1
        assert soon > 1, "the agent had said that it drains, and until when"
        # The minute is over: as if it had passed.
        config.put(key, soon.to_bytes(8, sys.byteorder))
        assert holds(up)
        assert config.sum_u64(key) == 1, "the first event that came too late says so to all others"
        before = losses.sum_u64(Loss.UNREAD.to_bytes(4, sys.byteorder))
        assert holds(up)
        assert losses.sum_u64(Loss.UNREAD.to_bytes(4, sys.byteorder)) > before
        start(up)
        eventually(lambda: config.sum_u64(key) > 1)
    assert "nothing was observed until now" in up.said().rpartition("hauberk 0.")[2]
    lost = up.alert("unread=", Operation="EventsLost")
    assert int(lost["EventData"]["unread"]) > 0
    assert holds(up)
