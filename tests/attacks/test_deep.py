# SPDX-License-Identifier: Apache-2.0
"""Paths deeper and longer than a call accepts: a rule holds whatever the length, and no event steers the next one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: deep, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  process:
    matchPaths: [{{execname: blocked}}]
    matchDirectories: [{{dir: {home}/noexec/, recursive: true}}]
  file:
    matchPaths: [{{path: {home}/secret}}]
    matchDirectories: [{{dir: {home}/dir/, recursive: true}}]
  action: Block
"""


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("deep")))
    for name in ("noexec", "dir", "free", "cwd"):
        (home / name).mkdir()
    (home / "secret").write_text("s3cret")
    shutil.copy(str(shutil.which("echo")), home / "blocked")
    shutil.copy(str(shutil.which("echo")), home / "allowed")
    node = make_node(POLICY.format(home=home), make_container("box"), make_container("other"))
    node.place = home
    yield node
    subprocess.run(["rm", "-rf", home], check=True)  # deeper than Python removes


def in_box(attacked: Any, *command: object) -> Any:
    return attacked.containers["box"].run(*map(str, command))


@pytest.mark.attack("Exec of a blocked program from a working directory over 4,096 bytes", "held", by="signal")
def test_a_long_working_directory(attacked: Any, build: Callable[[str], str]) -> None:
    place = attacked.place
    assert in_box(attacked, place / "blocked", "CONTROL").returncode == -9
    done = in_box(attacked, build("deepcwd"), place / "cwd", place / "blocked", "BYPASSED")
    assert (done.returncode, done.stdout) == (-9, "")
    assert in_box(attacked, build("deepcwd"), place / "cwd", place / "allowed", "runs").stdout == "runs\n"


@pytest.mark.attack("Exec of a program over 4,096 bytes below a blocked directory", "held", by="signal")
def test_a_long_path_to_a_program(attacked: Any, build: Callable[[str], str]) -> None:
    place, attack = attacked.place, build("deepexe")
    for directory in ("noexec", "free"):
        subprocess.run([attack, "setup", place / directory, place / "allowed"], check=True)
    done = in_box(attacked, attack, "exec", place / "noexec", place / "allowed")
    assert (done.returncode, done.stdout) == (-9, "")
    told = attacked.alert(f"{place}/noexec/eee", Operation="Process")
    assert (told["Action"], told["PolicyName"], told["Enforcer"]) == ("Block", "deep", "Hauberk signal")
    assert told["Resource"].split(" ")[0].endswith("/..."), "the reader sees that the path goes on"
    assert in_box(attacked, attack, "exec", place / "free", place / "allowed").stdout == "EXEC-BYPASSED\n"


@pytest.mark.attack("Open of a file over 4,096 bytes below a blocked directory", "held", by="signal")
def test_a_long_path_to_a_file(attacked: Any, build: Callable[[str], str]) -> None:
    place, attack = attacked.place, build("deepexe")
    for directory in ("dir", "free"):
        subprocess.run([attack, "setup", place / directory, place / "allowed"], check=True)
    done = in_box(attacked, attack, "open", place / "dir", place / "allowed")
    assert (done.returncode, done.stdout) == (-9, "")
    told = attacked.alert(f"{place}/dir/eee", Operation="File")
    assert (told["Action"], told["PolicyName"], told["Enforcer"]) == ("Block", "deep", "Hauberk signal")
    assert in_box(attacked, attack, "open", place / "free", place / "allowed").stdout.startswith("OPEN-BYPASSED")


@pytest.mark.attack(
    "Exec whose path and working directory are 1,950 directories deep, then the next forbidden call",
    "held",
    by="signal",
)
def test_as_deep_as_it_gets(attacked: Any, build: Callable[[str], str]) -> None:
    place, attack = attacked.place, build("chainbreak")
    done = in_box(attacked, attack, place / "noexec", place / "allowed", 1950, "open", place / "secret")
    assert "deep exec: status 9\n" in done.stdout
    assert "s3cret" not in done.stdout
    assert done.returncode == -9
    assert attacked.alert("/noexec/a/a/a", Operation="Process")["Action"] == "Block"


@pytest.mark.attack(
    "Deep execs of one container while another works on the same processor: the other is not killed",
    "held",
    by="signal",
)
def test_nobody_else_is_killed(attacked: Any, build: Callable[[str], str]) -> None:
    place, attack = attacked.place, build("chainbreak")
    innocent = attacked.containers["other"].start(build("innocent"), stdout=subprocess.PIPE)
    for _ in range(20):
        done = in_box(attacked, attack, place / "noexec", place / "allowed", 1950)
        assert done.returncode == -9
    out, _ = innocent.communicate(timeout=120)
    assert innocent.returncode == 0
    assert "innocent lives" in out
