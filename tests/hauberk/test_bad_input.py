# SPDX-License-Identifier: Apache-2.0
"""Whatever is wrong outside, the command says so in one sentence and the right exit code, and never shows a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RECORDING = ROOT / "examples/recordings/host.hbrk"
POLICY = str(ROOT / "examples/policies/host-audit-shadow.yaml")
NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: changes user, mounts or loads")

BAD_POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: bad
spec:
  selector:
    matchLabels:
      app: x
  proces:
    matchPaths:
    - path: /bin/sh
  file:
    matchPaths:
    - path: relative
  severity: 20
  action: Blok
"""


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> str:
    """The one sentence, after checking that it is one."""
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if re.match(r"hauberk \w+: ", line)]
    assert len(lines) == 1, done.stderr
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]


# Policies


@pytest.mark.parametrize("verb", [("apply",), ("up", "-q", "--replay", str(RECORDING), "--speed", "0")])
def test_every_error_of_a_policy_at_once_and_nothing_applied(hauberk: Any, verb: tuple[str, ...]) -> None:
    assert hauberk.replay("-f", POLICY).returncode == 0
    before = hauberk("get", "policies", "-o", "json").stdout
    folder = hauberk.home / "policies"
    folder.mkdir()
    (folder / "a-good.yaml").write_text(Path(POLICY).read_text().replace("audit-password-hashes", "another"))
    (folder / "bad.yaml").write_text(BAD_POLICY)
    done = hauberk(*verb, "-f", "policies")
    refused(done, 2, "4 errors", "nothing was applied")
    for place in ("9:3", "14:13", "15:13", "16:11"):
        assert f"--> policies/bad.yaml:{place}" in done.stderr
    assert "did you mean `process`?" in done.stderr
    assert "did you mean `Block`?" in done.stderr
    now = hauberk("get", "policies", "-o", "json").stdout
    assert [one["metadata"] for one in json.loads(now)] == [one["metadata"] for one in json.loads(before)]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("apply", "-f", "none.yaml"), ("none.yaml", "No such file")),
        (("policy", "check", "none.yaml"), ("none.yaml", "No such file")),
        (("apply", "-f", "empty"), ("empty", "found none")),
        (("policy", "check"), ("expected policy files",)),
        (("policy", "test", "-f", POLICY, "--events", "none.jsonl"), ("none.jsonl", "No such file")),
        (("policy", "backtest", "-f", POLICY), ("summary.db", "there is none")),
        (("policy", "backtest", "-f", POLICY, "--since", "soon"), ("duration", "`soon`")),
        (("summary",), ("summary.db", "there is none")),
        (("summary", "--since", "1y"), ("duration", "`1y`")),
        (("record", "--for", "-3s", "x"), ()),
        (("get", "policies"), ("bus", "start `hauberk up`")),
        (("logs", "--resource", "("), ("regular expression", "--resource")),
        (("get", "policies", "--state", "file"), ("file/bus", "Not a directory")),
        (("up", "--replay", "none.hbrk"), ("none.hbrk", "No such file")),
        (("up", "--replay", "."), ("Is a directory",)),
        (("up", "--replay", str(RECORDING), "--state", "file"), ("`file`", "--state")),
        (("up", "--replay", str(RECORDING), "--state", "file/below"), ("file/below", "--state")),
        (("--config=x",), ()),
    ],
)  # fmt: skip
def test_missing_things_are_named(hauberk: Any, words: tuple[str, ...], parts: tuple[str, ...]) -> None:
    (hauberk.home / "file").write_text("x")
    (hauberk.home / "empty").mkdir()
    done = hauberk(*words)
    assert "Traceback" not in done.stderr
    assert done.returncode == 2, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert said.startswith("hauberk"), done.stderr
    for part in parts:
        assert part in said


@pytest.mark.parametrize(
    ("words", "near"),
    [(("summry",), "summary"), (("polcy", "check"), "policy"), (("aply",), "apply"), (("xyzzy",), "--help")],
)
def test_unknown_verbs(hauberk: Any, words: tuple[str, ...], near: str) -> None:
    done = hauberk(*words)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert near in done.stderr


