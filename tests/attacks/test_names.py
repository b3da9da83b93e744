# SPDX-License-Identifier: Apache-2.0
"""Other names for a file: path rules are about names, and a file may have several."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: secret, annotations: {{hauberk.io/signal: enabled}}}}
spec:
  selector: {{matchLabels: {{app: box}}}}
  severity: 9
  file: {{matchPaths: [{{path: {secret}}}, {{path: {home}/in/secret}}]}}
  action: Block
"""


@pytest.fixture(scope="module")
def attacked(
    make_container: Callable[[str], Any], make_node: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    home = Path(os.path.realpath(tmp_path_factory.mktemp("names")))
    secret = home / "secret"
    secret.write_text("s3cret")
    for name in ("in", "free"):
        (home / name).mkdir()
    (home / "in/secret").write_text("s3cret")
    node = make_node(POLICY.format(secret=secret, home=home), make_container("box"))
    node.secret = secret
    return node


def read(attacked: Any, path: object) -> Any:
    return attacked.containers["box"].run("cat", str(path))


@pytest.mark.attack("Read of a blocked file by its own name", "held", by="signal")
def test_its_own_name(attacked: Any) -> None:
    assert read(attacked, attacked.secret).returncode == -9
    alert = attacked.alert(Operation="File", Resource=str(attacked.secret))
    assert (alert["Action"], alert["PolicyName"], alert["Enforcer"]) == ("Block", "secret", "Hauberk signal")


@pytest.mark.attack("Read of a blocked file through a symbolic link", "held", by="signal")
def test_a_symbolic_link(attacked: Any) -> None:
    link = attacked.secret.with_name("link")
    link.symlink_to(attacked.secret)
    assert read(attacked, link).returncode == -9


@pytest.mark.attack("Read of a blocked file through a descriptor path below /proc", "held", by="signal")
def test_a_path_below_proc(attacked: Any) -> None:
    assert read(attacked, f"/proc/self/root{attacked.secret}").returncode == -9


@pytest.mark.attack("Read of a blocked file through a hard link made before the rule", "not held", by="signal")
def test_an_older_hard_link(attacked: Any) -> None:
    os.link(attacked.secret, attacked.secret.with_name("other"))
    done = read(attacked, attacked.secret.with_name("other"))
    assert (done.returncode, done.stdout) == (0, "s3cret")


EXCHANGE = "import ctypes, sys; sys.exit(ctypes.CDLL(None).renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2))"


@pytest.mark.attack(
    "Read of a blocked file after its directory was renamed, or exchanged with another", "not held", by="signal"
)
@pytest.mark.parametrize(
    ("command", "other"), [(("mv",), "moved"), ((sys.executable, "-S", "-c", EXCHANGE), "free")], ids=("mv", "exchange")
)
def test_another_name_of_its_directory(attacked: Any, command: tuple[str, ...], other: str) -> None:
    place, taken = attacked.secret.parent / "in", attacked.secret.parent / other
    assert read(attacked, place / "secret").returncode == -9
    box = attacked.containers["box"]
    assert box.run(*command, str(place), str(taken)).returncode == 0
    try:
        done = read(attacked, taken / "secret")
        assert (done.returncode, done.stdout) == (0, "s3cret")
    finally:
        assert box.run(*command, str(taken), str(place)).returncode == 0


@pytest.mark.attack("Read of a blocked file through a bind mount of its directory", "not held", by="signal")
def test_a_bind_mount(attacked: Any) -> None:
    place, free = attacked.secret.parent / "in", attacked.secret.parent / "free"
    done = attacked.containers["box"].run(
        "unshare", "-m", "sh", "-c", f"mount --bind {place} {free} && cat {free}/secret"
    )
    assert (done.returncode, done.stdout) == (0, "s3cret")
