# SPDX-License-Identifier: Apache-2.0
"""The text of a profile: what it says, and that it never says more than the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from enforcers.apparmor import BASELINE, AppArmorEnforcer, source
from enforcers.apparmor_profile import render
from schemas.enforcement import NetworkRule, PathRule, ScopePlan
from schemas.operations import Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef


def rule(
    value: str, match: str = "path", cls: Class = Class.FILE, action: Action = Action.BLOCK, **more: Any
) -> PathRule:
    return PathRule(cls=cls, match=match, value=value, action=action, ref=RuleRef("p", position=value), **more)


def scope(*rules: PathRule | NetworkRule, **more: Any) -> ScopePlan:
    return ScopePlan(
        uid="c", cgroups=(2,), paths=tuple(one for one in rules if isinstance(one, PathRule)),
        network=tuple(one for one in rules if isinstance(one, NetworkRule)), **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "lines"),
    [
        (rule("/etc/shadow"), ['audit deny "/etc/shadow{,/}" rwkl,', 'audit deny link "/{,**}" -> "/etc/shadow{,/}",']),
        (rule("/a/", "directory"), ['audit deny "/a/{,*,*/}" rwkl,', 'audit deny link "/{,**}" -> "/a/{,*,*/}",']),
        (rule("/a/", "directory_recursive", read_only=True), ['audit deny "/a/{,**}" wl,', 'audit deny link "/{,**}" -> "/a/{,**}",']),
        (rule("/k", owner_only=True), ['audit deny other "/k{,/}" rwkl,']),
        (
            rule("/k", owner_only=True, read_only=True, action=Action.ALLOW),
            ['audit deny other "/k{,/}" rwkl,', 'audit deny owner "/k{,/}" wl,', 'audit deny link "/{,**}" -> "/k{,/}",'],
        ),
        (rule("/bin/a [1]*{x}", cls=Class.PROCESS), [r'audit deny "/bin/a \[1\]\*\{x\}" x,']),
        (rule('/q"@{HOME}', cls=Class.PROCESS), [r'audit deny "/q\"@\{HOME\}" x,']),
        (rule("nc", "execname", Class.PROCESS), ['audit deny "/{,**/}nc" x,']),
        (rule("/opt/*/run{a,b}?", "pattern", Class.PROCESS), ['audit deny "/opt/*/run{a,b}?" x,']),
        (rule("/bin/x", cls=Class.PROCESS, owner_only=True), ['audit deny other "/bin/x" x,']),
        (NetworkRule(protocol="raw", action=Action.BLOCK, ref=RuleRef("p")), ["audit deny network raw,"]),
        (NetworkRule(protocol="all", action=Action.BLOCK, ref=RuleRef("p")), ["audit deny network,"]),
    ],
)  # fmt: skip
def test_a_rule_as_text(given: PathRule | NetworkRule, lines: list[str]) -> None:
    made = render(scope(given))
    assert made.refused == ()
    assert made.carried == {given.ref}
    assert made.text.splitlines()[-len(lines) :] == lines
    assert "file," in made.text.splitlines()


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (rule("/etc/shadow", source="/bin/cat"), RefusalCode.SOURCE),
        (rule("/a\nb"), RefusalCode.PATTERN),
        (rule("/a\udc80"), RefusalCode.PATTERN),
        (rule("/a/[!b]", "pattern"), RefusalCode.PATTERN),
        (rule("/a/**/b", "pattern"), RefusalCode.PATTERN),
        (NetworkRule(protocol="tcp", action=Action.BLOCK, ref=RuleRef("p")), RefusalCode.SOCKET_FAMILY),
        (NetworkRule(protocol="all", port=80, end_port=80, action=Action.BLOCK, ref=RuleRef("p")), RefusalCode.ADDRESS),
        # Of a network policy: peers, whichever they are, and not the sockets that stay on the machine.
        (
            NetworkRule(protocol="all", action=Action.BLOCK, ref=RuleRef("p", "KubeArmorNetworkPolicy")),
            RefusalCode.ADDRESS,
        ),
        (NetworkRule(protocol="stream", action=Action.BLOCK, ref=RuleRef("p"), no_terminal=True), RefusalCode.TERMINAL),
        (NetworkRule(protocol="stream", action=Action.ALLOW, ref=RuleRef("p"), no_terminal=True), RefusalCode.TERMINAL),
        (NetworkRule(protocol="all", action=Action.BLOCK, ref=RuleRef(DEFAULT_POSTURE)), RefusalCode.ADDRESS),
    ],
)
def test_what_a_profile_cannot_say_is_refused(given: PathRule | NetworkRule, code: RefusalCode) -> None:
    made = render(scope(given))
    assert (made.text, made.carried) == ("", frozenset())
    assert [(one.ref, one.code) for one in made.refused] == [(given.ref, code)]


@pytest.mark.parametrize(
    ("first", "second", "meets"),
    [
        (rule("/etc/hosts", action=Action.ALLOW), rule("/etc/", "directory_recursive"), True),
        (rule("/etc/hosts", action=Action.ALLOW), rule("/var/", "directory_recursive"), False),
        (rule("/etc/hosts", read_only=True), rule("/etc/", "directory"), True),
        (rule("/a/b/", "directory", action=Action.ALLOW), rule("/a/", "directory_recursive"), True),
        (rule("/x/*.key", "pattern", action=Action.ALLOW), rule("/etc/", "directory"), True),
        (rule("/bin/nc", cls=Class.PROCESS, action=Action.ALLOW), rule("nc", "execname", Class.PROCESS), True),
        (rule("/bin/ls", cls=Class.PROCESS, action=Action.ALLOW), rule("nc", "execname", Class.PROCESS), False),
        (rule("/etc/hosts", action=Action.ALLOW, source="/bin/a"), rule("/etc/", "directory_recursive"), True),
    ],
)
def test_a_deny_that_an_exception_meets_is_refused(first: PathRule, second: PathRule, meets: bool) -> None:
    made = render(scope(first, second))
    assert (second.ref not in made.carried) is meets
    assert any((one.ref, one.code) == (second.ref, RefusalCode.EXCEPTION) for one in made.refused) is meets


@pytest.mark.parametrize(
    ("first", "second", "meets"),
    [
        ({"protocol": "tcp"}, "stream", True),
        ({"protocol": "raw"}, "stream", False),
        ({"protocol": "raw"}, "all", True),
        ({"protocol": "stream", "source": "/bin/a"}, "stream", True),
        ({"protocol": "tcp", "action": Action.BLOCK, "no_terminal": True}, "stream", True),
        ({"protocol": "tcp", "cidr": "10.0.0.0/8"}, "stream", False),
    ],
)
def test_sockets_that_an_exception_leaves_free_are_not_denied(first: dict[str, Any], second: str, meets: bool) -> None:
    exception = NetworkRule(**({"action": Action.ALLOW, "ref": RuleRef("p", position="a")} | first))
    block = NetworkRule(protocol=second, action=Action.BLOCK, ref=RuleRef("p", position="b"))
    made = render(scope(exception, block))
    assert (block.ref not in made.carried) is meets
    assert any((one.ref, one.code) == (block.ref, RefusalCode.EXCEPTION) for one in made.refused) is meets


def test_a_terminal_that_is_not_asked_for_leaves_what_it_frees_free() -> None:
    limited = rule("/etc/a", no_terminal=True)
    made = render(scope(limited, rule("/etc/", "directory"), posture=((Class.FILE, Action.BLOCK),)))
    assert made.text == ""
    assert [one.code for one in made.refused] == [RefusalCode.TERMINAL, RefusalCode.EXCEPTION, RefusalCode.POSTURE]


def test_a_preset_that_allows_is_an_exception_to_nothing() -> None:
    block = rule("/etc/", "directory")
    assert render(scope(rule("protectProc", "preset", action=Action.ALLOW), block)).carried == {block.ref}


def test_a_posture_of_sockets_is_refused() -> None:
    made = render(scope(posture=((Class.NETWORK, Action.BLOCK),)))
    assert (made.text, [one.code for one in made.refused]) == ("", [RefusalCode.POSTURE])


def test_a_posture_allows_what_is_named_and_nothing_else() -> None:
    made = render(
        scope(
            rule("/bin/a", cls=Class.PROCESS, action=Action.ALLOW),
            rule("/b/", "directory", cls=Class.PROCESS, action=Action.ALLOW, owner_only=True),
            posture=((Class.PROCESS, Action.BLOCK),),
        )
    )
    lines = made.text.splitlines()
    assert "file," not in lines
    assert '"/{,**}" ix,' not in lines
    assert {'"/{,**}" rwkl,', '"/{,**}" m,', '"/bin/a" ix,', 'owner "/b/{,*,*/}" ix,'} <= set(lines)


def test_a_posture_with_a_hole_is_not_held() -> None:
    made = render(
        scope(
            rule("/bin/a", cls=Class.PROCESS, action=Action.ALLOW, source="/bin/sh"),
            posture=((Class.PROCESS, Action.BLOCK),),
        )
    )
    assert made.text == ""
    assert (RuleRef(DEFAULT_POSTURE), RefusalCode.POSTURE) in [(one.ref, one.code) for one in made.refused]


def test_containers_keep_what_their_runtime_denies_and_services_do_not_get_it() -> None:
    text = source("hauberk-web", "", "empty")
    assert all(f"  {line}\n" in text for line in BASELINE)
    assert "deny" not in source("hauberk-host-backup", "", "empty")
    assert "deny" not in source("hauberk-host", "", "empty")
    assert "deny" in source("hauberk-hosting", "", "empty")
    assert "profile rules-empty {" in text


@pytest.mark.parametrize("letter", ["\x85", "\u2028", "\u2029", "\xa0"])
def test_a_path_stays_one_line_whatever_is_in_it(letter: str) -> None:
    """Broken in two, the rule would be in force for another path."""
    made = render(scope(rule(f"/a{letter}b")))
    assert made.carried
    lines = [line.strip(" ") for line in source("hauberk-x", made.text, "m").split("\n")]
    assert f'audit deny "/a{letter}b{{,/}}" rwkl,' in lines


def test_profiles_of_others_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "apparmor").mkdir()
    (tmp_path / "apparmor/profiles").write_bytes(
        b"caf\xe9 (enforce)\nhauberk-x (enforce)\nhauberk-x//rules-abc (enforce)\nhauberk-y (complain)\n"
    )
    assert AppArmorEnforcer(securityfs=str(tmp_path)).loaded() == {"hauberk-x": "abc"}