# Settings


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("sensor.lod.rules=1", ("`sensor.lod`", "did you mean `load`?", "--set")),
        ("sensor.load.rule=1", ("`sensor.load.rule`", "did you mean `rules`?")),
        ("bus.segment_byte=3", ("`bus.segment_byte`", "did you mean `segment_bytes`?")),
        ("bus.type=kafak", ("`bus.type`", "embedded")),
        ("sensors.keep=true", ("`sensors`", "did you mean `sensor`?", "--set")),
        ('sinks=[{"type":"file","pth":"x"}]', ("`sinks[0].pth`", "did you mean `path`?", "--set")),
        ('sinks=[{"type":"blackhole"},{"type":"fil","path":"x"}]', ("type`", "file", "did you mean `file`?")),
        ("sinks=3", ("`sinks`", "array")),
        ("sensor=3", ("`sensor`", "expected a table", "int")),
        ("sensor.keep=maybe", ("`sensor.keep`", "bool")),
        ("sensor.keep", ("--set a.b=value", "`sensor.keep`")),
        ("bus.retention_bytes_of.alert=1", ("retention_bytes_of", "alerts", "`alert`")),
    ],
)
def test_unknown_settings_name_path_and_neighbour(hauberk: Any, text: str, parts: tuple[str, ...]) -> None:
    refused(hauberk.replay("--set", text), 2, *parts)
    assert not (hauberk.state / "bus/topics").exists()


def test_readers_of_the_bus_check_the_settings_they_were_given(hauberk: Any) -> None:
    refused(hauberk("get", "policies", "--set", "sinkz=[]"), 2, "`sinkz`", "did you mean `sinks`?")
    refused(
        hauberk("get", "policies", HAUBERK__BUS__DIRECTORYY="/x"), 2, "`bus.directoryy`", "did you mean `directory`?"
    )
    refused(hauberk("get", "policies", "--config", "none.toml"), 2, "none.toml", "--config")
    refused(hauberk.replay(HAUBERK_LOG="chatty"), 2, "HAUBERK_LOG", "`CHATTY`")


@pytest.mark.parametrize("speed", ["-1", "fast", "nan"])
def test_speed(hauberk: Any, speed: str) -> None:
    done = hauberk("up", "--replay", "x", "--speed", speed)
    assert done.returncode == 2
    assert f"expected a number from 0 on, got `{speed}`" in done.stderr


# Recordings


def _damaged(data: bytes) -> bytes:
    changed = bytearray(data)
    changed[len(data) // 2] ^= 0xFF
    return bytes(changed)


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (lambda data: data[:8000], ("bytes of a torn one", "record again")),
        (_damaged, ("offset", "checksum", "`--skip-damaged`")),
        (lambda data: b"", ("expected a recording", "offset 0")),
        (lambda data: data[:10], ("expected a recording", "10 bytes of one that was cut short")),
        (lambda data: b"GARBAGE\n" + data[8:], ("expected a recording", "GARBAGE")),
        (lambda data: data[:8] + b"\xff\xff" + data[10:], ("65535", "upgrade")),
    ],
    ids=["truncated", "corrupted", "empty", "cut in the mark", "wrong magic", "newer version"],
)
def test_a_broken_recording(hauberk: Any, change: Callable[[bytes], bytes], parts: tuple[str, ...]) -> None:
    (hauberk.home / "broken.hbrk").write_bytes(change(RECORDING.read_bytes()))
    refused(hauberk("up", "-q", "--replay", "broken.hbrk", "--speed", "0"), 2, "broken.hbrk", *parts)


def test_alerts_are_shown_once_where_the_settings_have_a_console_too(hauberk: Any) -> None:
    shown = [
        hauberk("up", "--replay", str(RECORDING), "--speed", "0", "-f", POLICY, HAUBERK__SINKS=sinks)
        for sinks in ("[]", '[{"type": "console"}]')
    ]
    assert shown[0].stdout.count("Audit") > 0
    assert [one.stderr.count("alerts below") for one in shown] == [1, 1]
    first, second = ([line[len("00:00:00.000") :] for line in one.stdout.splitlines()] for one in shown)
    assert first == second


