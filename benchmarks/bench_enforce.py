# SPDX-License-Identifier: Apache-2.0
"""Enforcement: from a policy published to the kernel's maps, and what 10,000 rules cost to push.

Needs root, BPF and cgroup v2; says what is missing and returns nothing where one of them is. Acts on cgroups of its own.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import msgspec
from own_pins import own_pins

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from enforcers.agent import Enforcement
from enforcers.apply import Applier
from enforcers.cgroup import cgroup2_mount
from enforcers.plan import Planner
from enforcers.planner import PlannerEngine
from enforcers.settings import EnforceSettings
from kernel.loading import LoadSettings, load
from policy.documents import key, to_json
from policy.parse import parse
from policy.ruleset import compile_ruleset
from schemas.errors import HauberkError
from schemas.identity import Identity, Kind
from schemas.identity import encode as encode_identity
from schemas.topics import INVENTORY, POLICIES

Result = dict[str, dict[str, Any]]
NODE = "bench"


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about half a minute."""
    if os.geteuid() != 0 or not cgroup2_mount():
        print("bench_enforce: needs root and cgroup v2", file=sys.stderr)
        return {}
    settings = LoadSettings(occurrence_pages=256, definition_pages=256, new_visibility=("none",))
    try:
        with own_pins() as pins, tempfile.TemporaryDirectory() as directory:
            loaded = load(settings, pins)
            return (
                asyncio.run(_latency(loaded.pin_dir, directory, max(5, int(300 * scale))))
                | _push(loaded.pin_dir, max(50, int(10_000 * min(1.0, scale * 10))))
                | _sockets(loaded.pin_dir, max(200, int(20_000 * scale)))
                | _lookups(loaded.pin_dir, max(200, int(20_000 * scale)))
            )  # fmt: skip
    except HauberkError as error:
        print(f"bench_enforce: {error}", file=sys.stderr)
        return {}


class _Box:
    """A cgroup that stands for a container."""

    def __init__(self, number: int = 0, app: str = "web") -> None:
        self._app = app
        self.path = f"/hauberk-bench-{os.getpid()}-{number}"
        self.full = cgroup2_mount() + self.path
        os.mkdir(self.full)
        self.id = os.stat(self.full).st_ino

    def __enter__(self) -> _Box:
        return self

    def __exit__(self, *_: object) -> None:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            try:
                os.rmdir(self.full)
                return
            except OSError:
                time.sleep(0.01)

    @property
    def identity(self) -> Identity:
        return Identity(
            kind=Kind.CONTAINER, node=NODE, uid=f"uid-{self.id}", cgroups=(self.id,), cgroup_path=self.path,
            namespace="shop", container_name="box", labels={"app": self._app},
        )  # fmt: skip


def _policy(spec: str, name: str = "bench", app: str = "web") -> Any:
    text = (
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\n"
        f"metadata: {{name: {name}, namespace: shop, annotations: {{hauberk.io/signal: enabled}}}}\n"
        f"spec: {{selector: {{matchLabels: {{app: {app}}}}}, {spec}}}\n"
    )
    return parse(text, "bench").policies[0]


async def _latency(pin_dir: str, directory: str, count: int) -> Result:
    """Publish a policy, then watch the kernel's map until the scope has another table."""
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=directory))
    planner, agent = PlannerEngine(bus), Enforcement(bus, pin_dir, NODE, EnforceSettings(state_dir=directory))
    tasks = [asyncio.create_task(planner.run()), asyncio.create_task(agent.run())]
    took: list[float] = []
    with _Box() as box:
        await bus.publish(INVENTORY, [Record(box.identity.key, encode_identity(box.identity))])
        await asyncio.wait_for(asyncio.gather(planner.ready.wait(), agent.ready.wait()), 20)
        watcher = Applier(pin_dir, NODE)
        last = None
        for number in range(count):
            spec = f"process: {{matchPaths: [{{path: /opt/tool-{number}}}]}}, action: Block"
            document = _policy(spec)
            started = time.perf_counter()
            await bus.publish(POLICIES, [Record(key(document), to_json(document))])
            while True:
                now = watcher.enforced.get(box.id)
                if now != last:
                    break
                await asyncio.sleep(0.0005)
            took.append((time.perf_counter() - started) * 1000)
            last = now
        watcher.close()
        planner.stop()
        agent.stop()
        await asyncio.gather(*tasks)
        rest = Applier(pin_dir, NODE)
        rest.clear()
        rest.close()
    await bus.close()
    took.sort()
    how = "embedded bus, planner and agent in one process; publish of one changed policy to the scope's new table in the map"
    return {
        "policy_to_kernel_p50": _figure(statistics.median(took), "ms", count, how),
        "policy_to_kernel_p99": _figure(took[min(len(took) - 1, int(len(took) * 0.99))], "ms", count, how),
    }


