# SPDX-License-Identifier: Apache-2.0
"""The whole way for a real container: the inventory finds it, the planner plans, the kernel says no inside and only there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from enforcers.cgroup import cgroup2_mount
from sensors.containers.inventory import NodeInventory
from sensors.containers.inventory_settings import NodeInventorySettings
from sensors.containers.podman import PodmanSettings

pytestmark = [pytest.mark.kernel, pytest.mark.containers]


class Runc:
    """Containers of one busybox root, sharing the host's network."""

    def __init__(self, home: Path) -> None:
        self.home, self.root = home, str(home / "runc")
        self.rootfs = home / "rootfs"
        (self.rootfs / "bin").mkdir(parents=True)
        for name in ("proc", "dev", "sys", "etc"):
            (self.rootfs / name).mkdir()
        shutil.copy(str(shutil.which("busybox")), self.rootfs / "bin/busybox")
        for applet in ("sh", "sleep", "nc", "cat", "id"):
            (self.rootfs / "bin" / applet).symlink_to("busybox")
        (self.rootfs / "opt").mkdir()
        shutil.copy(self.rootfs / "bin/busybox", self.rootfs / "opt/id")
        self.names: list[str] = []

    def run(self, name: str) -> None:
        bundle = self.home / name
        bundle.mkdir()
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=["/bin/sleep", "600"], noNewPrivileges=False)
        config["process"].pop("rlimits", None)
        config["root"] = {"path": str(self.rootfs), "readonly": True}
        linux = config["linux"]
        linux.pop("resources", None)
        linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "network"]
        config["mounts"] = [one for one in config["mounts"] if one["destination"] == "/proc"]
        (bundle / "config.json").write_text(json.dumps(config))
        self.names.append(name)
        self._do("run", "-d", "--no-pivot", "--bundle", str(bundle), name)

    def exec(self, name: str, *command: str) -> int:
        done = subprocess.run(
            ["runc", "--root", self.root, "exec", name, *command], check=False, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=90,
        )  # fmt: skip
        return done.returncode

    def _do(self, *words: str) -> None:
        with (self.home / "err").open("wb") as errors:
            done = subprocess.run(
                ["runc", "--root", self.root, *words], check=False, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=errors, timeout=90,
            )  # fmt: skip
        assert done.returncode == 0, (self.home / "err").read_text()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for name in self.names:
                stack.callback(self._do, "delete", "-f", name)


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[Runc]:
    if os.geteuid() != 0 or not shutil.which("runc") or not shutil.which("busybox"):
        pytest.skip("needs root, runc and busybox: apt-get install runc busybox-static")
    one = Runc(tmp_path)
    try:
        yield one
    finally:
        one.close()


POLICY = """---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: held, annotations: {hauberk.io/signal: enabled}}
spec:
  selector: {matchLabels: {kubearmor.io/container.name: "hauberk-held-.*"}}
  network: {matchProtocols: [{protocol: tcp}]}
  process: {matchPaths: [{path: /opt/id}]}
  action: Block
"""


async def test_a_container_is_held_and_its_neighbour_is_not(house: Any, runc: Runc, server: int) -> None:
    held, free = f"hauberk-held-{os.getpid()}", f"hauberk-free-{os.getpid()}"
    async with house() as here:
        settings = NodeInventorySettings(node="n1", runtimes=(PodmanSettings(roots=(runc.root,), poll_seconds=0.05),))
        inventory = NodeInventory(here.bus, settings)
        following = asyncio.create_task(inventory.run())
        try:
            await asyncio.wait_for(inventory.ready.wait(), 60)
            await here.apply(POLICY)
            await asyncio.to_thread(runc.run, held)
            await asyncio.to_thread(runc.run, free)
            connect = ("/bin/nc", "127.0.0.1", str(server))
            await here.until(lambda: os.stat(f"{cgroup2_mount()}/{held}").st_ino in here.agent.applier.enforced)
            await here.settled()
            assert runc.exec(held, *connect) != 0
            assert runc.exec(free, *connect) == 0
            assert runc.exec(held, "/opt/id") == 128 + 9
            assert runc.exec(free, "/opt/id") == 0
            assert runc.exec(held, "/bin/id") == 0
            await here.until(lambda: here.agent.receipt.scopes == 1)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
