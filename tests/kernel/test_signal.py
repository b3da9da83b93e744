# SPDX-License-Identifier: Apache-2.0
"""The signal backend on the live kernel: who is stopped, by which rule, and that nobody else is.

Every rule here holds for one cgroup that the test made.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernel.loading import exclude
from schemas.kernel import RuleAction, RuleFlag, RuleKind, ScopeFlag
from schemas.operations import Backend, Class, Operation

pytestmark = pytest.mark.kernel
KILLED = 9
PYTHON = os.path.realpath("/proc/self/exe")
TRUE = os.path.realpath(shutil.which("true") or "/bin/true")
FALSE = os.path.realpath(shutil.which("false") or "/bin/false")
SHELL = os.path.realpath("/bin/sh")
ALLOW, AUDIT, BLOCK = RuleAction.ALLOW, RuleAction.AUDIT, RuleAction.BLOCK

Rules = Callable[..., None]


def opens(path: Path | str) -> Callable[[], object]:
    """Something that opens `path` for reading."""
    return lambda: os.open(path, os.O_RDONLY)


def test_a_blocked_exec_is_killed_and_told(sensor: Any, rules: Rules, pick: Callable[..., Any]) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK))
    event = pick(sensor.run([TRUE], status=KILLED), Operation.EXEC)
    assert (event.resource, event.enforcer) == (TRUE, Backend.SIGNAL)
    assert pick(sensor.run([FALSE], status=1 << 8), Operation.EXEC).enforcer is Backend.OBSERVER


def test_a_kill_is_told_even_where_nothing_is_visible(sensor: Any, rules: Rules, pick: Callable[..., Any]) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK))
    with sensor.map("scopes") as scopes:
        key = struct.pack("=Q", sensor.cgroup_id)
        scopes.put(key, scopes.get(key)[:-4] + bytes(4))
    assert pick(sensor.run([TRUE], status=KILLED), Operation.EXEC).enforcer is Backend.SIGNAL


def test_the_same_exec_elsewhere_goes_on(sensor: Any, rules: Rules) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK))
    assert os.spawnv(os.P_WAIT, TRUE, [TRUE]) == 0


@pytest.mark.parametrize(
    ("kind", "place", "killed"),
    [
        (RuleKind.EXACT, "a/b/file", True),
        (RuleKind.EXACT, "a/b", False),
        (RuleKind.DIRECTORY, "a/b/", True),
        (RuleKind.DIRECTORY, "a/", False),
        (RuleKind.RECURSIVE, "a/b/", True),
        (RuleKind.RECURSIVE, "a/", True),
        (RuleKind.RECURSIVE, "", True),
        (RuleKind.RECURSIVE, "a/c/", False),
    ],
)
def test_paths_and_directories(
    sensor: Any, rules: Rules, tmp_path: Path, kind: RuleKind, place: str, killed: bool
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    rules((Class.FILE, kind, f"{tmp_path}/{place}", BLOCK))
    sensor.run(opens(tmp_path / "a" / "b" / "file"), status=KILLED if killed else 0)


@pytest.mark.parametrize("length", range(1, 18))
def test_every_alignment_of_a_directory_is_found(sensor: Any, rules: Rules, tmp_path: Path, length: int) -> None:
    place = tmp_path / ("d" * length)
    place.mkdir()
    (place / "f").write_text("x")
    rules((Class.FILE, RuleKind.RECURSIVE, f"{place}/", BLOCK), (Class.FILE, RuleKind.EXACT, f"{place}x", BLOCK))
    sensor.run(opens(place / "f"), status=KILLED)
    sensor.run(opens(place), status=KILLED)
    sensor.run(opens(tmp_path))


def test_the_deepest_directory_decides(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "a" / "file").write_text("x")
    rules(
        (Class.FILE, RuleKind.RECURSIVE, f"{tmp_path}/", BLOCK),
        (Class.FILE, RuleKind.RECURSIVE, f"{tmp_path}/a/b/", ALLOW),
    )
    sensor.run(opens(tmp_path / "a" / "b" / "file"))
    sensor.run(opens(tmp_path / "a" / "file"), status=KILLED)


def test_exact_wins_over_directory_and_name_lies_between(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    for name in ("open", "named", "other"):
        (tmp_path / name).write_text("x")
    rules(
        (Class.FILE, RuleKind.RECURSIVE, f"{tmp_path}/", BLOCK),
        (Class.FILE, RuleKind.EXECNAME, "named", ALLOW),
        (Class.FILE, RuleKind.EXACT, f"{tmp_path}/open", ALLOW),
    )
    sensor.run(opens(tmp_path / "open"))
    sensor.run(opens(tmp_path / "named"))
    sensor.run(opens(tmp_path / "other"), status=KILLED)


def test_a_rule_for_the_source_wins_over_any_other(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    rules(
        (Class.FILE, RuleKind.EXACT, f"{tmp_path}/file", BLOCK),
        (Class.FILE, RuleKind.RECURSIVE, f"{tmp_path}/", ALLOW, PYTHON),
    )
    sensor.run(opens(tmp_path / "file"))
    cat = os.path.realpath(shutil.which("cat") or "/bin/cat")
    sensor.run([cat, str(tmp_path / "file")], status=KILLED)


def test_an_execs_source_is_its_parent(sensor: Any, rules: Rules) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK, SHELL))
    sensor.run([TRUE])
    sensor.run([SHELL, "-c", f"{TRUE}; exit $?"], status=(128 + KILLED) << 8)


def test_whitelist_with_posture_block(sensor: Any, rules: Rules) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, ALLOW), flags=ScopeFlag.WHITELIST_PROCESS)
    sensor.run([TRUE])
    sensor.run([FALSE], status=KILLED)


def test_audit_stops_nobody(sensor: Any, rules: Rules) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, AUDIT), flags=ScopeFlag.WHITELIST_PROCESS)
    sensor.run([TRUE])


@pytest.mark.parametrize("action", [ALLOW, BLOCK])
def test_read_only(sensor: Any, rules: Rules, tmp_path: Path, action: RuleAction) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    rules((Class.FILE, RuleKind.EXACT, str(path), action, "", RuleFlag.READ_ONLY))
    sensor.run(opens(path))
    sensor.run(lambda: os.open(path, os.O_RDWR), status=KILLED)


@pytest.mark.parametrize("action", [ALLOW, BLOCK])
def test_a_name_for_a_file_is_no_change(sensor: Any, rules: Rules, tmp_path: Path, action: RuleAction) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    rules((Class.FILE, RuleKind.EXACT, str(path), action, "", RuleFlag.READ_ONLY))
    sensor.run(lambda: os.open(path, os.O_PATH))
    sensor.run(lambda: os.open(path, os.O_PATH | os.O_RDWR | os.O_CREAT | os.O_TRUNC))


@pytest.mark.parametrize("action", [ALLOW, BLOCK])
def test_owner_only(sensor: Any, rules: Rules, tmp_path: Path, action: RuleAction) -> None:
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    for path in (mine, theirs):
        path.write_text("x")
    os.chown(theirs, 4321, 4321)
    rules((Class.FILE, RuleKind.RECURSIVE, f"{tmp_path}/", action, "", RuleFlag.OWNER_ONLY))
    sensor.run(opens(mine))
    sensor.run(opens(theirs), status=KILLED)


def test_a_failed_open_is_no_reason_to_kill(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    rules((Class.FILE, RuleKind.EXACT, f"{tmp_path}/gone", BLOCK))

    def act() -> None:
        with pytest.raises(FileNotFoundError):
            os.open(tmp_path / "gone", os.O_RDONLY)

    sensor.run(act)


def test_a_deep_path_is_matched_whole(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    place = f"{tmp_path}" + "/e" * 1000
    subprocess.run(["mkdir", "-p", place], check=True)
    Path(place, "leaf").write_text("x")
    rules((Class.FILE, RuleKind.EXACT, f"{place}/leaf", BLOCK))
    sensor.run(opens(f"{place}/leaf"), status=KILLED)
    rules((Class.FILE, RuleKind.EXACT, f"{place}/leaf", ALLOW), (Class.FILE, RuleKind.DIRECTORY, f"{place}/", BLOCK))
    sensor.run(opens(f"{place}/leaf"))
    Path(place, "other").write_text("x")
    sensor.run(opens(f"{place}/other"), status=KILLED)
    subprocess.run(["rm", "-rf", str(tmp_path / "e")], check=True)


def test_excluded_processes_are_never_killed(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    rules((Class.FILE, RuleKind.EXACT, f"{tmp_path}/file", BLOCK))

    def act() -> None:
        exclude(sensor.loaded, os.getpid())
        os.open(tmp_path / "file", os.O_RDONLY)

    sensor.run(act)


def test_a_cgroup_made_inside_does_not_escape(sensor: Any, rules: Rules) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK))
    inner = sensor.cgroup / "inner"
    inner.mkdir()

    def act() -> None:
        (inner / "cgroup.procs").write_text("0")
        os.execv(TRUE, [TRUE])

    sensor.run(act, status=KILLED)


def test_tables_are_switched_at_once(sensor: Any, rules: Rules) -> None:
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK))
    sensor.run([TRUE], status=KILLED)
    sensor.scope(flags=ScopeFlag.CONTAINER | ScopeFlag.ENFORCE_SIGNAL, table=1)
    sensor.run([TRUE])


def script(path: Path, interpreter: str = "/bin/sh", text: str = "exit 0") -> Path:
    path.write_text(f"#!{interpreter}\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RuleKind.EXACT, "box/run.sh"),
        (RuleKind.DIRECTORY, "box/"),
        (RuleKind.RECURSIVE, ""),
        (RuleKind.EXECNAME, "run.sh"),
    ],
)
def test_a_rule_on_a_script_holds(
    sensor: Any, rules: Rules, pick: Callable[..., Any], tmp_path: Path, kind: RuleKind, name: str
) -> None:
    (tmp_path / "box").mkdir()
    path = script(tmp_path / "box" / "run.sh", text=f"echo ran > {tmp_path}/ran")
    (tmp_path.parent / "link-to-script").unlink(missing_ok=True)
    (tmp_path.parent / "link-to-script").symlink_to(path)
    rules((Class.PROCESS, kind, name if kind is RuleKind.EXECNAME else f"{tmp_path}/{name}", BLOCK))
    for called in (path, tmp_path.parent / "link-to-script"):
        event = pick(sensor.run([str(called)], status=KILLED), Operation.EXEC)
        assert (event.resource, event.resource2, event.enforcer) == (str(path), SHELL, Backend.SIGNAL)
    assert not (tmp_path / "ran").exists()


def test_a_rule_on_the_interpreter_holds_for_its_scripts(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    path = script(tmp_path / "run.sh")
    rules((Class.PROCESS, RuleKind.EXACT, SHELL, BLOCK))
    sensor.run([str(path)], status=KILLED)


def test_a_rule_on_a_script_in_between_holds(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    inner = script(tmp_path / "inner")
    outer = script(tmp_path / "outer", str(inner))
    rules((Class.PROCESS, RuleKind.EXACT, str(inner), BLOCK))
    sensor.run([str(outer)], status=KILLED)


def test_a_whitelist_must_name_the_script_and_the_interpreter(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    path = script(tmp_path / "run.sh")
    mine = (Class.PROCESS, RuleKind.EXACT, str(path), ALLOW)
    rules(mine, flags=ScopeFlag.WHITELIST_PROCESS)
    sensor.run([str(path)], status=KILLED)
    rules(mine, (Class.PROCESS, RuleKind.EXACT, SHELL, ALLOW), flags=ScopeFlag.WHITELIST_PROCESS)
    sensor.run([str(path)])


CHANGES: dict[str, tuple[Operation, Callable[[Path, Path], object]]] = {
    "unlink": (Operation.UNLINK, lambda path, other: os.unlink(path)),
    "rename": (Operation.RENAME, lambda path, other: os.rename(path, other)),
    "renamed to": (Operation.RENAME, lambda path, other: os.rename(other.parent / "third", path)),
    "link": (Operation.LINK, lambda path, other: os.link(path, other)),
    "linked": (Operation.LINK, lambda path, other: os.link(other.parent / "third", path.parent / "new")),
    "symlink": (Operation.SYMLINK, lambda path, other: os.symlink("anything", path.parent / "new")),
    "chmod": (Operation.CHMOD, lambda path, other: os.chmod(path, 0o600)),
    "chown": (Operation.CHOWN, lambda path, other: os.chown(path, 0, 0)),
    "truncate": (Operation.TRUNCATE, lambda path, other: os.truncate(path, 0)),
    "mkdir": (Operation.MKDIR, lambda path, other: os.mkdir(path.parent / "new")),
    "mknod": (Operation.MKNOD, lambda path, other: os.mknod(path.parent / "new", 0o600 | 0o010000)),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("limit", [0, RuleFlag.READ_ONLY])
def test_who_changes_a_blocked_file_by_name_is_killed_and_told(
    sensor: Any, rules: Rules, pick: Callable[..., Any], tmp_path: Path, name: str, limit: int
) -> None:
    """The change itself has happened by then: that is the limit of this backend."""
    operation, change = CHANGES[name]
    place = tmp_path / "box"
    place.mkdir()
    (place / "file").write_text("x")
    (tmp_path / "third").write_text("x")
    rules((Class.FILE, RuleKind.RECURSIVE, f"{place}/", BLOCK, "", limit))
    event = pick(sensor.run(lambda: change(place / "file", tmp_path / "other"), status=KILLED), operation)
    assert event.enforcer is Backend.SIGNAL
    sensor.run(lambda: change(tmp_path / "third", tmp_path / "free") if name in ("unlink", "rename") else None)


def test_what_fails_or_is_the_owners_business_is_no_reason_to_kill(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    rules(
        (Class.FILE, RuleKind.EXACT, f"{tmp_path}/gone", BLOCK),
        (Class.FILE, RuleKind.EXACT, f"{tmp_path}/file", ALLOW, "", RuleFlag.OWNER_ONLY),
    )

    def act() -> None:
        with pytest.raises(FileNotFoundError):
            os.unlink(tmp_path / "gone")
        with pytest.raises(FileNotFoundError):
            os.rename(tmp_path / "gone", tmp_path / "new")
        os.unlink(tmp_path / "file")

    sensor.run(act)


def test_long_names_do_not_hide_the_short_one(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    """Both paths of a rename are judged, whatever the other costs."""
    (tmp_path / "secret").write_text("x")
    deep = f"{tmp_path}/" + "d/" * 1500
    subprocess.run(["mkdir", "-p", deep], check=True)
    rules((Class.FILE, RuleKind.EXACT, f"{tmp_path}/secret", BLOCK))
    sensor.run(lambda: os.rename(tmp_path / "secret", f"{deep}x"), status=KILLED)
    (tmp_path / "secret").write_text("x")
    sensor.run(lambda: os.link(f"{deep}x", f"{deep}y"))
    sensor.run(lambda: os.rename(f"{deep}x", tmp_path / "secret"), status=KILLED)
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_a_rule_for_what_a_script_does_holds_for_it_alone(
    sensor: Any, rules: Rules, pick: Callable[..., Any], tmp_path: Path
) -> None:
    """The source of a rule may be a `#!` file: what its interpreter does then, opens and execs, is what it does."""
    (tmp_path / "file").write_text("x")
    mine, other = tmp_path / "mine.sh", tmp_path / "other.sh"
    for path in (mine, other):
        script(path, text=f"read x < {tmp_path}/file; exit 0")
    rules((Class.FILE, RuleKind.EXACT, f"{tmp_path}/file", BLOCK, str(mine)))
    assert (
        pick(sensor.run([str(mine)], status=KILLED), Operation.OPEN, enforcer=Backend.SIGNAL).resource
        == f"{tmp_path}/file"
    )
    sensor.run([str(other)])
    # Rules for its interpreter, and for anybody, hold for it too.
    rules((Class.FILE, RuleKind.RECURSIVE, f"{tmp_path}/", BLOCK, SHELL))
    script(tmp_path.parent / "outside.sh", text=f"read x < {tmp_path}/file; exit 0")
    sensor.run([str(tmp_path.parent / "outside.sh")], status=KILLED)
    rules((Class.FILE, RuleKind.EXACT, f"{tmp_path}/file", BLOCK))
    sensor.run([str(mine)], status=KILLED)


def test_a_rule_for_a_script_goes_before_one_for_its_interpreter(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    mine, other = (
        script(tmp_path / name, text=f"read x < {tmp_path}/file; exit 0") for name in ("mine.sh", "other.sh")
    )
    rules(
        (Class.FILE, RuleKind.EXACT, f"{tmp_path}/file", ALLOW, str(mine)),
        (Class.FILE, RuleKind.EXACT, f"{tmp_path}/file", BLOCK, SHELL),
    )
    sensor.run([str(mine)])
    sensor.run([str(other)], status=KILLED)


def test_a_rule_for_what_a_script_starts_holds(sensor: Any, rules: Rules, tmp_path: Path) -> None:
    mine = script(tmp_path / "mine.sh", text=f"{TRUE}; exit $?")
    rules((Class.PROCESS, RuleKind.EXACT, TRUE, BLOCK, str(mine)))
    sensor.run([str(mine)], status=(128 + KILLED) << 8)
    sensor.run([str(script(tmp_path / "other.sh", text=f"{TRUE}; exit $?"))])
    sensor.run([TRUE])
