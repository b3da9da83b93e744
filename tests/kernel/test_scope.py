# SPDX-License-Identifier: Apache-2.0
"""What is watched: visibility per cgroup and class, cgroups made inside containers, excluded processes, full rings."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.generation import renew
from kernel.loading import LoadSettings, exclude, load, unload
from kernel.siphash import string_id
from schemas.errors import KernelError
from schemas.kernel import (
    BUDGET,
    RULE,
    RULE_KEY,
    SCOPE,
    Config,
    DefinitionKind,
    Loss,
    RuleAction,
    RuleKind,
    ScopeFlag,
)  # fmt: skip
from schemas.operations import Class, Operation

pytestmark = pytest.mark.kernel
Pick = Callable[..., Any]


def act() -> None:
    """One file and one identity operation."""
    os.open("/etc/hosts", os.O_RDONLY)
    os.setgid(0)


def test_classes_are_switched_one_by_one(sensor: Any) -> None:
    sensor.scope(visibility=1 << Class.SYSCALL)
    assert [event.operation for event in sensor.run(act)] == [Operation.SETGID]
    sensor.scope(visibility=1 << Class.FILE)
    assert {event.operation for event in sensor.run(act)} == {Operation.OPEN}
    sensor.scope(visibility=0)
    assert sensor.run(act) == []


def test_what_was_forked_unseen_is_known_once_seen(sensor: Any) -> None:
    sensor.scope(visibility=0)

    def late() -> None:
        sensor.scope(visibility=1 << Class.FILE)
        os.open("/etc/hosts", os.O_RDONLY)

    (event,) = [event for event in sensor.run(late) if event.resource == "/etc/hosts"]
    assert event.executable == os.path.realpath("/proc/self/exe")
    assert event.pid == sensor.pid


def test_excluded_processes_are_silent_and_their_children_are_not(sensor: Any) -> None:
    def hidden() -> None:
        exclude(sensor.loaded, os.getpid())
        os.open("/etc/hosts", os.O_RDONLY)
        child = os.fork()
        if not child:
            os.open("/etc/passwd", os.O_RDONLY)
            os._exit(0)
        os.waitpid(child, 0)

    events = sensor.run(hidden)
    with sensor.map("excluded") as table:
        assert table.get(struct.pack("=I", sensor.pid)) is None, (
            "the pid of a process that ended is somebody else's soon"
        )
    opened = {event.resource for event in events if event.operation is Operation.OPEN}
    assert "/etc/passwd" in opened
    assert "/etc/hosts" not in opened


def test_a_new_cgroup_is_announced_and_forgotten(sensor: Any) -> None:
    made = sensor.cgroup / "pod"
    made.mkdir()
    ident = made.stat().st_ino
    made.rmdir()
    sensor.seen()
    told = [(kind, body.decode()) for kind, number, body in sensor.cgroups if number == ident]
    assert told[0][0] is DefinitionKind.CGROUP
    assert told[0][1].endswith(f"/{sensor.cgroup.name}/pod")
    assert told[1] == (DefinitionKind.CGROUP_GONE, "")


def inside(cgroup: Path, action: Callable[[], object]) -> Callable[[], object]:
    """`action` after a move to `cgroup`."""

    def run() -> None:
        (cgroup / "cgroup.procs").write_text("0")
        action()

    return run


def test_a_cgroup_made_inside_a_container_shares_its_scope(sensor: Any, rules: Any, tmp_path: Path) -> None:
    """It has none of its own, so there is nothing that could be full or late; also when it was there before the scope."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    with sensor.map("scopes") as scopes:
        scopes.delete(struct.pack("=Q", sensor.cgroup_id))
    before = sensor.cgroup / "before"
    before.mkdir()
    # The kernel remembers that nobody above has a scope, until one is written.
    sensor.run(inside(before, lambda: os.open(secret, os.O_RDONLY)))
    rules((Class.FILE, RuleKind.EXACT, str(secret), RuleAction.BLOCK))
    with sensor.map("config") as config:
        renew(config)
    inner = sensor.cgroup / "inner"
    deeper = inner
    for _ in range(3):
        deeper = deeper / "deeper"
    deeper.mkdir(parents=True)
    for path in (before, inner, deeper):
        with sensor.map("scopes") as scopes:
            assert scopes.get(struct.pack("=Q", path.stat().st_ino)) is None
        for _ in range(2):  # asked, remembered
            sensor.run(inside(path, lambda: os.open(secret, os.O_RDONLY)), status=9)