def test_damaged_blocks_can_be_left_out(hauberk: Any) -> None:
    (hauberk.home / "broken.hbrk").write_bytes(_damaged(RECORDING.read_bytes()))
    done = hauberk("up", "-q", "--replay", "broken.hbrk", "--speed", "0", "--skip-damaged")
    assert done.returncode == 0, done.stderr
    assert "1 damaged block of `broken.hbrk` left out" in done.stderr


def test_a_replay_whose_sink_took_nothing_ends_with_1(hauberk: Any) -> None:
    hauberk.sinks = [{"type": "syslog", "name": "siem", "address": "127.0.0.1:1"}]
    done = hauberk.replay("-f", POLICY)
    assert done.returncode == 1, done.stderr
    assert "sink `siem` has not sent everything, the rest stays on the bus" in done.stderr


# Stores and the bus


@pytest.fixture
def kept(hauberk: Any) -> Any:
    """A state with a summary store in it."""
    hauberk.sinks = [{"type": "store", "path": str(hauberk.state / "summary.db")}]
    assert hauberk.replay("-f", POLICY).returncode == 0
    return hauberk


def _overwrite(path: Path, at: int, size: int) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xa5" * size)


@pytest.mark.parametrize(("at", "size"), [(0, 4096), (8192, 120_000)], ids=["header", "pages"])
def test_a_damaged_summary_store_is_said_and_moved_aside(kept: Any, at: int, size: int) -> None:
    store = kept.state / "summary.db"
    _overwrite(store, at, size)
    for done in (kept.replay(), kept("summary", "--host", "--since", "9999d"), kept("policy", "backtest", "-f", POLICY, "--since", "9999d")):  # fmt: skip
        refused(done, 2, str(store), "damaged", "to begin a new one")
    assert "damaged" in kept("doctor").stdout
    store.rename(f"{store}.damaged")
    assert kept.replay().returncode == 0


def test_damaged_files_of_the_bus_are_put_aside_and_told(kept: Any) -> None:
    policies = kept.state / "bus/topics/policies.v1/compacted.db"
    _overwrite(policies, 0, 100)
    refused(kept("get", "policies"), 2, "1 that is damaged", "`*.corrupt`", "doctor")
    doctor = kept("doctor")
    assert str(policies.parent) in doctor.stdout
    assert "corrupt" in doctor.stdout
    for path in (kept.state / "bus").rglob("*.db"):
        _overwrite(path, 0, 100)
    done = kept.replay("-f", POLICY)
    assert done.returncode == 0, done.stderr
    assert "damaged and now put aside" in done.stderr
    assert "Traceback" not in done.stderr
    assert "audit-password-hashes" in kept("get", "policies").stdout


def test_a_file_where_the_bus_wants_a_directory(hauberk: Any) -> None:
    (hauberk.state / "bus").mkdir(parents=True)
    (hauberk.state / "bus/topics").write_text("x")
    refused(hauberk.replay("-f", POLICY), 3, str(hauberk.state / "bus/topics"), "Not a directory")
    refused(hauberk("get", "policies"), 3, "Not a directory")
    (hauberk.state / "bus/topics").unlink()
    shutil.rmtree(hauberk.state / "bus")
    (hauberk.state / "bus").write_text("x")
    refused(hauberk.replay(), 3, str(hauberk.state / "bus"))


