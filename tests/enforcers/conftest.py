# SPDX-License-Identifier: Apache-2.0
"""Cgroups the test made, processes inside them, programs pinned in a bpffs of the test's own. Nothing else is ever touched."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from bus.contract import Record
from bus.memory import MemoryBus
from enforcers.agent import Enforcement
from enforcers.apply import Applier
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.cgroup import cgroup2_mount
from enforcers.plan import Planner, PlanSettings
from enforcers.planner import PlannerEngine, PlannerSettings
from enforcers.registry import Usable
from enforcers.settings import EnforceSettings
from kernel.features import lsm_programs
from kernel.loading import LoadedPrograms, LoadSettings, load, mount_bpffs, unload, unmount
from kernel.maps import Map
from policy.documents import key, to_json
from policy.parse import parse
from policy.ruleset import PostureSettings, compile_ruleset
from schemas.backends import DEFAULTS, Implemented
from schemas.enforcement import Receipt, decode_plan
from schemas.errors import HauberkError
from schemas.identity import Identity, Kind
from schemas.identity import encode as encode_identity
from schemas.kernel import SCOPE, Config
from schemas.lsm import HookCount
from schemas.policy import PolicyDocument
from schemas.topics import ENFORCEMENT_DESIRED, INVENTORY, POLICIES

NODE = "n1"
CALLS = str(Path(__file__).parent / "calls.py")
KILLED = -9


@pytest.fixture(scope="session")
def loaded(bpffs_home: Callable[[str], str]) -> Iterator[LoadedPrograms]:
    """Programs loaded and pinned in a bpffs made for these tests."""
    if os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs")
    home = bpffs_home("enforcers")
    try:
        mount_bpffs(home)
        pins = f"{home}/pins"
        try:
            yield load(
                LoadSettings(occurrence_pages=256, definition_pages=256, new_visibility=("none",), timeout=900.0), pins
            )
        finally:
            unload(pins)
            unmount(home)
    except HauberkError as error:
        pytest.skip(f"needs BPF: {error}")


@pytest.fixture(scope="session")
def hooked(bpffs_home: Callable[[str], str]) -> Iterator[LoadedPrograms]:
    """The programs with the LSM hooks attached, in a bpffs of their own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: loads BPF programs")
    offered = lsm_programs()
    if not offered.available:
        pytest.skip(offered.why)
    # Calls at the kernel's functions beside the hooks: with `make test-vm`, for they take a guest a minute more.
    calls_by = "auto" if os.environ.get("HAUBERK_TEST_VM") == "all" else "tracepoint"
    settings = LoadSettings(
        occurrence_pages=256,
        definition_pages=256,
        new_visibility=("none",),
        hooks=True,
        timeout=900.0,
        calls_by=calls_by,
    )
    home = bpffs_home("lsm")
    try:
        mount_bpffs(home)
        try:
            made = load(settings, f"{home}/pins")
            assert made.refused == {}
            yield made
        finally:
            unload(f"{home}/pins")
    finally:
        unmount(home)


def unwatch(loaded: LoadedPrograms) -> None:
    """Nothing but what a plan asks for is reported."""
    with loaded.map("config") as config:
        for which in (Config.HOST_VISIBILITY, Config.NEW_VISIBILITY):
            config.put(struct.pack("=I", which), struct.pack("=Q", 0))
    with loaded.map("scopes") as scopes:
        scopes.clear()


@pytest.fixture
def pin_dir(loaded: LoadedPrograms) -> Iterator[str]:
    """The pins, with no enforcement before and none left after, and nothing watched."""
    unwatch(loaded)
    try:
        yield loaded.pin_dir
        assert [name for name in os.listdir(f"{loaded.pin_dir}/links") if name.startswith("guard-")] == []
        for name in ("rules", "net_rules"):
            with loaded.map(name) as one:
                assert list(one.keys()) == [], name
        with loaded.map("scopes") as scopes:
            assert [key for key, value in scopes.items() if SCOPE.struct.unpack(value)[0]] == []
    finally:
        unwatch(loaded)


