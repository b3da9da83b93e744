# SPDX-License-Identifier: Apache-2.0
"""Does what the README tells a reader to type, on the live kernel: `make run`, a read of /etc/shadow, the demonstration, the summary."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text()
SUMMARY = "hauberk summary -n container_namespace -l app=demo --agg -t process,egress"


def why_not() -> str:
    return subprocess.run(
        [BIN / "hauberk", "probe", "--quiet"], capture_output=True, text=True, check=False
    ).stderr.strip()


class Show:
    """A running `make run` of its own: other pins, other state, a free port."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.said = state.parent / "said.txt"
        sinks = [{"type": "file", "path": f"{state}/alerts.jsonl"}, {"type": "store", "path": f"{state}/summary.db"},
                 {"type": "prometheus", "port": 0}]  # fmt: skip
        self.environment = os.environ | {
            "HAUBERK_STATE": str(state), "HAUBERK__SENSOR__PIN_DIR": f"/sys/fs/bpf/hauberk-show-{os.getpid()}",
            "HAUBERK__SINKS": json.dumps(sinks), "PATH": f"{BIN}:{os.environ['PATH']}",
            "HAUBERK__PAGE__PORT": "0",
        }  # fmt: skip
        with self.said.open("w") as out:
            self.process = subprocess.Popen(
                ["make", "-s", "run"], cwd=ROOT, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            line, shell=True, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=120, check=False
        )


@pytest.fixture(scope="module")
def show(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Show]:
    if why := why_not():
        pytest.skip(f"this node cannot be watched: {why}")
    shown = Show(tmp_path_factory.mktemp("show") / "state")
    try:
        eventually(lambda: "  bus " in shown.said.read_text() or shown.process.poll() is not None, 90)
        assert shown.process.poll() is None, shown.said.read_text()
        # Plans follow identities; the demonstration itself waits for its own.
        eventually(lambda: "demo-container" in shown.run("hauberk get policies").stdout)
        shown.demo = shown.run("examples/demo/demo.sh")  # type: ignore[attr-defined]
        # Once, at the speed of pasting: the verb itself waits for the counts.
        shown.summary = shown.run(SUMMARY)  # type: ignore[attr-defined]
        yield shown
    finally:
        if shown.process.poll() is None:
            os.killpg(shown.process.pid, signal.SIGINT)
            try:
                shown.process.wait(60)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(shown.process.pid, signal.SIGKILL)
    assert not Path(shown.environment["HAUBERK__SENSOR__PIN_DIR"]).exists()
    assert not Path("/sys/fs/cgroup/unified/hauberk-demo").exists()


@pytest.mark.kernel
def test_a_read_of_the_password_hashes_is_told(show: Show) -> None:
    def told() -> object:
        # Again until it is told: policies and identities are read while the first events come.
        subprocess.run(["cat", "/etc/shadow"], stdout=subprocess.DEVNULL, check=True)
        return re.search(r"Audit File .*/cat -> /etc/shadow \[audit-password-hashes", show.said.read_text())

    eventually(told)


@pytest.mark.kernel
def test_a_workload_is_denied_a_connection_and_an_exec(show: Show) -> None:
    demo: subprocess.CompletedProcess[str] = show.demo  # type: ignore[attr-defined]
    assert demo.returncode == 0, demo.stderr
    assert "Operation not permitted" in demo.stdout
    assert "exit code 137" in demo.stdout
    for pattern in (r"Block Network .*/hauberk-demo .*Operation not permitted", r"Block Process .*/hauberk-demo .*/nc -l 4444",
                    r"Audit File .*/hauberk-demo .*-> /etc/passwd"):  # fmt: skip
        eventually(lambda pattern=pattern: re.search(pattern, show.said.read_text()))

    def told() -> dict[str, dict[str, str]]:
        # Another sink than the one of the screen, at its own pace; its last line may still be on its way.
        whole = (show.state / "alerts.jsonl").read_text().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return {line["Operation"]: line for line in lines if line.get("ContainerName") == "hauberk-demo"}

    eventually(lambda: {"Network", "Process", "File"} <= told().keys())
    mine = told()
    assert mine["Network"]["Enforcer"] == "Hauberk cgroup"
    assert mine["Process"]["Enforcer"] == "Hauberk signal"
    assert mine["Process"]["Labels"] == "app=demo"


@pytest.mark.kernel
def test_two_demonstrations_at_once_wait_for_each_other(show: Show) -> None:
    def start() -> subprocess.Popen[str]:
        command = [ROOT / "examples/demo/demo.sh"]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start()
    assert first.stdout is not None
    assert first.stdout.readline() == "demo: connecting to 127.0.0.1 port 9\n"
    second = start()
    for one in (first, second):
        out, err = one.communicate(timeout=120)
        assert "No such file" not in err
        assert "Operation not permitted" in out
        assert "exit code 137" in out


@pytest.mark.kernel
def test_the_summary_shows_what_it_did(show: Show) -> None:
    assert SUMMARY in README
    said = show.summary.stdout  # type: ignore[attr-defined]
    assert re.search(r"\| SRC PROCESS +\| DESTINATION PROCESS PATH +\| COUNT \| LAST UPDATED TIME +\| STATUS \|", said)
    assert re.search(r"/nc +\| 1 +\| .* \| Deny ", said)


def typed() -> list[str]:
    """Every `hauberk` command of the README that ends by itself."""
    found = []
    for match in re.finditer(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL):
        found += [line for line in match[1].splitlines() if line.startswith("hauberk ")]
    return found


@pytest.mark.kernel
@pytest.mark.parametrize("line", typed())
def test_what_the_reader_types_works(show: Show, line: str) -> None:
    words = shlex.split(line)[1:]
    if words[0] == "logs" or words[:2] == ["get", "alerts"]:
        # Alerts come some milliseconds after what they tell of.
        eventually(lambda: (done := show.run(line)).returncode == 0 and done.stdout)
    done = show.run(line)
    # 1 is an answer too: what a node cannot see, lint findings, nothing to tell.
    assert done.returncode in (
        (0, 1) if words[:2] in (["policy", "check"], ["policy", "lint"], ["policy", "diff"]) else (0,)
    ), done.stderr
    assert done.stdout or done.stderr


def test_make_targets_of_the_readme_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)$", README, re.MULTILINE)) <= targets


def test_without_a_kernel_a_recording_is_shown(tmp_path: Path) -> None:
    """As another user: no root, no BPF."""
    recording = next(iter(re.findall(r"--replay (\S+)", README)))
    done = subprocess.run(
        [BIN / "hauberk", "up", "--state", str(tmp_path / "state"), "--replay", recording, "--speed", "0",
         "-f", "examples/policies/host-audit-shadow.yaml", "--set", 'sinks=[{"type":"blackhole"}]'],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "/etc/shadow" in done.stdout