def test_corrupt_frames_go_to_the_dead_letters_and_the_others_go_on(
    hauberk: Any, eventually: Callable[..., Any]
) -> None:
    up = hauberk.start("up", "--replay", str(RECORDING), "--speed", "0.02", "-q", "-f", POLICY)
    said = up.ready()
    code = (
        "import asyncio,sys;from bus.embedded.bus import *;from bus.contract import Record;from schemas.topics import EVENTS_RAW\n"
        "async def main():\n b=await EmbeddedBus.open(EmbeddedSettings(directory=sys.argv[1]))\n"
        " await b.publish(EVENTS_RAW,[Record(b'demo',v) for v in (b'', b'\\xc1garbage', b'\\x93\\x01\\x02\\x03')])\n await b.close()\n"
        "asyncio.run(main())"
    )
    subprocess.run([sys.executable, "-c", code, str(hauberk.state / "bus")], check=True, cwd=ROOT)
    url = re.search(r"http://\S+/metrics", said)
    assert url is not None

    def dead() -> bool:
        try:
            answer = urllib.request.urlopen(url[0], timeout=5)
        except OSError:  # not open yet
            return False
        with answer:
            return bool(re.search(r"(?m)^hauberk_pump_dead(_total)?(\{[^}]*\})? 3(\.0)?$", answer.read().decode()))

    eventually(dead)
    lines = hauberk("topic", "tail", "dead", "--from", "earliest", "--limit", "3").stdout.splitlines()
    assert {json.loads(line)["headers"]["dead.reason"] for line in lines} == {"decode"}
    assert {json.loads(line)["headers"]["dead.topic"] for line in lines} == {"events.raw"}
    assert up.end() == 0
    assert "Traceback" not in up.said()
    assert "3 frames could not be judged and went to the dead letters" in up.said()
    assert hauberk.replay().returncode == 0
    assert "audit-password-hashes" in hauberk("get", "alerts").stdout


# What is outside


def test_a_port_in_use(hauberk: Any) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        hauberk.sinks = [{"type": "prometheus", "port": port}]
        refused(hauberk.replay(), 2, f"`127.0.0.1:{port}`", "in use", "set `port`")


def test_a_second_up_on_the_same_state(hauberk: Any) -> None:
    first = hauberk.start("up", "--replay", str(RECORDING), "--speed", "0.01", "-q")
    first.ready()
    refused(hauberk.replay(), 3, "the only `hauberk up`", str(hauberk.state), f"pid {first.process.pid}", "--state")
    assert first.end() == 0
    assert hauberk.replay().returncode == 0


@needs_root
def test_no_permission(hauberk: Any) -> None:
    with tempfile.TemporaryDirectory(prefix="hauberk-nobody-") as home:
        hauberk.home = Path(home)
        hauberk.state = hauberk.home / "state"
        _without_permission(hauberk)


def _without_permission(hauberk: Any) -> None:
    os.chmod(hauberk.home, 0o755)
    hauberk.state.mkdir(mode=0o700)
    (hauberk.state / "bus").mkdir()
    # Elsewhere nobody may not even read the interpreter.
    probe = hauberk("version", before=NOBODY)
    if probe.returncode:
        pytest.skip(f"another user cannot run this environment: {probe.stderr.strip()[-200:]}")
    refused(hauberk.replay(before=NOBODY), 3, str(hauberk.state), "no permission", "--state")
    refused(hauberk("get", "policies", before=NOBODY), 3, str(hauberk.state), "no permission")
    refused(hauberk("summary", before=NOBODY), 3, str(hauberk.state), "run as root")
    os.chmod(hauberk.state, 0o777)
    (hauberk.state / "bus").rmdir()
    refused(hauberk("up", "-q", before=NOBODY), 3, "mode 777", f"chmod 700 {hauberk.state}")
    os.chmod(hauberk.state, 0o700)
    os.chown(hauberk.state, 65534, 65534)
    refused(hauberk("up", "-q", before=NOBODY), 3, "root", "--replay")
    assert "run with sudo" in hauberk("probe", "-q", before=NOBODY).stderr


@needs_root
@pytest.mark.kernel
@pytest.mark.usefixtures("live")
@pytest.mark.parametrize(
    ("text", "part"),
    [("raise ImportError('no module named bcc')", "cannot be imported"), ("class Lattice: pass", "lattice library")],
    ids=["missing", "wrong"],
)
def test_bcc(hauberk: Any, text: str, part: str) -> None:
    (hauberk.home / "fake").mkdir()
    (hauberk.home / "fake/bcc.py").write_text(text)
    path = f"{hauberk.home}/fake:{os.environ.get('PYTHONPATH', '')}".rstrip(":")
    # Compiled programs that are kept need no BCC.
    words = ("up", "-q", "--set", "sensor.program_cache=")
    refused(hauberk(*words, PYTHONPATH=path), 3, part, "python3-bpfcc", "--replay")
    assert not Path(hauberk.pins).exists()


