# SPDX-License-Identifier: Apache-2.0
"""Sources that stand for many executables: the sets that the machine finds, what is written for each, and what is left to no other backend."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest

from enforcers import actors
from enforcers.actors import ActorMachine
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.cgroup import CgroupEnforcer
from enforcers.encoding import Encoder
from enforcers.regions import Machines
from enforcers.signal import SignalEnforcer
from policy.rules.lockout import judged
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.kernel import RULE, RULE_KEY, RuleAction, RuleFlag, RuleKind
from schemas.lsm import ACTOR_UNKNOWN, TableFlag
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import PROTECTED, Action, RuleRef

HOW = {"/usr/": "directory_recursive", "/usr/bin/": "directory", "/usr/*/ssh*": "pattern", "/usr/bin/sh": "path"}


def rule(source: str, action: Action = Action.BLOCK, **more: Any) -> PathRule:
    words = {"cls": Class.FILE, "match": "path", "value": "/secret", "ref": RuleRef("p")} | more
    return PathRule(source=source, source_match=HOW[source], action=action, **words)


def net(source: str, action: Action = Action.BLOCK, protocol: str = "tcp") -> NetworkRule:
    return NetworkRule(
        protocol=protocol, source=source, source_match=HOW.get(source, "path"), action=action, ref=RuleRef("n")
    )


def walk(cells: bytes, path: str) -> int:
    """The set of `path`, as programs/lsm_match.c walks."""
    table = struct.unpack(f"={len(cells) // 4}I", cells)
    stride, state = table[1], 1
    for byte in path.encode():
        class_ = table[2 + (byte >> 2)] >> (byte & 3) * 8 & 255
        state = table[66 + state * stride + 1 + class_]
    return table[66 + state * stride]


def said(found: ActorMachine, rules: list[PathRule], path: str) -> tuple[int, int] | None:
    """Action and number of the rule for `path`."""
    entries = dict(found.entries(list(enumerate(rules)), lambda _: (7, Class.FILE, RuleKind.EXACT)))
    value = entries.get(
        RULE_KEY.struct.pack(0, 7, walk(found.cells, path) if path else ACTOR_UNKNOWN, Class.FILE, RuleKind.EXACT)
    )
    return None if value is None else (RULE.struct.unpack(value)[0], RULE.struct.unpack(value)[2])


def test_of_several_sources_the_one_that_says_most_decides() -> None:
    rules = [rule("/usr/*/ssh*", Action.ALLOW), rule("/usr/bin/"), rule("/usr/", Action.ALLOW)]
    found = ActorMachine(rules, ())
    assert said(found, rules, "/usr/bin/ssh") == (RuleAction.ALLOW, 0)
    assert said(found, rules, "/usr/bin/cat") == (RuleAction.BLOCK, 1)
    assert said(found, rules, "/usr/lib/x/y") == (RuleAction.ALLOW, 2)
    assert said(found, rules, "/bin/cat") is None
    assert walk(found.cells, "/usr") == walk(found.cells, "/srv/usr/bin/cat") == 0


def test_who_is_not_known_is_denied_by_any_of_them() -> None:
    rules = [rule("/usr/*/ssh*", Action.ALLOW), rule("/usr/bin/", read_only=True), rule("/usr/")]
    assert said(ActorMachine(rules, ()), rules, "") == (RuleAction.BLOCK, 2)
    rules = [rule("/usr/*/ssh*", Action.ALLOW), rule("/usr/bin/", Action.ALLOW, owner_only=True)]
    assert said(ActorMachine(rules, ()), rules, "") == (RuleAction.ALLOW, 1)
    assert said(ActorMachine(rules[:1], ()), rules[:1], "") is None


def test_rules_that_say_as_much_all_hold() -> None:
    """Two patterns with as many letters: every limit of both."""
    one, other = rule("/usr/*/ssh*", Action.ALLOW, read_only=True), rule("/usr/*/ssh*", Action.ALLOW, owner_only=True)
    rules = [one, msgspec.structs.replace(other, source="/usr/?in/ssh*"), rule("/usr/")]
    rules[1] = msgspec.structs.replace(rules[1], source="/usr/*/?sh*")
    rules[0] = msgspec.structs.replace(rules[0], source="/usr/*/s?h*")
    found = ActorMachine(rules, ())
    (value,) = [
        value for key, value in found.entries(list(enumerate(rules)), lambda _: (7, Class.FILE, RuleKind.EXACT))
        if RULE_KEY.struct.unpack(key)[2] == walk(found.cells, "/usr/bin/ssh")
    ]  # fmt: skip
    assert RULE.struct.unpack(value)[1] == RuleFlag.READ_ONLY | RuleFlag.OWNER_ONLY


def test_what_protects_the_nodes_programs_goes_before() -> None:
    """An exception for sshd, which no rule names: a directory that it lies in is no name."""
    scope = ScopePlan(uid="host", cgroups=(1,), paths=(rule("/usr/", value="/etc/motd"),))
    made, refused = judged(scope)
    assert refused == ()
    assert any(one.source == "/usr/sbin/sshd" and one.ref.policy == PROTECTED for one in made.paths)
    found = ActorMachine(made.paths, made.network)
    assert said(found, [scope.paths[0]], "/usr/sbin/tool") == (RuleAction.BLOCK, 0)
    assert said(found, [scope.paths[0]], "/usr/sbin/sshd") is None


def test_a_directory_that_shells_lie_in_can_lock_out() -> None:
    scope = ScopePlan(uid="host", cgroups=(1,), paths=(rule("/usr/", value="/etc/passwd"),))
    assert [one.code for one in judged(scope)[1]] == [RefusalCode.LOCKOUT]


def test_more_than_the_machine_holds_is_refused_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "CELLS", 40)
    free = rule("/usr/", Action.ALLOW)
    plain = PathRule(cls=Class.FILE, match="path", value="/secret", action=Action.BLOCK, ref=RuleRef("q"))
    part = LsmEnforcer("/nowhere").encode(
        ScopePlan(uid="u", cgroups=(1,), paths=(free, plain), network=(net("/usr/bin/"),)), len
    )
    assert {(one.ref.policy, one.code) for one in part.refused} == {
        ("p", RefusalCode.SOURCE), ("q", RefusalCode.EXCEPTION), ("n", RefusalCode.SOURCE),
    }  # fmt: skip
    assert part.cells == b""


@pytest.mark.parametrize(("action", "blind"), [(Action.ALLOW, True), (Action.BLOCK, False)])
def test_guards_that_cannot_see_an_exception_are_left_out(action: Action, blind: bool) -> None:
    """They read the table that the hooks write too: without the exception they would deny what is allowed."""
    scope = ScopePlan(uid="u", cgroups=(1,), network=(net("/usr/bin/", action), net("")), signal=True)
    made = Encoder((LsmEnforcer("/nowhere"), CgroupEnforcer("/nowhere")), (1, 2)).encode(scope)
    assert made.holds(Backend.BPF_LSM)
    assert made.holds(Backend.CGROUP) is not blind
    assert all(one.ref.policy == "n" for one in made.refused)


@pytest.mark.parametrize("backend", [CgroupEnforcer("/nowhere"), SignalEnforcer("/nowhere")], ids=["cgroup", "signal"])
def test_by_themselves_they_refuse_it(backend: Any) -> None:
    scope = ScopePlan(uid="u", cgroups=(1,), paths=(rule("/usr/bin/"),), network=(net("/usr/bin/"),), signal=True)
    part = backend.encode(scope, len)
    assert {one.code for one in part.refused} == {RefusalCode.SOURCE}
    assert not any(part.entries.values())


def test_a_restarted_agent_knows_how_long_both_machines_are() -> None:
    class Cells:
        """A map with two machines from cell 5 on, of 30 and 12 cells."""

        def get(self, key: bytes) -> bytes:
            return {5: 30, 35: 12}[int.from_bytes(key, "little")].to_bytes(4, "little")

    found = Machines(Cells())  # type: ignore[arg-type]
    found.adopt(1, RULE.struct.pack(0, TableFlag.PATTERNS | TableFlag.ACTORS, 5, 30))
    assert found._placed == {1: (5, 42)}
