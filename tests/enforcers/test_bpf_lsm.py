# SPDX-License-Identifier: Apache-2.0
"""The `bpf-lsm` backend on a kernel that asks LSM programs: a policy becomes EPERM before anything happens, inside only.

From the policy to the maps as `hauberk up` does it. On a kernel that asks none all of it is skipped with the reason; `make test-vm` runs it in guests.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enforcers.bpf_lsm import LsmEnforcer
from kernel.hooks import HOOKS
from kernel.loading import LoadedPrograms
from schemas.backends import DEFAULTS, Implemented
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.kernel import NET_KEY
from schemas.lsm import HookCount
from schemas.operations import Backend, Class
from schemas.verdict import Action, RuleRef

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def loaded(hooked: LoadedPrograms) -> LoadedPrograms:
    return hooked


@pytest.fixture
def backends() -> tuple[Implemented, ...]:
    """Asked for: a node does not use it by default."""
    return ("bpf-lsm", *DEFAULTS)


def count(loaded: LoadedPrograms, which: HookCount) -> int:
    with loaded.map("lsm_counts") as counts:
        return counts.sum_u64(struct.pack("=I", which))


def status(box: Any, *command: str) -> str:
    """What a shell in the cgroup says of a command: `ok`, or the message of its errno."""
    process = box.start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    _, said = process.communicate(timeout=90)
    return "ok" if process.returncode == 0 else said.decode().strip().rpartition(": ")[2]


DENIED = "Operation not permitted"


async def test_a_policy_denies_inside_and_nowhere_else(
    loaded: LoadedPrograms, house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path
) -> None:
    inside, outside = new_cgroup(), new_cgroup()
    for name in ("secret", "free", "flat/in", "flat/deep/in", "tree/deep/in", "tree/deep/open"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    tool = Path(shutil.copy("/bin/true", tmp_path / "tool"))
    script = tmp_path / "script"
    script.write_text(f"#!{tool}\n")
    script.chmod(0o755)
    cat = os.path.realpath("/bin/cat")
    rules = (
        f"file: {{matchPaths: [{{path: {tmp_path}/secret}}, {{path: {tmp_path}/tree/deep/open, action: Allow}}, "
        f"{{path: {tmp_path}/kept, fromSource: [{{path: {cat}}}]}}], "
        f"matchDirectories: [{{dir: {tmp_path}/flat/}}, {{dir: {tmp_path}/tree/, recursive: true}}]}}, "
        f"process: {{matchPaths: [{{path: {tool}}}]}}, action: Block"
    )
    (tmp_path / "kept").write_text("x")
    before = count(loaded, HookCount.DENIED)
    async with house() as here:
        await here.know(identity(inside), identity(outside, labels={"app": "db"}))
        await here.apply(ksp("held", rules))
        await here.enforced(inside)
        (mine,) = [one for one in here.agent.receipt.in_force if one.backend is Backend.BPF_LSM]
        assert (mine.problem, mine.scopes, mine.rules) == ("", 1, 6)
        assert here.agent.receipt.refused == here.agent.receipt.partial == ()
        for name, wanted in (
            ("secret", DENIED), ("free", "ok"), ("flat/in", DENIED), ("flat/deep/in", "ok"), ("tree/deep/in", DENIED),
            ("tree/deep/open", "ok"), ("kept", DENIED),
        ):  # fmt: skip
            assert status(inside, "cat", str(tmp_path / name)) == wanted, name
            assert status(outside, "cat", str(tmp_path / name)) == "ok", name
        assert status(inside, "dd", f"if={tmp_path}/kept", "status=none") == "ok"
        for command in (
            ("rm", f"{tmp_path}/secret"), ("mv", f"{tmp_path}/secret", f"{tmp_path}/moved"),
            ("mv", f"{tmp_path}/free", f"{tmp_path}/secret"), ("ln", f"{tmp_path}/secret", f"{tmp_path}/link"),
            ("chmod", "0", f"{tmp_path}/secret"), ("truncate", "-s", "0", f"{tmp_path}/secret"),
            ("mkdir", f"{tmp_path}/tree/new"), ("mv", f"{tmp_path}/tree/deep", f"{tmp_path}/elsewhere"),
        ):  # fmt: skip
            assert status(inside, *command) == DENIED, command
        assert (tmp_path / "secret").read_text() == "x"
        assert inside.run(str(tool)) == inside.run(str(script)) == 126
        assert outside.run(str(tool)) == outside.run(str(script)) == 0
        assert count(loaded, HookCount.DENIED) - before >= 14
        await here.until(lambda: here.agent.stats.lsm_denied >= count(loaded, HookCount.DENIED))
        assert (
            count(loaded, HookCount.NO_SCRATCH)
            == count(loaded, HookCount.CLAIM_LOST)
            == count(loaded, HookCount.NO_HEADER)
            == 0
        )
    assert status(inside, "cat", str(tmp_path / "secret")) == "ok"


async def test_a_posture_denies_what_nothing_allows(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path
) -> None:
    from policy.ruleset import PostureSettings

    box = new_cgroup()
    (tmp_path / "in").mkdir()
    for name in ("in/a", "out"):
        (tmp_path / name).write_text("x")
    async with house(PostureSettings(file="block")) as here:
        await here.know(identity(box))
        words = ", ".join(
            f"{{dir: {d}/, recursive: true}}" for d in (f"{tmp_path}/in", "/usr", "/etc", "/dev", "/proc", "/lib")
        )
        await here.apply(ksp("white", f"file: {{matchDirectories: [{words}]}}, action: Allow"))
        await here.enforced(box)
        assert status(box, "cat", f"{tmp_path}/in/a") == "ok"
        assert status(box, "cat", f"{tmp_path}/out") == DENIED


async def test_it_holds_on_while_nobody_runs(
    loaded: LoadedPrograms, house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path
) -> None:
    """The loader has ended, the agent is stopped: links and tables are pinned."""
    box = new_cgroup()
    (tmp_path / "secret").write_text("x")
    assert {f"lsm_{hook.name}" for hook in HOOKS if hook.needed} <= set(os.listdir(f"{loaded.pin_dir}/links"))
    async with house() as here:
        await here.know(identity(box))
        await here.apply(ksp("held", f"file: {{matchPaths: [{{path: {tmp_path}/secret}}]}}, action: Block"))
        await here.enforced(box)
        here.agent.stop()
        assert status(box, "cat", f"{tmp_path}/secret") == DENIED


async def test_swaps_under_a_hammer_let_nothing_through(
    house: Any, new_cgroup: Any, identity: Any, ksp: Any, tmp_path: Path
) -> None:
    """The policy changes beside the denied path again and again: each change is another table."""
    box = new_cgroup()
    (tmp_path / "secret").write_text("x")
    loop = f"while [ ! -e {tmp_path}/end ]; do if read -r word < {tmp_path}/secret; then echo passed; fi; done"
    async with house() as here:
        await here.know(identity(box))

        async def hold(more: int) -> None:
            paths = ", ".join(f"{{path: {tmp_path}/{name}}}" for name in ("secret", *map(str, range(more))))
            await here.apply(ksp("held", f"file: {{matchPaths: [{paths}]}}, action: Block"))
            await here.until(lambda: here.agent.receipt is not None and here.agent.receipt.rules == more + 1)

        await hold(1)
        await here.enforced(box)
        hammer = box.start("/bin/sh", "-c", loop, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            for number in range(2, 22):
                await hold(number)
        finally:
            (tmp_path / "end").touch()
        said, _ = hammer.communicate(timeout=90)
        assert said == b""


@pytest.mark.usefixtures("loaded")
def test_the_probe_finds_them_from_a_pid_namespace_too() -> None:
    """It asks as the process that it is in its own namespace."""
    code = "from kernel.features import lsm_programs; found = lsm_programs(); print(found.available, found.why)"
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert said.stdout.startswith("True"), (said.stdout, said.stderr)


def test_without_its_hooks_it_says_why(tmp_path: Path) -> None:
    why = LsmEnforcer(str(tmp_path)).unusable()
    assert "not attached" in why or "boot with lsm=" in why


@pytest.mark.parametrize("name", ["filelessExec", "anonymousMapExec", "protectEnv", "protectProc", "exec"])
def test_a_preset_that_allows_denies_nothing(name: str) -> None:
    """Presets stand beside the rules and never loosen them. A plan of an older version may have one."""
    cls = Class.FILE if name.startswith("protect") else Class.PROCESS
    preset = PathRule(cls=cls, match="preset", value=name, action=Action.ALLOW, ref=RuleRef("p"))
    part = LsmEnforcer("/nowhere").encode(ScopePlan(uid="u", cgroups=(7,), paths=(preset,)), len)
    assert (part.flags, dict(part.entries)) == (0, {})


def test_what_the_guards_leave_of_a_rule_on_sockets_it_holds() -> None:
    """Sockets of every family are asked about, and the port of one that listens without bind; not what a raw socket's packet says."""
    files, sockets, peers, ports = (
        RuleRef("p", "KubeArmorNetworkPolicy", "", where)
        for where in ("spec.file[0]", "spec.network[0]", "spec.egress[0]", "spec.ingress[0]")
    )
    sockets = msgspec.structs.replace(sockets, kind="KubeArmorPolicy")
    scope = ScopePlan(
        uid="u", cgroups=(7,),
        paths=(PathRule(cls=Class.FILE, match="path", value="/a", action=Action.BLOCK, ref=files),),
        network=(
            NetworkRule(protocol="raw", action=Action.BLOCK, ref=sockets, direction="ingress"),
            NetworkRule(protocol="tcp", cidr="10.0.0.0/8", action=Action.BLOCK, ref=peers),
            NetworkRule(protocol="tcp", port=80, end_port=80, direction="ingress", action=Action.BLOCK, ref=ports),
        ),
    )  # fmt: skip
    part = LsmEnforcer("/nowhere").encode(scope, len)
    assert (part.rules, part.carried, part.refused) == (4, {files, sockets, ports}, ())
    families = {NET_KEY.struct.unpack(key)[3] for key, _ in part.entries["net_rules"]}
    assert families == {socket.AF_INET, socket.AF_INET6, 0}