class Cgroup:
    """A cgroup of the test's own. `run` starts a program in it and waits."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.full = cgroup2_mount() + path
        os.mkdir(self.full)
        self.id = os.stat(self.full).st_ino

    def start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        # The shell moves itself in, then becomes the program: the exec happens inside.
        return subprocess.Popen(
            ["/bin/sh", "-c", f'echo $$ > {self.full}/cgroup.procs && exec "$@"', "sh", *command], **options
        )

    def run(self, *command: str) -> int:
        """Exit status, or -signal."""
        process = self.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return process.wait(90)

    def connect(self, port: int, host: str = "127.0.0.1", kind: str = "tcp", program: str = sys.executable) -> str:
        """What a connect (udp: a send) from inside answers: `ok` or the errno's name."""
        family = "AF_INET6" if ":" in host else "AF_INET"
        body = {
            "tcp": f"s=socket.socket(socket.{family});s.settimeout(60);s.connect(({host!r},{port}))",
            "udp": f"s=socket.socket(socket.{family},socket.SOCK_DGRAM);s.sendto(b'x',({host!r},{port}))",
            "bind": f"s=socket.socket(socket.{family});s.bind(({host!r},{port}))",
        }[kind]
        code = (
            f"import socket,errno\ntry:\n {body}\n print('ok')\nexcept OSError as e:\n print(errno.errorcode[e.errno])"
        )
        process = self.start(program, "-S", "-c", code, stdout=subprocess.PIPE)
        out, _ = process.communicate(timeout=90)
        return out.decode().strip()

    def close(self) -> None:
        """End what runs in it and remove it with all below; who was just reaped may hold it for a moment."""
        deadline = time.monotonic() + 30
        while os.path.exists(self.full):
            try:
                for directory, _, _ in os.walk(self.full, topdown=False):
                    for pid in Path(directory, "cgroup.procs").read_text().split():
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(int(pid), 9)
                    os.rmdir(directory)
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


@pytest.fixture
def new_cgroup() -> Iterator[Callable[[], Cgroup]]:
    """Makes cgroups; removes them after."""
    if not cgroup2_mount() or os.geteuid() != 0:
        pytest.skip("needs root and cgroup v2: mount -t cgroup2 none /sys/fs/cgroup/unified")
    made: list[Cgroup] = []

    def new() -> Cgroup:
        made.append(Cgroup(f"/hauberk-enforce-{os.getpid()}-{len(made)}-{time.monotonic_ns()}"))
        return made[-1]

    yield new
    with contextlib.ExitStack() as stack:
        for one in made:
            stack.callback(one.close)


@pytest.fixture
def server() -> Iterator[int]:
    """Port of a TCP server on loopback (both families) that takes and closes connections."""
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
    stop = threading.Event()

    def serve() -> None:
        listener.settimeout(0.05)
        while not stop.is_set():
            try:
                listener.accept()[0].close()
            except TimeoutError:
                continue

    thread = threading.Thread(target=serve)
    thread.start()
    yield int(listener.getsockname()[1])
    stop.set()
    thread.join()
    listener.close()


def identity(cgroup: Any, **changes: Any) -> Identity:
    """A container that stands for the cgroup."""
    words: dict[str, Any] = {
        "kind": Kind.CONTAINER, "node": NODE, "uid": f"uid-{cgroup.id}", "cgroups": (cgroup.id,),
        "cgroup_path": cgroup.path, "container_name": "box", "namespace": "shop", "labels": {"app": "web"},
    }  # fmt: skip
    return Identity(**(words | changes))


def policies(text: str) -> list[PolicyDocument]:
    """Parsed; a mistake in a test's policy fails the test."""
    parsed = parse(text, "test.yaml")
    assert not [one for one in parsed.diagnostics if one.level == "error"], parsed.diagnostics
    return list(parsed.policies)


def ksp(name: str, spec: str, annotations: str = "{}") -> str:
    """A KubeArmorPolicy for `app: web` in `shop`. `spec`: flow-style YAML without the braces."""
    return (
        "---\napiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\n"
        f"metadata: {{name: {name}, namespace: shop, annotations: {annotations}}}\n"
        f"spec: {{selector: {{matchLabels: {{app: web}}}}, {spec}}}\n"
    )


class House:
    """Planner and enforcement on one bus, as `hauberk up` runs them."""

    def __init__(
        self, pin_dir: str, plan: PlanSettings, postures: PostureSettings, enforcement: EnforceSettings
    ) -> None:
        self.bus = MemoryBus()
        self.planner = PlannerEngine(self.bus, PlannerSettings(plan=plan, postures=postures))
        self.agent = Enforcement(self.bus, pin_dir, NODE, enforcement)

    async def know(self, *identities: Identity) -> None:
        await self.bus.publish(INVENTORY, [Record(one.key, encode_identity(one)) for one in identities])

    async def forget(self, *identities: Identity) -> None:
        await self.bus.publish(INVENTORY, [Record(one.key, None) for one in identities])

    async def apply(self, text: str) -> None:
        await self.bus.publish(POLICIES, [Record(key(one), to_json(one)) for one in policies(text)])

    async def delete(self, text: str) -> None:
        await self.bus.publish(POLICIES, [Record(key(one), None) for one in policies(text)])

    async def until(self, ask: Callable[[], Any], seconds: float = 60.0) -> Any:
        return await until(ask, seconds)

    async def settled(self) -> None:
        """Wait until what the planner published last is what the receipt speaks of: nothing moves but what a test moves."""

        def answered() -> bool:
            asked = self.bus.records(ENFORCEMENT_DESIRED)
            receipt = self.agent.receipt
            return bool(asked) and receipt is not None and receipt.generation == decode_plan(asked[-1].value).generation

        await self.until(answered)

    async def enforced(self, *cgroups: Any) -> None:
        """Wait until exactly these cgroups are under enforcement and old tables are gone."""
        want = {one.id for one in cgroups}
        await self.until(lambda: set(self.agent.applier.enforced) == want)
        await self.until(lambda: self.agent.receipt is not None and self.agent.receipt.scopes == len(want))


