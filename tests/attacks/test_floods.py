# SPDX-License-Identifier: Apache-2.0
"""Floods: a workload makes more events, more new names or more alerts than a node can tell, to hide what it does meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: watched}}
spec:
  selector: {{matchExpressions: [{{key: label, operator: In, values: [app=quiet, app=flooder]}}]}}
  severity: 9
  file: {{matchDirectories: [{{dir: {home}/box/, recursive: true}}]}}
  action: Audit
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: noisy, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchExpressions: [{{key: label, operator: In, values: [app=quiet, app=flooder]}}]}}
  severity: 9
  file: {{matchPaths: [{{path: {home}/noise}}]}}
  process: {{matchPaths: [{{path: {home}/hidden, action: Block}}]}}
  action: Audit
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Path(os.path.realpath(tmp_path_factory.mktemp("floods")))
    (made / "box").mkdir()
    (made / "noise").touch()
    (made / "hidden").write_bytes(Path(os.path.realpath("/bin/true")).read_bytes())
    (made / "hidden").chmod(0o755)
    return made


@pytest.fixture(scope="module")
def node(make_container: Callable[[str], Any], make_node: Callable[..., Any], home: Path) -> Any:
    return make_node(
        POLICY.format(home=home),
        make_container("quiet"),
        make_container("flooder"),
        sensor={"keep": True},
        processor={"throttle": {}},
    )


@contextmanager
def flooding(container: Any, program: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """new_names runs in the container meanwhile."""
    process = container.start(program, *words, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        for pid in (container.path / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        process.wait()


def counted(node: Any, container: str) -> dict[str, int]:
    """Sums of the counts in `EventsLost` notices of one container."""
    found: dict[str, int] = {}
    for alert in node.alerts(Operation="EventsLost", ContainerName=container):
        for what, many in alert["EventData"].items():
            found[what] = found.get(what, 0) + int(many)
    return found


def acts(container: Any, home: Path, names: list[str]) -> None:
    """One audited open of a new file each 0.3 s, by a program that was not run before."""
    for name in names:
        target = home / "box" / name
        target.touch()
        program = home / f"cat-{name}"
        program.write_bytes(Path(os.path.realpath("/bin/cat")).read_bytes())
        program.chmod(0o755)
        assert container.run(str(program), str(target)).returncode == 0
        time.sleep(0.3)


@pytest.mark.attack("Audited opens while a neighbour opens a new path with every call", "told", by="sensor")
def test_a_neighbour_hides_nothing(node: Any, home: Path, build: Callable[[str], str], eventually: Any) -> None:
    names = [f"quiet-{number}" for number in range(10)]
    with flooding(node.containers["flooder"], build("new_names"), "600", "2"):
        time.sleep(2)
        acts(node.containers["quiet"], home, names)
        # While it floods: beside other tests it may be slow to go beyond its share.
        assert eventually(lambda: counted(node, "flooder").get("unnamed", 0)) > 0
    for name in names:
        alert = node.alert(Resource=f"{home}/box/{name}", ContainerName="quiet")
        assert alert["ProcessName"] == f"{home}/cat-{name}"
    assert counted(node, "quiet") == {}


@pytest.mark.attack("Audited opens after a start in the middle of floods of new files", "told", by="sensor")
def test_a_start_in_a_storm_sees_at_once(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], home: Path, build: Callable[[str], str]
) -> None:
    storm = make_node(
        POLICY.format(home=home),
        make_container("quiet"),
        make_container("flooder"),
        sensor={"keep": True},
        processor={"throttle": {}},
    )
    assert storm.ended() == 0
    files = home / "storm"
    files.mkdir()
    names = [f"storm-{number}" for number in range(10)]
    words = (build("new_names"), "600", "2", "exists", str(files))
    with flooding(storm.containers["flooder"], *words), flooding(storm.containers["flooder"], *words):
        began = time.monotonic()
        # Ends when the receipt says that the policies are in force: 10 to 13 s at a load of 4 to 8, two interpreters' start.
        storm.start()
        assert time.monotonic() - began < 60
        acts(storm.containers["quiet"], home, names)
        done = time.monotonic()
        for name in names:
            storm.alert(Resource=f"{home}/box/{name}", ContainerName="quiet")
        # At once where it was measured; a machine that runs other tests may be slower, and minutes are what must not be.
        assert time.monotonic() - done < 30


@pytest.mark.attack("Audited opens while the same container opens missing paths without end", "told", by="sensor")
def test_calls_that_fail_hide_none_that_pass(node: Any, home: Path, build: Callable[[str], str]) -> None:
    names = [f"own-{number}" for number in range(10)]
    with flooding(node.containers["flooder"], build("new_names"), "600", "2"):
        time.sleep(1)
        acts(node.containers["flooder"], home, names)
    for name in names:
        node.alert(Resource=f"{home}/box/{name}", ContainerName="flooder")


@pytest.mark.attack("A blocked exec after a burst of audited reads of the same policy", "held", by="signal")
def test_noise_silences_no_block(node: Any, home: Path) -> None:
    quiet = node.containers["quiet"]
    script = f"i=0; while [ $i -lt 40 ]; do read x < {home}/noise; i=$((i+1)); done; {home}/hidden"
    assert quiet.run("/bin/sh", "-c", script).returncode in (137, -9)
    alert = node.alert(ProcessName=f"{home}/hidden", ContainerName="quiet")
    assert (alert["Action"], alert["PolicyName"]) == ("Block", "noisy")
    notice = node.alert(Operation="AlertThreshold", PolicyName="noisy", Suppressed=None)
    assert notice["Rule"] == "spec.file.matchPaths[0]"
