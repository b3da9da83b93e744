# SPDX-License-Identifier: Apache-2.0
"""The judge and the kernel, fuzzed against each other: random policies, real calls, one answer from both."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enforcers.apply import Applier
from enforcers.plan import Planner, PlanSettings
from policy.ruleset import compile_ruleset
from schemas.behaviour import Behaviour
from schemas.identity import Kind
from schemas.operations import Access, Operation
from schemas.verdict import Action

pytestmark = pytest.mark.kernel

NODE = "n1"
PROGRAMS = ("a/x", "a/w", "a/b/x", "a/b/c/x", "a/b/c/z", "d/x", "d/w", "top")


@pytest.fixture
def applier(pin_dir: str) -> Any:
    one = Applier(pin_dir, NODE, grace=0.0)
    yield one
    one.clear()
    one.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in PROGRAMS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy("/bin/true", tmp_path / name)
    return tmp_path


def random_rules(rng: random.Random, tree: Path, sources: list[str]) -> str:
    parts: dict[str, list[str]] = {"matchPaths": [], "matchDirectories": []}
    for _ in range(rng.randint(1, 6)):
        action = rng.choice(("Allow", "Block", "Block"))
        source = f", fromSource: [{{path: {rng.choice(sources)}}}]" if rng.random() < 0.3 else ""
        how = rng.choice(("path", "name", "dir", "recursive"))
        if how == "path":
            parts["matchPaths"].append(f"{{path: {tree / rng.choice(PROGRAMS)}, action: {action}{source}}}")
        elif how == "name":
            parts["matchPaths"].append(f"{{execname: {rng.choice(('x', 'w', 'z', 'top'))}, action: {action}{source}}}")
        else:
            directory = tree / rng.choice((".", "a", "a/b", "a/b/c", "d"))
            recursive = ", recursive: true" if how == "recursive" else ""
            parts["matchDirectories"].append(f"{{dir: {directory}/{recursive}, action: {action}{source}}}")
    return ", ".join(f"{name}: [{', '.join(rules)}]" for name, rules in parts.items() if rules)


@pytest.mark.parametrize("seed", range(25))
def test_an_exec_is_killed_exactly_where_the_judge_blocks(
    applier: Applier, new_cgroup: Any, identity: Any, policies: Any, ksp: Any, tree: Path, seed: int
) -> None:
    rng = random.Random(seed)
    box = new_cgroup()
    parent = os.path.realpath("/bin/sh")
    who = identity(box)
    spec = f"process: {{{random_rules(rng, tree, [parent, '/usr/bin/other'])}}}, action: Block"
    ruleset = compile_ruleset(policies(ksp("random", spec, "{hauberk.io/signal: enabled}")))
    plan = Planner(ruleset).plan(NODE, [who], 1)
    receipt = applier.apply(plan)
    assert receipt.failed == ()
    assert plan.refused == receipt.refused == (), spec
    scope = ruleset.scope(who)
    script = "; ".join(f"{tree / name}; echo $?" for name in PROGRAMS)
    process = box.start("/bin/sh", "-c", script, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    answers = process.communicate(timeout=90)[0].split()
    told = {}
    for name, answer in zip(PROGRAMS, answers, strict=True):
        behaviour = Behaviour(
            operation=Operation.EXEC, access=Access.EXEC, cgroup=box.id, executable=parent, parent=parent,
            resource=str(tree / name),
        )  # fmt: skip
        blocked = scope.judge(behaviour).action is Action.BLOCK
        told[name] = (blocked, int(answer) == 137)
    assert all(judge == kernel for judge, kernel in told.values()), (spec, told)


FILES = ("e/passwd", "e/x.d/a", "e/x.d/b", "e/x.d/deep/c", "v/log")


@pytest.mark.parametrize("seed", range(15))
def test_an_open_kills_exactly_where_the_judge_blocks(
    applier: Applier, new_cgroup: Any, identity: Any, policies: Any, ksp: Any, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    box = new_cgroup()
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
        if rng.random() < 0.5:
            os.chown(tmp_path / name, 12345, 12345)
    cat, tee = os.path.realpath("/bin/cat"), os.path.realpath("/usr/bin/tee")
    parts: dict[str, list[str]] = {"matchPaths": [], "matchDirectories": []}
    for _ in range(rng.randint(1, 5)):
        words = f"action: {rng.choice(('Allow', 'Block', 'Block'))}"
        words += ", readOnly: true" * (rng.random() < 0.3) + ", ownerOnly: true" * (rng.random() < 0.3)
        words += f", fromSource: [{{path: {rng.choice((cat, tee))}}}]" * (rng.random() < 0.3)
        if rng.random() < 0.5:
            parts["matchPaths"].append(f"{{path: {tmp_path / rng.choice(FILES)}, {words}}}")
        else:
            deep = ", recursive: true" * (rng.random() < 0.5)
            parts["matchDirectories"].append(
                f"{{dir: {tmp_path / rng.choice(('e', 'e/x.d', 'v', '.'))}/{deep}, {words}}}"
            )
    rules = ", ".join(f"{name}: [{', '.join(found)}]" for name, found in parts.items() if found)
    who = identity(box)
    ruleset = compile_ruleset(
        policies(ksp("random", f"file: {{{rules}}}, action: Block", "{hauberk.io/signal: enabled}"))
    )
    plan = Planner(ruleset).plan(NODE, [who], 1)
    assert applier.apply(plan).failed == ()
    scope = ruleset.scope(who)
    calls = [(program, name) for name in FILES for program in (cat, tee)]
    script = "; ".join(f"{program} {tmp_path / name} </dev/null; echo $? >&2" for program, name in calls)
    process = box.start("/bin/sh", "-c", script, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    answers = [line for line in process.communicate(timeout=90)[1].split() if line.isdigit()]
    told = {}
    for (program, name), answer in zip(calls, answers, strict=True):
        write = Access.WRITE | Access.CREATE | Access.TRUNCATE
        behaviour = Behaviour(
            operation=Operation.OPEN, access=Access.READ if program == cat else write, cgroup=box.id, executable=program,
            parent="/bin/sh", resource=str(tmp_path / name), uid=0, owner=os.stat(tmp_path / name).st_uid,
        )  # fmt: skip
        blocked = scope.judge(behaviour).action is Action.BLOCK
        told[program, name] = (blocked, int(answer) == 137)
    assert all(judge == kernel for judge, kernel in told.values()), (rules, told)


CALLS = """
import errno, json, socket, sys
answers = []
for kind, host, port in json.loads(sys.argv[1]):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM) as s:
            s.setblocking(False)
            s.connect((host, port))
        answers.append("ok")
    except OSError as error:
        answers.append(errno.errorcode[error.errno])
