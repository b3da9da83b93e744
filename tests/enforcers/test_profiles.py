# SPDX-License-Identifier: Apache-2.0
"""What a profile backend owes, by one whose profiles are files, and what the applier makes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from enforcers.apply import Applier
from enforcers.cgroup import cgroup2_mount
from enforcers.contract import ProfileBackend, ProfilePart
from enforcers.profiles import carry_out, fingerprint
from enforcers.registry import Usable
from schemas.enforcement import InForce, PathRule, Plan, Refusal, ScopePlan
from schemas.errors import KernelError
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import Action, RuleRef


class Files:
    """Profiles as files of a directory, replaced by rename; a scope's workload names its profile. `broken`: names that cannot be
    loaded; `empty`: cgroups without a process."""

    backend = Backend.APPARMOR

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.broken: set[str] = set()
        self.empty: set[int] = set()
        self.loads = 0

    def unusable(self) -> str:
        return "" if self._directory.is_dir() else f"expected a directory at {self._directory}"

    def render(self, scope: ScopePlan) -> ProfilePart:
        carried = [rule for rule in scope.paths if rule.match == "path"]
        refused = tuple(
            Refusal(ref=rule.ref, uid=scope.uid, backend=self.backend, reason="paths only", code=RefusalCode.PATTERN)
            for rule in scope.paths
            if rule.match != "path"
        )
        text = "".join(f"deny {rule.value}\n" for rule in carried)
        return ProfilePart(text=text, carried=frozenset(rule.ref for rule in carried), refused=refused)

    def profile(self, scope: ScopePlan) -> str | None:
        return None if scope.cgroups[0] in self.empty else scope.workload

    def load(self, profile: str, text: str) -> None:
        if profile in self.broken:
            raise KernelError(f"expected the kernel to take `{profile}`, got EINVAL", operation="load")
        new = self._directory / f".{profile}"
        new.write_text(text)
        os.replace(new, self._directory / profile)
        self.loads += 1

    def release(self, profile: str) -> None:
        (self._directory / profile).unlink(missing_ok=True)

    def loaded(self) -> Mapping[str, str]:
        return {
            path.name: fingerprint(path.read_text())
            for path in self._directory.iterdir()
            if not path.name.startswith(".")
        }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def scope(number: int, *paths: str, profile: str = "box", match: str = "path") -> ScopePlan:
    rules = tuple(
        PathRule(cls=Class.FILE, match=match, value=path, action=Action.BLOCK, ref=RuleRef("p", position=path))
        for path in paths
    )
    return ScopePlan(uid=f"u{number}", cgroups=(number,), cgroup_path=f"/{number}", workload=profile, paths=rules)


# The contract: what any profile backend must pass. `backend` is a fixture to be overridden by the next one.


@pytest.fixture
def backend(files: Files) -> ProfileBackend:
    return files


def test_rendering_is_pure_and_equal_for_equal_rules(backend: ProfileBackend) -> None:
    first, second = backend.render(scope(7, "/a", "/b")), backend.render(scope(8, "/a", "/b"))
    assert first.text == second.text != ""
    assert first.carried == {RuleRef("p", position="/a"), RuleRef("p", position="/b")}
    assert backend.render(scope(7)).text == ""
    assert backend.loaded() == {}


def test_every_rule_is_carried_or_refused_with_a_code(backend: ProfileBackend) -> None:
    mixed = msgspec.structs.replace(
        scope(7, "/a"), paths=(*scope(7, "/a").paths, *scope(7, "/b*", match="pattern").paths)
    )
    part = backend.render(mixed)
    assert part.carried | {one.ref for one in part.refused} == {rule.ref for rule in mixed.paths}
    assert all(one.code is not RefusalCode.UNSPECIFIED and one.reason and one.uid == "u7" for one in part.refused)


def test_a_profile_is_replaced_whole_and_read_back(backend: ProfileBackend) -> None:
    for paths in (("/a",), ("/b", "/c"), ("/b", "/c")):
        text = backend.render(scope(7, *paths)).text
        backend.load("box", text)
        assert backend.loaded() == {"box": fingerprint(text)}


def test_release_is_no_error_twice_or_for_what_is_not_there(backend: ProfileBackend) -> None:
    backend.load("box", backend.render(scope(7, "/a")).text)
    for _ in range(2):
        backend.release("box")
        assert backend.loaded() == {}


def test_whoever_comes_after_sees_what_is_loaded(files: Files, tmp_path: Path) -> None:
    files.load("box", "deny /a\n")
    assert Files(tmp_path).loaded() == {"box": fingerprint("deny /a\n")}


# The engine over it.


def test_an_unchanged_plan_loads_nothing_and_a_changed_one_the_difference(files: Files) -> None:
    done = carry_out(files, [scope(7, "/a"), scope(8, "/b", "/c", profile="other")], str)
    assert (done.scopes, done.rules, done.failed, files.loads) == ({7, 8}, 3, [], 2)
    carry_out(files, [scope(7, "/a"), scope(8, "/b", "/c", profile="other")], str)
    assert files.loads == 2
    done = carry_out(files, [scope(7, "/x")], str)
    assert (files.loads, done.scopes, dict(files.loaded())) == (3, {7}, {"box": fingerprint("deny /x\n")})


def test_what_cannot_be_loaded_keeps_what_it_had_and_takes_no_other_along(files: Files) -> None:
    carry_out(files, [scope(7, "/a")], str)
    before = files.loaded()["box"]
    files.broken.add("box")
    done = carry_out(files, [scope(7, "/b"), scope(8, "/c", profile="other")], str)
    assert files.loaded()["box"] == before
    assert done.scopes == {8}
    assert any("EINVAL; what was in force stays" in one for one in done.failed)


def test_scopes_of_one_profile_with_different_rules_keep_it(files: Files) -> None:
    carry_out(files, [scope(7, "/a"), scope(8, "/a")], str)
    for other in (scope(8, "/b"), scope(8)):
        done = carry_out(files, [scope(7, "/x"), other], str)
        assert done.scopes == set()
        assert "with different rules; it stays as it is" in done.failed[0]
        assert files.loaded() == {"box": fingerprint("deny /a\n")}


def test_a_scope_that_cannot_be_rendered_releases_nothing(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    carry_out(files, [scope(7, "/a")], str)
    monkeypatch.setattr(files, "render", lambda scope: 1 / 0)
    done = carry_out(files, [scope(7, "/b")], str)
    assert files.loaded() == {"box": fingerprint("deny /a\n")}
    assert "division by zero; its profile stays as it is" in done.failed[0]


def test_a_profile_outlives_the_moment_in_which_nobody_runs_under_it(files: Files) -> None:
    """A service that is started again when a plan is made: its next process is to find its rules."""
    carry_out(files, [scope(7, "/a"), scope(8, "/b", profile="other")], str)
    files.empty.add(7)
    done = carry_out(files, [scope(7, "/a"), scope(8, "/c", profile="other")], str)
    assert (done.scopes, done.failed) == ({8}, [])
    assert files.loaded()["box"] == fingerprint("deny /a\n")
    assert files.loaded()["other"] == fingerprint("deny /c\n")
    carry_out(files, [scope(8, "/c", profile="other")], str)
    assert "box" not in files.loaded()


def test_who_runs_under_no_profile_is_refused_rule_by_rule(files: Files) -> None:
    done = carry_out(files, [scope(7, "/a", "/b", profile="")], str)
    assert [(one.ref.position, one.code) for one in done.refused] == [
        ("/a", RefusalCode.NO_PROFILE),
        ("/b", RefusalCode.NO_PROFILE),
    ]
    assert done.scopes == set()


def test_what_is_not_read_back_is_not_claimed(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "load", lambda profile, text: None)
    done = carry_out(files, [scope(7, "/a")], str)
    assert done.scopes == set()
    assert "what is read back is something else" in done.failed[0]


def test_a_receipt_says_what_each_backend_enforces(files: Files, tmp_path: Path, new_cgroup: Callable[[], Any]) -> None:
    """A node without the sensor's programs: table backends are not usable, the profiles hold all the same."""
    box, other = new_cgroup(), new_cgroup()
    assert cgroup2_mount()
    scopes = tuple(
        msgspec.structs.replace(made, cgroups=(one.id,), cgroup_path=one.path)
        for one, made in ((box, scope(1, "/a", "/b")), (other, scope(2, "/a*", profile="other", match="pattern")))
    )
    plan = Plan(node="n1", generation=1, digest="d", scopes=scopes)
    pins = tmp_path.parent / "no-pins"
    chosen = Usable(profiles=(files,), problems=((Backend.SIGNAL, "its program is not pinned"),))
    one = Applier(str(pins), "n1", chosen=chosen)
    receipt = one.apply(plan)
    assert (receipt.backends, receipt.scopes, receipt.rules) == ((Backend.APPARMOR,), 1, 2)
    assert receipt.in_force == (
        InForce(backend=Backend.APPARMOR, scopes=1, rules=2),
        InForce(backend=Backend.SIGNAL, problem="its program is not pinned"),
    )
    assert [one.code for one in receipt.refused] == [RefusalCode.PATTERN]
    one.clear()
    assert files.loaded() == {}