@needs_root
@pytest.mark.kernel
@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("where", ["home", "/proc/none/pins"])
def test_pins_that_cannot_be(hauberk: Any, where: str) -> None:
    hauberk.pins = f"{hauberk.home}/pins" if where == "home" else where
    (hauberk.home / "somebody's file").write_text("x")
    refused(hauberk("up", "-q"), 3, "/sys/fs/bpf")
    assert (hauberk.home / "somebody's file").read_text() == "x"


def _full(hauberk: Any, kilobytes: int) -> tuple[str, ...]:
    """A prefix that runs a command with a tmpfs of its own at `full`, in a mount namespace of its own."""
    (hauberk.home / "full").mkdir()
    script = f'mount -t tmpfs -o size={kilobytes}k,mode=700 none "{hauberk.home}/full" && dd if=/dev/zero of="{hauberk.home}/full/fill" bs=1k status=none 2>/dev/null; exec "$@"'
    return ("unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh")


@needs_root
def test_a_full_disk_under_the_bus(hauberk: Any) -> None:
    hauberk.state = hauberk.home / "full"
    done = hauberk.replay("-f", POLICY, before=_full(hauberk, 64))
    refused(done, 3, "full", "free")


@needs_root
def test_a_full_disk_under_the_store(hauberk: Any) -> None:
    hauberk.sinks = [{"type": "store", "path": f"{hauberk.home}/full/summary.db"}]
    done = hauberk.replay("-f", POLICY, before=_full(hauberk, 64))
    assert f"expected room to write `{hauberk.home}/full/summary.db`, the disk is full; free space" in done.stderr
    assert "Traceback" not in done.stderr


@needs_root
def test_a_full_disk_under_the_alerts_loses_none(hauberk: Any, eventually: Callable[..., Any]) -> None:
    path = f"{hauberk.home}/full/alerts.jsonl"
    hauberk.sinks = [{"type": "file", "path": path}]
    up = hauberk.start(
        "up", "-q", "--replay", str(RECORDING), "--speed", "0.01", "-f", POLICY, before=_full(hauberk, 64)
    )
    up.until("disk is full")
    assert "Traceback" not in up.said()
    inside = Path(f"/proc/{up.process.pid}/root")
    (inside / f"{hauberk.home}/full/fill".lstrip("/")).unlink()
    alerts = inside / path.lstrip("/")
    eventually(lambda: alerts.exists() and "audit-password-hashes" in alerts.read_text())
    assert up.end() == 0


@needs_root
@pytest.mark.kernel
@pytest.mark.usefixtures("live")
def test_an_unreadable_docker_socket_is_said_and_costs_nothing_else(hauberk: Any) -> None:
    wrong = hauberk.home / "docker.sock"
    wrong.write_text("no socket")
    runtimes = json.dumps([{"type": "docker", "socket": str(wrong)}])
    up = hauberk.start("up", "-q", "--set", f"inventory.runtimes={runtimes}")
    up.ready()
    up.until("  runtime .*" + re.escape(str(wrong)))
    assert up.end() == 0
    assert "Traceback" not in up.said()


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_replay(hauberk: Any, number: int) -> None:
    up = hauberk.start("up", "-q", "--replay", str(RECORDING), "--speed", "0.01")
    up.ready()
    assert up.end(number) == 0
    assert up.said().endswith("hauberk: ended\n")


def test_told_twice_it_does_not_wait(hauberk: Any) -> None:
    up = hauberk.start("up", "-q", "--replay", str(RECORDING), "--speed", "0.01")
    up.ready()
    up.process.send_signal(signal.SIGTERM)
    time.sleep(0.002)
    assert up.end(signal.SIGTERM) in (0, 130, -signal.SIGTERM)
    assert "Traceback" not in up.said()
    assert hauberk.replay().returncode == 0


@needs_root
@pytest.mark.kernel
@pytest.mark.usefixtures("live")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_loading_leaves_nothing(hauberk: Any, number: int) -> None:
    up = hauberk.start("up", "-q")
    up.until("hauberk .* on ")
    assert up.end(number) in (0, 130)
    assert "Traceback" not in up.said()
    assert not Path(hauberk.pins).exists()


@pytest.fixture(autouse=True)
def _nothing_left(hauberk: Any) -> Iterator[None]:
    yield
    hauberk.close()
    assert not Path(hauberk.pins).exists()
