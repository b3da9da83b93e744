# SPDX-License-Identifier: Apache-2.0
"""Path rules as map entries; what the kernel cannot look up is refused with what depended on it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from enforcers.paths import encode
from enforcers.signal import SignalEnforcer
from schemas.enforcement import PathRule, ScopePlan
from schemas.kernel import RULE, RULE_KEY, RuleAction, RuleFlag, RuleKind, ScopeFlag
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

REF = RuleRef("p", "KubeArmorPolicy", "shop", "spec.file.matchPaths[0]")


def ident(text: str) -> int:
    return sum(text.encode()) + 1


def rule(match: str, value: str, action: Action = Action.BLOCK, **words: Any) -> PathRule:
    return PathRule(**({"cls": Class.FILE, "match": match, "value": value, "action": action, "ref": REF} | words))


def test_each_rule_is_an_entry() -> None:
    rules = (
        rule("path", "/a", source="/bin/x"), rule("directory", "/b/"), rule("directory_recursive", "/c/"),
        rule("execname", "nc", cls=Class.PROCESS), rule("path", "/d", Action.ALLOW, owner_only=True, read_only=True),
    )  # fmt: skip
    entries, refused, holes = encode(rules, ident, Backend.SIGNAL, "u")
    keys = [RULE_KEY.struct.unpack(key) for key, _ in entries]
    assert keys == [
        (0, ident("/a"), ident("/bin/x"), Class.FILE, RuleKind.EXACT),
        (0, ident("/b/"), 0, Class.FILE, RuleKind.DIRECTORY),
        (0, ident("/c/"), 0, Class.FILE, RuleKind.RECURSIVE),
        (0, ident("nc"), 0, Class.PROCESS, RuleKind.EXECNAME),
        (0, ident("/d"), 0, Class.FILE, RuleKind.EXACT),
    ]
    assert RULE.struct.unpack(entries[4][1])[:2] == (RuleAction.ALLOW, RuleFlag.OWNER_ONLY | RuleFlag.READ_ONLY)
    assert (refused, holes) == ((), set())


def test_of_two_rules_on_one_key_the_first_decides() -> None:
    entries, _, _ = encode((rule("path", "/a"), rule("path", "/a", Action.ALLOW)), ident, Backend.SIGNAL, "u")
    assert [RULE.struct.unpack(value)[0] for _, value in entries] == [RuleAction.BLOCK]


def test_a_block_behind_a_pattern_that_allows_is_refused_with_it() -> None:
    rules = (
        rule("path", "/etc/shadow"),
        rule("pattern", "/etc/*.conf", Action.ALLOW),
        rule("directory", "/etc/"),
        rule("directory", "/bin/", cls=Class.PROCESS),
    )
    entries, refused, holes = encode(rules, ident, Backend.SIGNAL, "u")
    assert len(entries) == 2
    assert ["pattern" in one.reason for one in refused] == [True, False]
    assert "too much would be stopped" in refused[1].reason
    assert holes == {Class.FILE}


def test_a_pattern_that_blocks_takes_nothing_with_it() -> None:
    entries, refused, holes = encode((rule("pattern", "/*"), rule("path", "/a")), ident, Backend.SIGNAL, "u")
    assert (len(entries), len(refused), holes) == (1, 1, set())


def test_what_a_limit_leaves_free_is_an_exception_too() -> None:
    """Block and Allow with `pts: false` mean the same; what the backend cannot ask it must not deny by a rule behind it."""
    for action in (Action.BLOCK, Action.ALLOW):
        limited = rule("path", "/etc/a", action, no_terminal=True)
        entries, refused, holes = encode((limited, rule("directory", "/etc/")), ident, Backend.SIGNAL, "u")
        assert entries == ()
        assert [one.code for one in refused] == [RefusalCode.TERMINAL, RefusalCode.EXCEPTION]
        assert holes == {Class.FILE}
        part = SignalEnforcer("/nowhere").encode(
            ScopePlan(uid="u", cgroups=(7,), paths=(limited,), posture=((Class.FILE, Action.BLOCK),), signal=True),
            ident,
        )
        assert part.flags == ScopeFlag(0)
        assert {one.code for one in part.refused} == {RefusalCode.TERMINAL, RefusalCode.POSTURE}


def test_a_limited_rule_that_allows_denies_and_needs_its_exceptions() -> None:
    rules = (rule("pattern", "/etc/*.d", Action.ALLOW), rule("directory", "/etc/", Action.ALLOW, owner_only=True))
    entries, refused, _ = encode(rules, ident, Backend.SIGNAL, "u")
    assert (entries, [one.code for one in refused]) == ((), [RefusalCode.PATTERN, RefusalCode.EXCEPTION])


def test_a_preset_that_allows_is_an_exception_to_nothing() -> None:
    preset = rule("preset", "protectProc", Action.ALLOW)
    entries, _, holes = encode((preset, rule("path", "/a")), ident, Backend.SIGNAL, "u")
    assert (len(entries), holes) == (1, set())


def test_a_rule_is_no_longer_than_what_is_kept_of_a_long_path() -> None:
    rules = [rule("directory_recursive", "/" + "d" * (length - 2) + "/") for length in (4091, 4092)]
    entries, refused, _ = encode(rules, ident, Backend.SIGNAL, "u")
    assert (len(entries), [one.reason for one in refused]) == (1, ["its path is longer than 4091 bytes"])


def test_without_an_opt_in_all_that_would_deny_is_told() -> None:
    """The limits of an Allow rule and the posture too: nobody else says that nothing holds them."""
    rules = (rule("path", "/a"), rule("path", "/b", Action.ALLOW), rule("path", "/c", Action.ALLOW, read_only=True))
    numbered = tuple(
        msgspec.structs.replace(one, ref=msgspec.structs.replace(REF, index=at)) for at, one in enumerate(rules)
    )
    scope = ScopePlan(uid="u", cgroups=(7,), paths=numbered, posture=((Class.FILE, Action.BLOCK),))
    part = SignalEnforcer("/nowhere").encode(scope, ident)
    assert (part.flags, part.rules) == (ScopeFlag(0), 0)
    assert [one.ref for one in part.refused] == [numbered[0].ref, numbered[2].ref, RuleRef(DEFAULT_POSTURE)]
    assert {one.code for one in part.refused} == {RefusalCode.NO_OPT_IN}


@pytest.mark.parametrize(
    ("rules", "posture", "closed", "expected"),
    [
        ([rule("path", "/a")], (), True, ScopeFlag.CLOSED),
        ([rule("path", "/a")], (), False, ScopeFlag(0)),
        ([rule("path", "/a", Action.ALLOW)], (), True, ScopeFlag(0)),
        ([rule("path", "/a", Action.ALLOW, read_only=True)], (), True, ScopeFlag.CLOSED),
        ([rule("path", "/a", Action.ALLOW)], ((Class.FILE, Action.BLOCK),), True, ScopeFlag.CLOSED),
        ([], (), True, ScopeFlag(0)),
    ],
)
def test_what_cannot_be_resolved_is_stopped_where_something_is(
    rules: list[PathRule], posture: Any, closed: bool, expected: ScopeFlag
) -> None:
    scope = ScopePlan(uid="u", cgroups=(7,), paths=tuple(rules), posture=posture, signal=True)
    assert SignalEnforcer("", closed=closed).encode(scope, ident).flags & ScopeFlag.CLOSED == expected