print(json.dumps(answers))
"""
HOSTS = ("127.0.0.1", "127.1.0.1", "127.1.2.3", "::1", "::ffff:127.1.2.3")
NETWORKS = ("127.0.0.0/8", "127.1.0.0/16", "127.1.2.3/32", "0.0.0.0/0", "::/0", "::1/128")


@pytest.mark.parametrize("seed", range(25))
def test_a_connect_is_denied_exactly_where_the_judge_blocks(
    applier: Applier, new_cgroup: Any, identity: Any, policies: Any, seed: int
) -> None:
    rng = random.Random(seed)
    box = new_cgroup()
    ports = rng.sample(range(20000, 30000), 3)
    entries = []
    for _ in range(rng.randint(1, 6)):
        to = f"to: [{{ipBlock: {{cidr: '{rng.choice(NETWORKS)}'}}}}], " if rng.random() < 0.8 else ""
        number = f"port: {rng.choice(ports)}, " if rng.random() < 0.6 else "port: 1, endPort: 65535, "
        protocol = rng.choice(("TCP", "UDP"))
        entries.append(
            f"{{{to}ports: [{{{number}protocol: {protocol}}}], action: {rng.choice(('Allow', 'Block', 'Block'))}}}"
        )
    text = (
        "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorNetworkPolicy\nmetadata: {name: peers}\n"
        "spec: {nodeSelector: {matchLabels: {kubernetes.io/hostname: n1}}, "
        f"egress: [{', '.join(entries)}], action: Block}}\n"
    )
    ruleset = compile_ruleset(policies(text))
    words = {"kind": Kind.HOST, "labels": {}, "namespace": "", "node_labels": {"kubernetes.io/hostname": "n1"}}
    who = identity(box, **words)
    plan = Planner(ruleset, PlanSettings(host_cgroups=(box.path,))).plan(NODE, [who], 1)
    applier.apply(plan)
    calls = [(kind, host, port) for kind in ("tcp", "udp") for host in HOSTS for port in ports]
    process = box.start(sys.executable, "-S", "-c", CALLS, json.dumps(calls), stdout=subprocess.PIPE)
    answers = json.loads(process.communicate(timeout=90)[0])
    scope = ruleset.scope(who)
    for (kind, host, port), answer in zip(calls, answers, strict=True):
        behaviour = Behaviour(
            operation=Operation.CONNECT, cgroup=box.id, executable=sys.executable, family=10 if ":" in host else 2,
            socket_type=2 if kind == "udp" else 1, protocol=17 if kind == "udp" else 6, address=host, port=port,
        )  # fmt: skip
        blocked = scope.judge(behaviour).action is Action.BLOCK
        assert blocked == (answer == "EPERM"), (text, kind, host, port, answer)