class Bench:
    """One cgroup under policies, held by the hooks alone."""

    def __init__(self, pin_dir: str, box: Any) -> None:
        self.pin_dir, self.box = pin_dir, box

    def hold(
        self,
        spec: str,
        *,
        host: str = "",
        mounts: bool = True,
        postures: PostureSettings | None = None,
        shadow: bool = False,
    ) -> Receipt:
        """Put the cgroup under `spec` of a KubeArmorPolicy, or of the network policy `host`."""
        text = (
            ksp("held", spec)
            if spec
            else (
                "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorNetworkPolicy\nmetadata: {name: peers}\n"
                f"spec: {{nodeSelector: {{matchLabels: {{kubernetes.io/hostname: {NODE}}}}}, {host}}}\n"
            )
        )
        words: dict[str, Any] = {}
        if host:
            words = {"kind": Kind.HOST, "labels": {}, "namespace": "", "node_labels": {"kubernetes.io/hostname": NODE}}
        ruleset = compile_ruleset(policies(text), postures or PostureSettings())
        plan = Planner(ruleset, PlanSettings(host_cgroups=(self.box.path,) if host else ())).plan(
            NODE, [identity(self.box, **words)], 1
        )
        hooks = LsmEnforcer(self.pin_dir, mounts=mounts, shadow=shadow)
        assert hooks.unusable() == ""
        applier = Applier(self.pin_dir, NODE, grace=0.0, chosen=Usable((hooks,), (), ()))
        receipt = applier.apply(plan)
        applier.sweep()
        applier.close()
        assert receipt.failed == (), receipt.failed
        return receipt

    def count(self, which: HookCount) -> int:
        """What the hooks counted since they were loaded."""
        with Map.open(f"{self.pin_dir}/maps/lsm_counts") as counts:
            return counts.sum_u64(struct.pack("=I", which))

    def calls(self, *calls: tuple[Any, ...], program: str = sys.executable) -> list[str]:
        """What each of `calls` came to inside."""
        process = self.box.start(
            program, "-S", CALLS, json.dumps(calls), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, said = process.communicate(timeout=300)
        assert process.returncode == 0, said.decode()
        return json.loads(out)

    def expect(self, *wanted: tuple[str, tuple[Any, ...]], program: str = sys.executable) -> None:
        """Every call with what it is to come to."""
        got = self.calls(*(call for _, call in wanted), program=program)
        assert [(one, call) for one, (_, call) in zip(got, wanted, strict=True)] == list(wanted)


@pytest.fixture
def bench(pin_dir: str, new_cgroup: Callable[[], Any]) -> Iterator[Bench]:
    yield Bench(pin_dir, new_cgroup())
    rest = Applier(pin_dir, NODE, ("bpf-lsm",), grace=0.0)
    rest.clear()
    rest.close()


@pytest.fixture
def backends() -> tuple[Implemented, ...]:
    """What the node of `house` uses; a module that tests another one says so."""
    return DEFAULTS


@pytest.fixture
def house(pin_dir: str, tmp_path: Path, backends: tuple[Implemented, ...]) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened(postures: PostureSettings | None = None, **settings: Any) -> AsyncIterator[House]:
        node = EnforceSettings(state_dir=str(tmp_path / "state"), grace_seconds=0.05, backends=backends)
        one = House(pin_dir, PlanSettings(**settings), postures or PostureSettings(), node)
        tasks = [asyncio.create_task(one.planner.run()), asyncio.create_task(one.agent.run())]
        try:
            await one.until(lambda: any(task.done() for task in tasks) or one.agent.ready.is_set())
            yield one
        finally:
            one.planner.stop()
            one.agent.stop()
            await asyncio.wait_for(asyncio.gather(*tasks), 60)
            rest = Applier(pin_dir, NODE, backends)
            rest.clear()
            rest.close()

    return opened


@pytest.fixture(name="unwatch")
def _unwatch() -> Callable[[LoadedPrograms], None]:
    return unwatch


@pytest.fixture(name="identity")
def _identity() -> Callable[..., Identity]:
    return identity


@pytest.fixture(name="ksp")
def _ksp() -> Callable[..., str]:
    return ksp


@pytest.fixture(name="policies")
def _policies() -> Callable[..., list[PolicyDocument]]:
    return policies
