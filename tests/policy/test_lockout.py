# SPDX-License-Identifier: Apache-2.0
"""What would lock the operator out: refused rule by rule, and nothing else is; whatever the rules are, the ways in stay open."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from policy.rules import lockout
from policy.rules.lockout import EXECUTABLES, NEEDS, Need, denied_by, judged
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.operations import Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, PROTECTED, Action, RuleRef


def ref(position: str, policy: str = "p") -> RuleRef:
    return RuleRef(policy, kind="KubeArmorHostPolicy", position=position)


def rule(
    value: str, match: str = "path", cls: Class = Class.FILE, action: Action = Action.BLOCK, **more: Any
) -> PathRule:
    return PathRule(cls=cls, match=match, value=value, action=action, ref=more.pop("ref", ref(value)), **more)


def scope(*paths: PathRule, **more: Any) -> ScopePlan:
    return ScopePlan(uid="host", cgroups=(7,), paths=paths, **more)


def refused(made: ScopePlan) -> list[str]:
    found = judged(made)[1]
    assert {one.code for one in found} <= {RefusalCode.LOCKOUT}
    return [one.ref.position or one.ref.policy for one in found]


@pytest.mark.parametrize(
    "one",
    [
        rule("/etc/shadow"), rule("/etc/", "directory_recursive", read_only=True), rule("/usr/bin/nc", cls=Class.PROCESS),
        rule("/usr/bin/kubelet", cls=Class.PROCESS), rule("/usr/bin/sudo", cls=Class.PROCESS),
        rule("/usr/sbin/", "directory", Class.PROCESS), rule("setuid", "capability", Class.CAPABILITIES),
        rule("/**/*.key", "pattern"), rule("/etc/passwd", source="/usr/bin/nc"),
    ],
)  # fmt: skip
def test_held_for_others_with_exceptions_for_what_the_node_lives_on(one: PathRule) -> None:
    made, found = judged(scope(one))
    assert found == ()
    assert one in made.paths


@pytest.mark.parametrize(
    "one",
    [
        rule("/usr/sbin/sshd", cls=Class.PROCESS), rule("sshd", "execname", Class.PROCESS), rule("/bin/login", cls=Class.PROCESS),
        rule("/bin/bash", cls=Class.PROCESS), rule("/bin/", "directory_recursive", Class.PROCESS),
        rule("/**/bash", "pattern", Class.PROCESS), rule("/usr/bin/bash", cls=Class.PROCESS, owner_only=True),
        rule("/usr/bin/bash", cls=Class.PROCESS, source="/usr/sbin/sshd"), rule("/", "directory_recursive"),
        rule("/dev/pts/", "directory"), rule("/etc/shadow", source="/usr/sbin/sshd"), rule("/etc/passwd"),
        rule("/etc/passwd", owner_only=True), rule("setuid", "capability", Class.CAPABILITIES, source="/usr/sbin/sshd"),
    ],
)  # fmt: skip
def test_refused_by_name(one: PathRule) -> None:
    other = rule("/usr/bin/nc", cls=Class.PROCESS)
    made, found = judged(scope(one, other))
    assert [each.ref for each in found] == [one.ref]
    assert "lock the operator out" in found[0].reason
    assert other in made.paths
    assert one not in made.paths
    assert judged(scope(one), EXECUTABLES, {"KubeArmorHostPolicy//p"})[1] == ()


def test_an_exception_before_it_keeps_a_rule() -> None:
    shells = [rule(path, cls=Class.PROCESS, action=Action.ALLOW) for path in lockout.SHELLS]
    wide = rule("/", "directory_recursive", Class.PROCESS)
    assert refused(scope(*shells, wide)) == []
    assert refused(scope(wide)) == ["/"]


def test_a_posture_is_refused_alone() -> None:
    allowed = rule("/usr/bin/nc", cls=Class.PROCESS, action=Action.ALLOW)
    made, found = judged(scope(allowed, posture=((Class.PROCESS, Action.BLOCK), (Class.FILE, Action.AUDIT))))
    assert [one.ref.policy for one in found] == [DEFAULT_POSTURE]
    assert made.posture == ((Class.FILE, Action.AUDIT),)
    assert allowed in made.paths


def test_a_port_that_sshd_is_named_for() -> None:
    tcp = NetworkRule(protocol="tcp", direction="ingress", action=Action.BLOCK, ref=ref("tcp"))
    named = NetworkRule(
        protocol="tcp", direction="ingress", source="/usr/sbin/sshd", action=Action.BLOCK, ref=ref("sshd")
    )
    elsewhere = NetworkRule(protocol="tcp", port=80, end_port=90, direction="ingress", source="/usr/sbin/sshd", action=Action.BLOCK, ref=ref("80"))  # fmt: skip
    assert refused(scope(network=(tcp,))) == refused(scope(network=(elsewhere,))) == []
    assert refused(scope(network=(named,))) == ["sshd"]
    # Who has a terminal is denied by either action.
    limited = msgspec.structs.replace(named, action=Action.ALLOW, no_terminal=True)
    assert refused(scope(network=(limited,))) == ["sshd"]


PLACES = (
    *EXECUTABLES, *lockout.SHELLS, "/etc/passwd", "/etc/shadow", "/dev/tty", "/etc/ld.so.cache", "/usr/bin/nc", "/srv/data",
)  # fmt: skip


def any_rule(chance: random.Random, number: int) -> PathRule:
    cls = chance.choice((Class.PROCESS, Class.FILE, Class.CAPABILITIES))
    mine: dict[str, Any] = {
        "action": chance.choice((Action.BLOCK, Action.BLOCK, Action.ALLOW, Action.AUDIT)), "ref": ref(str(number), f"p{number % 3}"),
        "source": chance.choice(("", "", *PLACES)), "owner_only": chance.random() < 0.2, "read_only": chance.random() < 0.2,
        "no_terminal": chance.random() < 0.1,
    }  # fmt: skip
    if cls is Class.CAPABILITIES:
        return rule(chance.choice(("setuid", "chown", "bpf")), "capability", cls, **mine)
    path = chance.choice(PLACES)
    match chance.randrange(5):
        case 0:
            return rule(path, "path", cls, **mine)
        case 1:
            return rule(path[: path.rindex("/") + 1], "directory", cls, **mine)
        case 2:
            return rule(
                path[: chance.choice([at + 1 for at, letter in enumerate(path) if letter == "/"])],
                "directory_recursive",
                cls,
                **mine,
            )
        case 3:
            return rule(path.rpartition("/")[2], "execname", Class.PROCESS, **mine)
        case _:
            return rule(f"/**/{path.rpartition('/')[2]}", "pattern", cls, **mine)


def any_scope(seed: int) -> ScopePlan:
    chance = random.Random(seed)
    paths = [any_rule(chance, number) for number in range(chance.randrange(1, 12))]
    network = [
        NetworkRule(protocol=chance.choice(("tcp", "udp", "all")), direction=chance.choice(("egress", "ingress")), ref=ref(f"n{number}"),
                    source=chance.choice(("", "/usr/sbin/sshd")), port=chance.choice((0, 22, 80)), action=chance.choice((Action.BLOCK, Action.ALLOW)))
        for number in range(chance.randrange(3))
    ]  # fmt: skip
    posture = tuple(
        (cls, Action.BLOCK) for cls in (Class.PROCESS, Class.FILE, Class.CAPABILITIES) if chance.random() < 0.2
    )
    return scope(*paths, network=tuple(network), posture=posture)


@pytest.mark.parametrize("start", range(0, 400, 100))
def test_whatever_the_rules_are_the_ways_in_stay_open(start: int) -> None:
    for seed in range(start, start + 100):
        asked = any_scope(seed)
        made, found = judged(asked)
        assert [need for need in NEEDS if denied_by(made, need)] == [], seed
        gone = {one.ref for one in found}
        # Every rule that was asked for is in it or refused, in its order, and nothing but exceptions came to it.
        kept = [one for one in made.paths if one.ref.policy != PROTECTED]
        assert kept == [one for one in asked.paths if one.ref not in gone], seed
        assert all(one.action is Action.ALLOW for one in (*made.paths, *made.network) if one.ref.policy == PROTECTED)
        # Once judged, nothing is left to refuse: exceptions are not made twice, and no rule is refused for another's sake.
        left = ScopePlan(uid="host", cgroups=(7,), paths=tuple(kept), posture=made.posture,
                         network=tuple(one for one in made.network if one.ref.policy != PROTECTED))  # fmt: skip
        assert judged(left) == (made, ()), seed
        # A policy that is forced keeps every rule.
        forced = {
            "KubeArmorHostPolicy//p0",
            "KubeArmorHostPolicy//p1",
            "KubeArmorHostPolicy//p2",
            "KubeArmorHostPolicy//p",
        }
        assert judged(asked, EXECUTABLES, forced)[1] == (), seed


def test_a_refused_rule_denied_something_by_itself_or_with_the_exceptions_that_it_took_away() -> None:
    for seed in range(200):
        asked = any_scope(seed)
        for one in judged(asked)[1]:
            if one.ref.policy == DEFAULT_POSTURE:
                continue
            mine = [each for each in (*asked.paths, *asked.network) if each.ref == one.ref]
            assert any(each.action is Action.BLOCK or getattr(each, "limited", False) for each in mine), seed


def test_a_need_reads_as_a_sentence() -> None:
    assert str(Need(Class.FILE, "/bin/login", "/etc/shadow")) == "lets /bin/login read /etc/shadow"
    assert str(Need(Class.NETWORK, "/usr/sbin/sshd", "22")) == "lets /usr/sbin/sshd listen on port 22"
