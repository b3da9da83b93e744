# SPDX-License-Identifier: Apache-2.0
"""A real `hauberk up` under attack: containers declared for the test, policies applied to them, attacks run in their cgroups.

Each attack is a test marked `attack`, one file per kind of attack; the first sentence of the file's docstring names the kind.
`make docs` writes the table of SECURITY.md from these markers:

    @pytest.mark.attack("Exec of a blocked program from a working directory over 4,096 bytes", "held", by="signal")

`what` the attacker tries; `result`: `held` (it does not take effect), `told` (it takes effect, and an alert or a counted loss
says so), `not held` (it takes effect and nothing says so); `by`: the backend, sensor or file that answers. The test
asserts that result. What the LSM hooks make of the same attack is asked in tests/enforcers/test_lsm_attacks.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from waiting import eventually

from kernel.features import cgroup2_mount

PROGRAM = str(Path(sys.executable).with_name("hauberk"))
SOURCES = Path(__file__).parent
RESULTS = ("held", "told", "not held")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """An attack needs a kernel that can be watched, and more time than most tests: it starts `up`."""
    for item in items:
        if item.path.parent == SOURCES:
            item.add_marker(pytest.mark.kernel)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))
        for marker in item.iter_markers("attack"):
            result = marker.args[1]
            assert result in RESULTS, f"{item.nodeid}: expected a result of {RESULTS}, got `{result}`"


@pytest.fixture(scope="session")
def watchable() -> None:
    """Skips, with the reason, where this kernel cannot be watched."""
    why = subprocess.run([PROGRAM, "probe", "--quiet"], capture_output=True, text=True, check=False)
    if why.returncode:
        pytest.skip(f"this node cannot be watched: {why.stderr.strip()}")


PATIENCE = 900.0 if "HAUBERK_TEST_EMULATED" in os.environ else 180.0
"""Seconds for a start, and for a policy to be in force; an emulated machine (tests/vm) takes minutes."""


class Container:
    """A cgroup that policies see as a container named `name` with the label `app: NAME`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.cgroup = f"/hauberk-attack-{os.getpid()}-{time.monotonic_ns()}-{name}"
        self.path = Path(f"{cgroup2_mount()}{self.cgroup}")
        self.path.mkdir()
        self._started: list[subprocess.Popen[str]] = []

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Starts a program inside: the shell moves itself in, then becomes the program."""
        words = ["/bin/sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "sh", *command]
        process = subprocess.Popen(words, text=True, **options)
        # Kept until the end, where a test that failed has left it unwaited for: its warning would be the failure of another test.
        self._started.append(process)
        return process

    def run(self, *command: str, seconds: float = 120, **options: Any) -> subprocess.CompletedProcess[str]:
        """Runs a program inside. returncode -9: it was killed."""
        pipe = subprocess.PIPE
        process = self.start(*command, stdout=pipe, stderr=pipe, stdin=subprocess.DEVNULL, **options)
        out, err = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def close(self) -> None:
        """Ends what runs inside and removes the cgroup with all below. Deep nests are removed from the bottom, without recursion."""
        deadline = time.monotonic() + 60
        while self.path.exists():
            with contextlib.suppress(OSError):
                self._remove()
            assert time.monotonic() < deadline, f"{self.path} stays"
        while self._started:
            with self._started.pop() as process:
                process.kill()  # where a test had moved him out of the cgroup

    def _remove(self) -> None:
        below = subprocess.run(
            ["find", self.path, "-depth", "-type", "d"], capture_output=True, text=True, check=False
        ).stdout.splitlines()
        for directory in below:
            for pid in Path(directory, "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            os.rmdir(directory)


class Node:
    """A running `hauberk up` with a state directory, pins and ports of its own."""

    def __init__(self, home: Path, containers: Sequence[Container], policies: str, settings: dict[str, Any]) -> None:
        self.home = home
        self.state = home / "state"
        self.alerts_file = home / "alerts.jsonl"
        self.pins = f"/sys/fs/bpf/hauberk-attack-{os.getpid()}-{time.monotonic_ns()}"
        self.containers = {one.name: one for one in containers}
        (home / "policies.yaml").write_text(policies)
        workloads = [{"name": one.name, "cgroup": one.cgroup, "labels": {"app": one.name}} for one in containers]
        made: dict[str, Any] = {
            # Of an attack that repeats itself the later alerts are counted, not written: a test would depend on the one before.
            "processor": {"throttle": {"max_alerts_per_second": 0}},
            "postures": {"host_visibility": ["none"]}, "node": "attacked", "sensor": {"pin_dir": self.pins},
            "inventory": {"runtimes": [], "workloads": workloads}, "page": {"port": 0},
            "sinks": [{"type": "file", "path": str(self.alerts_file)}, {"type": "prometheus", "port": 0},
                      {"type": "store", "path": str(home / "summary.db")}],
        }  # fmt: skip
        for section, values in settings.items():
            made[section] = made[section] | values if isinstance(made.get(section), dict) else values
        made["sensor"]["load"] = {"timeout": PATIENCE} | made["sensor"].get("load", {})
        (home / "settings.json").write_text(json.dumps(made))
        plain = {name: value for name, value in os.environ.items() if not name.startswith("HAUBERK")}
        self.environment = plain | {"HAUBERK_STATE": str(self.state), "HAUBERK_CONFIG": str(home / "settings.json")}
        self.process: subprocess.Popen[str] | None = None
        self.patience = PATIENCE
        self.before: Sequence[str] = ()
        """Words in front of the command, as `prlimit --nofile=256`."""

    def start(self, *words: str, policies: bool = True) -> None:
        """Starts `up` and waits until the node's receipt says that its policies are in force. `policies`: else none are applied, and
        it is waited only until `up` runs."""
        given = ["-f", str(self.home / "policies.yaml")] if policies else []
        before = len(self.said()) if (self.home / "up.err").exists() else 0
        with (self.home / "up.err").open("a") as err, (self.home / "up.out").open("a") as out:
            self.process = subprocess.Popen(
                [*self.before, PROGRAM, "up", "-q", *given, *words], cwd=self.home,
                env=self.environment, stdout=out, stderr=err, stdin=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        process = self.process
        eventually(
            lambda: re.search(r"(?m)^  bus  ", self.said()[before:]) or process.poll() is not None, self.patience
        )
        assert process.poll() is None, self.said()
        if policies:
            self._apply(self.home / "policies.yaml")

    def said(self) -> str:
        """Standard error of `up` so far."""
        return (self.home / "up.err").read_text()

    def hauberk(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Another verb against this node's state."""
        return subprocess.run(
            [PROGRAM, *words], cwd=self.home, env=self.environment, capture_output=True, text=True, timeout=seconds,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def apply(self, policies: str) -> None:
        """Applies more policies and waits until the node's receipt has them."""
        path = self.home / f"more-{time.monotonic_ns()}.yaml"
        path.write_text(policies)
        self._apply(path)

    def _apply(self, path: Path) -> None:
        done = self.hauberk("apply", "-f", str(path), "--wait", f"{self.patience:g}", seconds=2 * self.patience)
        assert done.returncode == 0, f"{done.stderr}{self.said()}"

    def alerts(self, text: str = "", **fields: Any) -> list[dict[str, Any]]:
        """Alerts told so far whose line holds `text` and whose fields equal `fields`."""
        if not self.alerts_file.exists():
            return []
        whole = self.alerts_file.read_text(errors="surrogateescape")
        lines = whole[: whole.rfind("\n") + 1].splitlines()
        rows = [json.loads(line) for line in lines if text in line]
        return [row for row in rows if all(row.get(name) == value for name, value in fields.items())]

    def alert(self, text: str = "", **fields: Any) -> dict[str, Any]:
        """Waits for such an alert: the first."""
        try:
            found: list[dict[str, Any]] = eventually(lambda: self.alerts(text, **fields))
        except AssertionError:
            lines = "\n".join(json.dumps(row) for row in self.alerts()[-20:])
            raise AssertionError(f"no alert with `{text}` and {fields}; the last:\n{lines}\n{self.said()}") from None
        return found[0]

    def ended(self, number: int = signal.SIGINT) -> int:
        """Tells `up` to stop and waits: its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(120)

    def close(self) -> None:
        """Ends `up` and removes what it pinned, however it ended."""
        from kernel.loading import unload

        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(120)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(60)
        if os.path.isdir(self.pins):
            unload(self.pins)


@pytest.fixture(scope="module")
def make_container(watchable: None) -> Iterator[Callable[[str], Container]]:
    """make_container(name): removed after the module's tests."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Container:
            made = Container(name)
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="module")
def make_node(
    watchable: None, make_container: Callable[[str], Container], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Node]]:
    """make_node(policies, *containers, **settings): a running `up` for the module; settings are sections of the configuration."""
    with contextlib.ExitStack() as stack:

        def make(policies: str, *containers: Container, start: bool = True, **settings: Any) -> Node:
            node = Node(tmp_path_factory.mktemp("attacked"), containers, policies, settings)
            stack.callback(node.close)
            if start:
                node.start()
            return node

        yield make