def test_the_nearest_scope_counts(sensor: Any, rules: Any, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    rules((Class.FILE, RuleKind.EXACT, str(secret), RuleAction.BLOCK))
    inner = sensor.cgroup / "inner"
    (inner / "deeper").mkdir(parents=True)
    with sensor.map("scopes") as scopes, sensor.map("config") as config:
        scopes.put(struct.pack("=Q", inner.stat().st_ino), SCOPE.struct.pack(0, 0, ScopeFlag.CONTAINER, 0))
        renew(config)
    sensor.run(inside(inner / "deeper", lambda: os.open(secret, os.O_RDONLY)))
    sensor.run(inside(sensor.cgroup, lambda: os.open(secret, os.O_RDONLY)), status=9)


@pytest.mark.timeout(900)
def test_full_maps_lift_no_rule(bpffs: str, cgroup: Path, sensor: Any, rules: Any, tmp_path: Path) -> None:
    """A container that makes many cgroups and processes: the rules hold in all of them, and for everybody else."""
    pins = f"{bpffs}/full"
    small = load(LoadSettings(new_visibility=("none",), scopes=4, processes=16, timeout=900.0), pins)
    try:
        tight = type(sensor)(small, cgroup)
        secret, table = tmp_path / "secret", 77
        secret.write_text("x")
        python = os.path.realpath("/proc/self/exe")
        true = os.path.realpath(shutil.which("true") or "/bin/true")
        with small.map("rules") as rules_map:
            for class_, path, source in (
                (Class.FILE, str(secret), python), (Class.PROCESS, true, python), (Class.PROCESS, true, ""),
            ):  # fmt: skip
                ids = [string_id(small.key, text) if text else 0 for text in (path, source)]
                rules_map.put(
                    RULE_KEY.struct.pack(table, *ids, class_, RuleKind.EXACT),
                    RULE.struct.pack(RuleAction.BLOCK, 0, 7, 0),
                )
        tight.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL, table=table)
        with small.map("scopes") as scopes, small.map("config") as config:
            with contextlib.suppress(KernelError):
                for number in range(1, 99):
                    scopes.put(struct.pack("=Q", 1 << 40 | number), SCOPE.struct.pack(0, 0, ScopeFlag.CONTAINER, 0))
            assert number < 98, "the map is not full"
            renew(config)
        children = [cgroup / f"child-{number}" for number in range(20)]
        for child in children:
            child.mkdir()

        def crowd() -> None:
            # More processes than the map holds, each of them at work: whoever acts next is not in it.
            pids = []
            for _ in range(64):
                pids.append(os.fork())
                if not pids[-1]:
                    os.close(os.open("/etc/hosts", os.O_RDONLY))
                    os._exit(0)
            for pid in pids:
                os.waitpid(pid, 0)

        def attempt(child: Path, act: Callable[[], object]) -> None:
            pid = os.fork()
            if not pid:
                (child / "cgroup.procs").write_text("0")
                crowd()
                with small.map("processes") as processes:
                    processes.delete(struct.pack("=I", os.getpid()))
                act()
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 9, child

        for child in (cgroup, *children):
            attempt(child, lambda: os.open(secret, os.O_RDONLY))
            attempt(child, lambda: os.execv(true, [true]))
        tight.close()
    finally:
        unload(pins)


def test_a_new_cgroup_is_watched_before_anybody_claims_it(sensor: Any, cgroup: Path) -> None:
    key = struct.pack("=I", Config.NEW_VISIBILITY)
    sensor.scope(flags=ScopeFlag(0))
    made = cgroup / "fresh"
    with sensor.map("config") as config:
        config.put(key, struct.pack("=Q", 1 << Class.FILE))
        made.mkdir()
        config.put(key, struct.pack("=Q", 0))
    with sensor.map("scopes") as scopes:
        record = scopes.get(struct.pack("=Q", made.stat().st_ino))
        assert SCOPE.struct.unpack(record) == (0, 0, ScopeFlag.FRESH, 1 << Class.FILE)
        ident = struct.pack("=Q", made.stat().st_ino)
        made.rmdir()
        assert scopes.get(ident) is None