def _push(pin_dir: str, count: int) -> Result:
    paths = ", ".join(f"{{path: /opt/application/bin/tool-{n}}}" for n in range(count))
    started = time.perf_counter()
    ruleset = compile_ruleset([_policy(f"process: {{matchPaths: [{paths}]}}, action: Block")])
    compiled = time.perf_counter() - started
    with _Box() as box:
        started = time.perf_counter()
        plan = Planner(ruleset).plan(NODE, [box.identity], 1)
        planned = time.perf_counter() - started
        applier = Applier(pin_dir, NODE)
        started = time.perf_counter()
        receipt = applier.apply(plan)
        pushed = time.perf_counter() - started
        started = time.perf_counter()
        applier.apply(msgspec.structs.replace(plan, generation=2))
        unchanged = time.perf_counter() - started
        applier.clear()
        applier.close()
    assert receipt.rules == count, receipt
    how = f"{count} path rules of one policy for one container"
    return {
        "enforce_push_rules": _figure(pushed * 1000, "ms", count, f"{how}: encode, hash, fill, switch"),
        "enforce_push_unchanged": _figure(unchanged * 1000, "ms", count, f"{how}: the same plan again, no map writes"),
        "enforce_plan_rules": _figure(planned * 1000, "ms", count, f"{how}: ruleset to plan"),
        "enforce_compile_rules": _figure(compiled * 1000, "ms", count, f"{how}: documents to ruleset"),
    }


OPENS = """
import os, sys, time
path, count = sys.argv[1], int(sys.argv[2])
for turns in (200, count):
    started = time.perf_counter()
    for _ in range(turns):
        os.close(os.open(path, 0))
    took = time.perf_counter() - started
print(took / count * 1e9)
"""
ROUNDS = 15
"""Of measurements in turn, each with a process of its own, so that a machine that grows slower does so for both."""


def _measured(box: _Box, program: str, *words: str) -> list[float]:
    """What `program`, run in the cgroup, printed."""
    shell = ["/bin/sh", "-c", f'echo $$ > {box.full}/cgroup.procs && exec "$@"', "sh", sys.executable, "-S", "-c"]
    done = subprocess.run([*shell, program, *words], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def _lookups(pin_dir: str, count: int) -> Result:
    """open() of one file in a container under 10 file rules and in one under 10,000."""
    with _Box(10, "few") as few, _Box(10_000, "many") as many:
        policies = []
        for rules, app in ((10, "few"), (10_000, "many")):
            paths = ", ".join(f"{{path: /opt/application/etc/file-{n}}}" for n in range(rules))
            policies.append(_policy(f"file: {{matchPaths: [{paths}]}}, action: Block", app, app))
        applier = Applier(pin_dir, NODE)
        applier.apply(Planner(compile_ruleset(policies)).plan(NODE, [few.identity, many.identity], 1))
        asked = (OPENS, "/etc/hostname", str(count))
        rounds = [(_measured(few, *asked)[0], _measured(many, *asked)[0]) for _ in range(ROUNDS)]
        applier.clear()
        applier.close()
    how = f"open+close of /etc/hostname in a watched cgroup under the signal backend, median of {ROUNDS}"
    ratio = statistics.median(many / few for few, many in rounds)
    return {
        "enforce_open_10_rules": _figure(statistics.median(few for few, _ in rounds), "ns", count, how),
        "enforce_open_10000_rules": _figure(statistics.median(many for _, many in rounds), "ns", count, how),
        "enforce_open_rules_ratio": _figure(ratio, "x", count, f"10,000 rules against 10, median of {ROUNDS} pairs"),
    }


SOCKETS = """
import socket, sys, time
count = int(sys.argv[1])
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
t = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
peer, other = ("127.0.0.1", 9), ("127.0.0.1", 10)
for call in (lambda: s.connect(peer), lambda: t.sendto(b"x", other)):
    for turns in (200, count):
        began = time.perf_counter_ns()
        for _ in range(turns):
            call()
    print((time.perf_counter_ns() - began) / count)
"""


def _sockets(pin_dir: str, count: int) -> Result:
    """What guards that let them pass add to a connect and a send of datagrams, telling included."""
    spec = "network: {matchProtocols: [{protocol: sctp}]}, action: Block"
    with _Box(0) as free, _Box(1) as guarded:
        applier = Applier(pin_dir, NODE)
        applier.apply(Planner(compile_ruleset([_policy(spec)])).plan(NODE, [guarded.identity], 1))
        asked = (SOCKETS, str(count))
        rounds = [(_measured(free, *asked), _measured(guarded, *asked)) for _ in range(ROUNDS)]
        applier.clear()
        applier.close()
    found: Result = {}
    for at, (name, call) in enumerate((("connect", "connect"), ("send", "sendto"))):
        without = statistics.median(free[at] for free, _ in rounds)
        added = statistics.median(guarded[at] - free[at] for free, guarded in rounds)
        how = f"watched and guarded {call} of UDP minus one in a cgroup that is neither ({without:.0f} ns), median of {ROUNDS} pairs"
        found[f"enforce_{name}"] = _figure(added, "ns", count, how)
    return found


def _figure(value: float, unit: str, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 3), "unit": unit, "n": n, "how": how}
