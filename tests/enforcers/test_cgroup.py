# SPDX-License-Identifier: Apache-2.0
"""Network rules on the live kernel: denied inside, untouched outside, for protocols, addresses, ports and sources."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from schemas.identity import Kind

pytestmark = pytest.mark.kernel
CALLS = str(Path(__file__).parent / "calls.py")

NSP = """---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {{name: peers}}
spec: {{nodeSelector: {{matchLabels: {{kubernetes.io/hostname: n1}}}}, {spec}}}
"""


async def test_a_protocol_is_denied_in_the_container_and_nowhere_else(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, server: int
) -> None:
    inside, outside = new_cgroup(), new_cgroup()
    assert inside.connect(server) == "ok"
    async with house() as here:
        await here.know(identity(inside), identity(outside, labels={"app": "db"}))
        await here.apply(ksp("no-tcp", "network: {matchProtocols: [{protocol: tcp}]}, action: Block"))
        await here.enforced(inside)
        assert inside.connect(server) == "EPERM"
        assert inside.connect(server, "::1") == "EPERM"
        assert inside.connect(server, kind="udp") == "ok"
        assert outside.connect(server) == "ok"
        await here.delete(ksp("no-tcp", "action: Block"))
        await here.enforced()
        assert inside.connect(server) == "ok"


@pytest.mark.parametrize("action", ["Block", "Allow"])
async def test_who_has_no_terminal_is_free_of_a_rule_with_pts(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, server: int, action: str
) -> None:
    box = new_cgroup()
    calls = [
        ["connect", "127.0.0.1", server],
        ["on-terminal", "connect", "127.0.0.1", server],
        ["on-terminal", "socket", 2, 2],
    ]
    async with house() as here:
        await here.know(identity(box))
        await here.apply(
            ksp("no-shell", f"network: {{matchProtocols: [{{protocol: tcp, pts: false}}]}}, action: {action}")
        )
        await here.enforced(box)
        process = box.start(sys.executable, "-S", CALLS, json.dumps(calls), stdout=subprocess.PIPE)
        answers, _ = await asyncio.to_thread(process.communicate, timeout=90)
        assert json.loads(answers) == ["ok", "EPERM", "ok"]


async def test_a_source_decides_before_anybody(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, server: int
) -> None:
    box = new_cgroup()
    python = os.path.realpath(sys.executable)
    async with house() as here:
        await here.know(identity(box))
        rules = f"network: {{matchProtocols: [{{protocol: tcp, fromSource: [{{path: {python}}}]}}]}}, action: Block"
        await here.apply(ksp("not-python", rules))
        await here.enforced(box)
        assert box.connect(server) == "EPERM"
        other = rules.replace(python, "/usr/bin/curl")
        await here.apply(ksp("not-python", other))
        await here.until(lambda: here.agent.receipt.generation >= 2 and box.connect(server) == "ok")


async def test_a_whitelist_with_posture_block_denies_the_rest(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, server: int
) -> None:
    box = new_cgroup()
    async with house() as here:
        await here.know(identity(box, namespace_annotations={"kubearmor-network-posture": "block"}))
        await here.apply(ksp("only-udp", "network: {matchProtocols: [{protocol: udp}]}, action: Allow"))
        await here.enforced(box)
        assert box.connect(server) == "EPERM"
        assert box.connect(server, kind="udp") == "ok"


async def test_networks_and_ports_of_a_network_policy(house: Any, new_cgroup: Any, identity: Any, server: int) -> None:
    box = new_cgroup()
    host = identity(box, kind=Kind.HOST, labels={}, namespace="", node_labels={"kubernetes.io/hostname": "n1"})
    async with house(host_cgroups=("/hauberk-enforce-*",)) as here:
        await here.know(host)
        spec = f"egress: [{{to: [{{ipBlock: {{cidr: 127.0.0.0/8}}}}], ports: [{{protocol: TCP, port: {server}}}]}}], action: Block"
        await here.apply(NSP.format(spec=spec))
        await here.enforced(box)
        assert box.connect(server) == "EPERM"
        assert box.connect(server, "::ffff:127.0.0.1") == "EPERM"
        assert box.connect(server, "::1") == "ok"
        assert box.connect(server, "127.0.0.1", kind="udp") == "ok"
        assert box.connect(server ^ 1, "127.0.0.1") != "EPERM"


async def test_cgroups_inside_a_container_are_held_with_it_made_before_or_after(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, server: int
) -> None:
    box = new_cgroup()
    before = type(box)(box.path + "/before")
    after = None
    try:
        async with house() as here:
            await here.know(identity(box))
            await here.apply(ksp("no-tcp", "network: {matchProtocols: [{protocol: tcp}]}, action: Block"))
            await here.enforced(box)
            after = type(box)(box.path + "/after")
            assert before.connect(server) == "EPERM"
            assert after.connect(server) == "EPERM"
    finally:
        before.close()
        if after is not None:
            after.close()


async def test_a_container_that_ends_leaves_nothing(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, server: int, pin_dir: str
) -> None:
    box = new_cgroup()
    async with house() as here:
        await here.know(identity(box))
        await here.apply(ksp("no-tcp", "network: {matchProtocols: [{protocol: tcp}]}, action: Block"))
        await here.enforced(box)
        await here.know(identity(box, ended=1.0))
        await here.enforced()
        assert not [name for name in os.listdir(f"{pin_dir}/links") if name.startswith("guard-")]
        await asyncio.sleep(0)
        assert box.connect(server) == "ok"