def test_rules_reach_cgroups_that_were_made_before_their_container_was_claimed(
    sensor: Any, cgroup: Path, tmp_path: Path
) -> None:
    """Made while nobody had claimed the one above: they have scopes of their own, which name no table."""
    key, table = struct.pack("=I", Config.NEW_VISIBILITY), 78
    secret = tmp_path / "secret"
    secret.write_text("x")
    inner = cgroup / "inner" / "deeper"
    with sensor.map("scopes") as scopes, sensor.map("config") as config, sensor.map("rules") as rules:
        scopes.delete(struct.pack("=Q", sensor.cgroup_id))
        config.put(key, struct.pack("=Q", 1 << Class.FILE))
        inner.mkdir(parents=True)
        config.put(key, struct.pack("=Q", 0))
        for one in (inner, inner.parent):
            assert SCOPE.struct.unpack(scopes.get(struct.pack("=Q", one.stat().st_ino)))[2] == ScopeFlag.FRESH

        def opened() -> int:
            pid = os.fork()
            if not pid:
                (inner / "cgroup.procs").write_text("0")
                os.open(secret, os.O_RDONLY)
                os._exit(0)
            return os.waitpid(pid, 0)[1]

        assert opened() == 0
        rule = RULE_KEY.struct.pack(table, string_id(sensor.key, str(secret)), 0, Class.FILE, RuleKind.EXACT)
        rules.put(rule, RULE.struct.pack(RuleAction.BLOCK, 0, 7, 0))
        sensor.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL, table=table)
        renew(config)
        try:
            assert opened() == 9
        finally:
            rules.delete(rule)
            inner.rmdir()
            inner.parent.rmdir()


def at_rest(tight: Any, action: Callable[[], object]) -> list[Any]:
    """What `action` shows while nobody else fills the page of definitions: every exec of the machine is announced there."""
    deadline = time.monotonic() + 60
    while True:
        tight.occurrences.take()
        for record in tight.definitions.take():
            tight._define(record)
        with tight.map("processes") as table:
            table.clear()
        full = tight.lost(Loss.DEFINITIONS_FULL)
        try:
            return list(tight.run(action))
        except (AssertionError, KeyError):
            if tight.lost(Loss.DEFINITIONS_FULL) == full or time.monotonic() > deadline:
                raise


def test_full_rings_are_counted_and_ids_announced_again(bpffs: str, cgroup: Path, sensor: Any) -> None:
    pins = f"{bpffs}/small"
    small = load(LoadSettings(new_visibility=("none",), occurrence_pages=1, definition_pages=1, timeout=900.0), pins)
    try:
        tight = type(sensor)(small, cgroup)

        def flood() -> None:
            for number in range(400):
                os.close(os.open(cgroup / "cgroup.procs", os.O_RDONLY | (number % 2) * os.O_CLOEXEC))
                Path(f"/nonexistent/{number:060}").exists()
                with pytest.raises(FileNotFoundError):
                    os.open(f"/nonexistent/{number:060}", os.O_RDONLY)

        tight.occurrences.take()
        pid = os.fork()
        if not pid:
            try:
                (cgroup / "cgroup.procs").write_text("0")
                flood()
                os._exit(0)
            finally:
                os._exit(99)
        assert os.waitpid(pid, 0)[1] == 0
        lost = tight.lost(Loss.OCCURRENCES_FULL)
        assert lost > 100
        with tight.map("budgets") as budgets:
            own = struct.unpack_from(
                "=3Q", budgets.get(struct.pack("=Q", cgroup.stat().st_ino)), BUDGET.offsets["lost"]
            )
        # All of the container's, and told as its own.
        assert own == (lost, 0, 0)
        events = at_rest(tight, lambda: os.open(cgroup / "cgroup.procs", os.O_RDONLY))
        assert [event.resource for event in events if event.resource.endswith("cgroup.procs")]
        tight.close()
    finally:
        unload(pins)


def test_what_is_forgotten_is_said_again_and_what_is_remembered_ends_with_its_generation(
    sensor: Any, pick: Any, tmp_path: Path
) -> None:
    path = tmp_path / "again"
    path.touch()

    def thrice() -> None:
        for _ in range(3):  # announced, found, remembered
            os.close(os.open(path, os.O_RDONLY))

    events = [event for event in sensor.run(thrice) if event.resource == str(path)]
    assert len({event.id for event in events}) == 1
    text = next(ident for ident, body in sensor.texts.items() if body == str(path).encode())
    del sensor.texts[text]
    del sensor.behaviours[events[0].id]
    with sensor.map("strings") as strings, sensor.map("behaviours") as behaviours, sensor.map("config") as config:
        strings.delete_many([struct.pack("=Q", text)])
        behaviours.delete_many([struct.pack("=Q", events[0].id)])
        renew(config)
    assert [event.id for event in sensor.run(thrice) if event.resource == str(path)] == [events[0].id] * 3
