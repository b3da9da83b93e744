# SPDX-License-Identifier: Apache-2.0
"""Shapes of cgroup trees that a container makes: none of them keeps plans from being applied, nor costs the square of its size."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {app}}}}}
  severity: 9
  network: {{matchProtocols: [{{protocol: {protocol}}}]}}
  action: Block
"""
CALL = "import socket\ntry: socket.socket(socket.AF_INET, socket.{kind})\nexcept PermissionError: print('denied')\nelse: print('made')"
BYTES_EACH = 400
"""Of what the inventory may publish for a new cgroup; all ids of a thousand told each time would be some 5,000."""


@pytest.fixture(scope="module")
def attacked(make_container: Callable[[str], Any], make_node: Callable[..., Any]) -> Any:
    policies = POLICY.format(name="box", app="box", protocol="tcp")
    return make_node(policies, make_container("box"), make_container("other"))


def denied(container: Any, kind: str) -> bool:
    return bool(container.run(sys.executable, "-S", "-c", CALL.format(kind=kind)).stdout == "denied\n")


@contextlib.contextmanager
def nested(top: Path, depth: int) -> Iterator[int]:
    flags = os.O_RDONLY | os.O_DIRECTORY
    fds = [os.open(top, flags)]
    try:
        with contextlib.suppress(OSError):  # as deep as this kernel goes
            for _ in range(depth):
                os.mkdir("a", dir_fd=fds[-1])
                fds.append(os.open("a", flags, dir_fd=fds[-1]))
        yield len(fds) - 1
    finally:
        while len(fds) > 1:
            os.close(fds.pop())
            os.rmdir("a", dir_fd=fds[-1])
        os.close(fds.pop())


def rest(attacked: Any) -> None:
    """What must be so whatever tree there is."""
    assert attacked.process.poll() is None, attacked.said()
    assert "failed (" not in attacked.said()


@pytest.mark.attack("1,100 cgroups nested in a container", "held", by="hauberk up")
def test_nested(attacked: Any) -> None:
    box, other = attacked.containers["box"], attacked.containers["other"]
    with nested(box.path, 1100) as depth:
        assert depth > 1000
        attacked.apply(POLICY.format(name="other", app="other", protocol="tcp"))
        attacked.apply(POLICY.format(name="box-too", app="box", protocol="udp"))
        assert denied(other, "SOCK_STREAM")
        assert denied(box, "SOCK_DGRAM")
        rest(attacked)


@pytest.mark.attack("2,000 cgroups side by side in a container", "held", by="hauberk up")
def test_flat(attacked: Any, eventually: Callable[..., Any]) -> None:
    box, other = attacked.containers["box"], attacked.containers["other"]
    bus = attacked.state / "bus"
    made = [box.path / f"n{number}" for number in range(2000)]
    before = sum(file.stat().st_size for file in bus.rglob("*") if file.is_file())
    try:
        for path in made:
            path.mkdir()
        attacked.apply(POLICY.format(name="other-too", app="other", protocol="udp"))
        assert denied(other, "SOCK_DGRAM")
        assert denied(box, "SOCK_STREAM")
        grown = sum(file.stat().st_size for file in bus.rglob("*") if file.is_file()) - before
        assert grown < BYTES_EACH * len(made) + (8 << 20), "one log segment may be made ready besides"
        eventually(lambda: re.search(r"has made more than \d+ cgroups below its own", attacked.said()))
        inside = box.run(
            "/bin/sh", "-c", f'echo $$ > {made[-1]}/cgroup.procs; exec "$@"', "sh", sys.executable, "-S", "-c",
            CALL.format(kind="SOCK_STREAM"),
        )  # fmt: skip
        assert inside.stdout == "denied\n", "the last of them is the container too"
        rest(attacked)
    finally:
        for path in made:
            if path.exists():
                path.rmdir()
