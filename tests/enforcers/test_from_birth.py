# SPDX-License-Identifier: Apache-2.0
"""Held from birth by the LSM hooks: the first act of a process in a cgroup that was just made, or that it was moved into.

clone3 puts the child into the cgroup before it runs, so its first call is the one that is asked.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from enforcers.bpf_lsm import LsmEnforcer
from enforcers.encoding import Encoder
from enforcers.tables import KernelTables
from kernel.loading import LoadedPrograms
from schemas.backends import DEFAULTS, Implemented
from schemas.enforcement import PathRule, ScopePlan
from schemas.kernel import SCOPE, Config, ScopeFlag
from schemas.operations import Class
from schemas.verdict import Action, RuleRef

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]

# Not CDLL: the child has no other thread that could give back the interpreter's lock.
libc = ctypes.PyDLL(None, use_errno=True)
_CLONE3, _INTO_CGROUP, _SIGCHLD = 435, 0x200000000, 17


@pytest.fixture(scope="module")
def loaded(hooked: LoadedPrograms) -> LoadedPrograms:
    return hooked


@pytest.fixture
def backends() -> tuple[Implemented, ...]:
    return ("bpf-lsm", *DEFAULTS)


def first_act(directory: str | Path, act: Callable[[], object]) -> int:
    """The errno of `act`, the first thing that a process born in the cgroup at `directory` does; 0 when it is done."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        words = struct.pack("=11Q", _INTO_CGROUP, 0, 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, fd)
        pid = libc.syscall(_CLONE3, words, len(words))
        if not pid:
            status = 99
            try:
                act()
                status = 0
            except OSError as error:
                status = error.errno or 98
            finally:
                os._exit(status)
    finally:
        os.close(fd)
    assert pid > 0, os.strerror(ctypes.get_errno())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Things:
    """A file and a program that a policy denies."""

    def __init__(self, home: Path) -> None:
        self.secret, self.tool = str(home / "secret"), shutil.copy("/bin/true", home / "tool")
        Path(self.secret).write_text("x")
        self.rules = f"file: {{matchPaths: [{{path: {self.secret}}}]}}, process: {{matchPaths: [{{path: {self.tool}}}]}}, action: Block"

    def opened(self) -> None:
        os.open(self.secret, os.O_RDONLY)

    def executed(self) -> None:
        os.execv(self.tool, [self.tool])

    def first(self, directory: str | Path) -> tuple[int, int]:
        """What a first open, and a first exec, come to."""
        return first_act(directory, self.opened), first_act(directory, self.executed)


@pytest.fixture
def things(tmp_path: Path) -> Things:
    return Things(tmp_path)


DENIED, DONE = (errno.EPERM, errno.EPERM), (0, 0)


@pytest.mark.lsm_attack("First exec in a cgroup that a container makes inside itself", "held")
def test_the_first_act_below_a_held_cgroup_is_denied(bench: Any, new_cgroup: Any, things: Things) -> None:
    """20 cgroups as a runtime makes them, one below a pod or two."""
    bench.hold(things.rules)
    for number in range(20):
        made = Path(bench.box.full, f"c{number}", *(["deeper"] * (number % 3)))
        made.mkdir(parents=True)
        assert things.first(made) == DENIED, number
    assert things.first(new_cgroup().full) == DONE


class Waiting:
    """A process of our own that opens `path` each time it is asked, wherever it is by then."""

    def __init__(self, path: str) -> None:
        asked, self._ask = os.pipe()
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(self._ask)
            while os.read(asked, 1):
                try:
                    os.close(os.open(path, os.O_RDONLY))
                    os.write(answer, bytes([0]))
                except OSError as error:
                    os.write(answer, bytes([error.errno or 98]))
            os._exit(0)
        os.close(asked)
        os.close(answer)

    def opens(self) -> int:
        os.write(self._ask, b"x")
        return os.read(self._answer, 1)[0]

    def move(self, directory: str | Path) -> None:
        Path(directory, "cgroup.procs").write_text(str(self.pid))

    def end(self) -> None:
        os.close(self._ask)
        os.waitpid(self.pid, 0)
        os.close(self._answer)


