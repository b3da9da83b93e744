# SPDX-License-Identifier: Apache-2.0
"""Which directories a rename may not take away, and what is said where they have no name."""

from __future__ import annotations

from enforcers import above
from enforcers.bpf_lsm import LsmEnforcer
from schemas.enforcement import PathRule, ScopePlan
from schemas.kernel import RULE_KEY, RuleKind
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import Action, RuleRef


def rule(match: str, value: str, action: Action = Action.BLOCK, **more: bool) -> PathRule:
    return PathRule(cls=Class.FILE, match=match, value=value, action=action, ref=RuleRef(value), **more)


def guarded(*rules: PathRule) -> list[str]:
    asked: list[str] = []

    def ident(text: str) -> int:
        asked.append(text)
        return len(asked)

    entries = above.guards(rules, ident)
    assert {RULE_KEY.struct.unpack(key)[4] for key, _ in entries} <= {RuleKind.GUARD}
    return asked


def test_every_directory_above_a_path_a_directory_and_a_pattern() -> None:
    assert guarded(rule("path", "/a/b/c")) == ["/a/", "/a/b/"]
    assert guarded(rule("directory", "/a/b/")) == ["/a/"]
    assert guarded(rule("pattern", "/srv/app/*.key")) == ["/srv/", "/srv/app/"]
    assert guarded(rule("pattern", "/srv/*/key"), rule("path", "/srv/app/x")) == ["/srv/", "/srv/app/"]
    assert guarded(rule("pattern", "/**/key")) == []
    assert guarded(rule("pattern", "/srv/app/*", Action.ALLOW)) == []
    assert guarded(rule("pattern", "/srv/app/*", Action.ALLOW, read_only=True)) == ["/srv/", "/srv/app/"]


def test_a_pattern_over_directories_without_a_name_is_held_in_part() -> None:
    rules = (rule("pattern", "/srv/app/*.key"), rule("pattern", "/srv/*/key"), rule("path", "/etc/shadow"))
    scope = ScopePlan(uid="u", cgroups=(7,), paths=rules)
    part = LsmEnforcer("/nowhere").encode(scope, lambda text: hash(text) & 0xFFFFFFFF)
    assert [(one.ref, one.code, one.backend) for one in part.partial] == [
        (rules[1].ref, RefusalCode.MOVED, Backend.BPF_LSM)
    ]
    assert (part.rules, part.refused, part.carried) == (3, (), {rules[0].ref, rules[2].ref})
    assert Class.FILE in part.whole, "nobody else is asked to hold it"
    shadow = LsmEnforcer("/nowhere", shadow=True).encode(scope, lambda text: hash(text) & 0xFFFFFFFF)
    assert (shadow.partial, {one.ref for one in shadow.refused}) == ((), {one.ref for one in rules})