@pytest.fixture
def waiting(things: Things) -> Iterator[Waiting]:
    one = Waiting(things.secret)
    yield one
    one.end()


def test_a_process_moved_in_is_held_from_then_on(bench: Any, new_cgroup: Any, things: Things, waiting: Waiting) -> None:
    """It ran before, and execs nothing: its next open is asked."""
    outside = new_cgroup()
    bench.hold(things.rules)
    below = Path(bench.box.full, "made")
    below.mkdir()
    for _ in range(3):
        for held in (bench.box.full, below):
            waiting.move(outside.full)
            assert waiting.opens() == 0
            waiting.move(held)
            assert waiting.opens() == errno.EPERM
    waiting.move(outside.full)


def test_cgroups_older_than_the_rules_above_them_are_held(
    bench: Any, loaded: LoadedPrograms, things: Things, waiting: Waiting
) -> None:
    """The kernel gave them scopes of their own when they were made, which say what is watched and nothing else."""
    key = struct.pack("=I", Config.NEW_VISIBILITY)
    made = Path(bench.box.full, "container", "inner")
    with loaded.map("config") as config:
        config.put(key, struct.pack("=Q", 1 << Class.FILE))
        made.mkdir(parents=True)
        config.put(key, struct.pack("=Q", 0))
    with loaded.map("scopes") as scopes:
        for one in (made, made.parent):
            assert SCOPE.struct.unpack(scopes.get(struct.pack("=Q", one.stat().st_ino)))[2] == ScopeFlag.FRESH
    waiting.move(made)
    assert waiting.opens() == 0
    bench.hold(things.rules)
    assert waiting.opens() == errno.EPERM
    assert things.first(made) == things.first(made.parent) == DENIED
    (made / "later").mkdir()
    assert things.first(made / "later") == DENIED
    waiting.move(bench.box.full)


def test_the_nearest_held_ancestor_decides(bench: Any, loaded: LoadedPrograms, things: Things, tmp_path: Path) -> None:
    """A pod that denies the secret; in it a container that denies the program alone, and one that nobody knows."""
    bench.hold(f"file: {{matchPaths: [{{path: {things.secret}}}]}}, action: Block")
    known, new = Path(bench.box.full, "known"), Path(bench.box.full, "new")
    (known / "inner").mkdir(parents=True)
    new.mkdir()
    hooks = LsmEnforcer(bench.pin_dir)
    rule = PathRule(cls=Class.PROCESS, match="path", value=str(things.tool), action=Action.BLOCK, ref=RuleRef("p"))
    own = Encoder((hooks,), loaded.key).encode(ScopePlan(uid="u", cgroups=(known.stat().st_ino,), paths=(rule,)))
    tables = KernelTables(bench.pin_dir, (hooks,), 0.0)
    try:
        kept = {table for table, _ in tables.enforced().values()}
        tables.fill(own.table, own.entries)
        assert tables.switch(known.stat().st_ino, own.table, own.flags)
        (known / "later").mkdir()
        for inside in (known, known / "inner", known / "later"):
            assert things.first(inside) == (0, errno.EPERM), inside
        assert things.first(new) == (errno.EPERM, 0)
        tables.release(known.stat().st_ino)
        assert things.first(known / "later") == (errno.EPERM, 0)
        tables.retire(kept)
        tables.sweep(everything=True)
    finally:
        tables.close()


async def test_the_next_container_of_a_pod_is_held_before_anybody_knows_it(
    house: Any, new_cgroup: Callable[[], Any], identity: Any, ksp: Any, things: Things
) -> None:
    """`planner.plan.pods`, from the policy to the kernel: of the pod one container is known, another is born."""
    pod = new_cgroup()
    first, next_one = Path(pod.full, "first"), Path(pod.full, "next")
    first.mkdir()
    known = SimpleNamespace(id=first.stat().st_ino, path=f"{pod.path}/first")
    async with house(pods=True) as here:
        await here.know(identity(known, pod_uid="p1", pod_cgroup=pod.id, orchestrated=True))
        await here.apply(ksp("held", things.rules))
        await here.enforced(known, pod)
        next_one.mkdir()
        assert things.first(next_one) == things.first(first) == DENIED
