# SPDX-License-Identifier: Apache-2.0
"""The checks of `policy/tools/lint.py`: one function per code, each over policies that meet on the same workloads.

A check yields findings and never raises; what it recommends must be valid. To add one: write it here, name it in `CHECKS` of
`policy/tools/lint.py`, add a case to `tests/policy/test_lint.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from policy.judge.compile import posture_of
from policy.judge.overlap import covers_path
from policy.match import glob
from policy.rules.lockout import EXECUTABLES
from policy.rules.visibility import asked, visibility
from policy.text.coverage import unseen
from policy.tools.lint_findings import Finding, Together
from schemas.operations import Class
from schemas.rules import Match, Rule
from schemas.verdict import Action

LINKED: Final = frozenset(
    {
        "awk", "c++", "cc", "editor", "g++", "gcc", "halt", "insmod", "iptables", "java", "ld", "lsmod", "modprobe", "nc", "netcat",
        "pager", "poweroff", "python", "python3", "reboot", "rmmod", "sh", "shutdown", "vi",
    }
)  # fmt: skip
"""Commands that are symlinks on today's distributions (Debian, Fedora): the kernel reports what they point to."""
_SHOWN: Final = 10
"""Patterns named for one directory that they cover."""
SHARED_SYSTEM: Final = frozenset({"/", "/usr/", "/etc/", "/lib/", "/usr/lib/", "/bin/", "/usr/bin/", "/dev/", "/proc/"})


def _place(rule: Rule) -> tuple[object, ...]:
    # Not the rule itself: severity, tags and message make no difference to what matches.
    return (
        rule.match, rule.value, rule.recursive, rule.class_, rule.peer, rule.device, frozenset(rule.sources), rule.syscalls,
    )  # fmt: skip


def _firsts(rules: Iterable[Rule], by: Callable[[Rule], object]) -> dict[object, Rule]:
    """Of rules that are alike the first one: pairs of a hundred thousand would be ten thousand million."""
    firsts: dict[object, Rule] = {}
    for rule in rules:
        found = firsts.setdefault(by(rule), rule)
        if _first(rule, found):
            firsts[by(rule)] = rule
    return firsts


def _limited(rule: Rule) -> bool:
    return rule.owner_only or rule.read_only or rule.pts is False or rule.has_args


def _first(rule: Rule, other: Rule) -> bool:
    return (rule.key, rule.index) < (other.key, other.index)


def _where(rule: Rule) -> str:
    return f"{rule.key.name} {rule.position}"


def shadowed(together: Together) -> Iterator[Finding]:
    """L101: a pattern always decides before this directory rule.

    Of everything that is more specific only a pattern can cover all that a less specific rule does: patterns go before
    directories, so `/srv/**` leaves the rule for `/srv/` nothing but the directory object.
    """
    for table in ("process", "file"):
        rules = together.tables.get(table, [])
        deciding = [rule for rule in rules if rule.action is not Action.AUDIT]
        directories = [rule for rule in deciding if rule.match is Match.DIRECTORY]
        covering: dict[str, list[tuple[Rule, bool]]] = {}
        for other in deciding:
            if other.match is not Match.PATTERN or _limited(other):
                continue
            *beginning, last = glob.parse(other.value)
            prefix = glob.plain(tuple(beginning))
            if prefix is not None and last in (glob.STAR, glob.DOUBLE_STAR):
                covering.setdefault(prefix, []).append((other, last == glob.STAR))
        for rule in directories:
            beginnings = (rule.value[:end] for end in range(len(rule.value) + 1))
            candidates = (pair for beginning in beginnings for pair in covering.get(beginning, ()))
            found = [
                other for other, one_level in candidates
                if _by(other, rule) and not (one_level and (rule.recursive or not other.value.startswith(rule.value)))
            ][:_SHOWN]  # fmt: skip
            for other in found:
                yield Finding(
                    code="L101",
                    rule=rule.ref,
                    other=other.ref,
                    message=f"never decides: {_where(other)} ({other.action.value} `{other.value}`) covers it and goes first",
                    recommendation="remove it, or write the exception as a path or a longer pattern",
                )


def _by(other: Rule, rule: Rule) -> bool:
    # A sourced rule goes before one without, and one without covers more: neither is ever shadowed by the other.
    return bool(other.sources) == bool(rule.sources) and set(rule.sources) <= set(other.sources)


def contradictory(together: Together) -> Iterator[Finding]:
    """L102: Allow and Block of the same thing; Block wins."""
    for rules in together.tables.values():
        blocking = _firsts((rule for rule in rules if rule.action is Action.BLOCK), _place)
        for rule in rules:
            other = blocking.get(_place(rule)) if rule.action is Action.ALLOW else None
            if other is not None:
                yield Finding(
                    code="L102",
                    rule=rule.ref,
                    other=other.ref,
                    message=f"allows what {_where(other)} blocks (`{rule.value}`, same sources): the Block wins",
                    recommendation="keep one of the two",
                )


def repeated(together: Together) -> Iterator[Finding]:
    """L103: the same rule twice."""
    for rules in together.tables.values():
        firsts = _firsts(rules, _said)
        for rule in rules:
            other = firsts[_said(rule)]
            if other is not rule:
                yield Finding(
                    code="L103",
                    rule=rule.ref,
                    other=other.ref,
                    message=f"says the same as {_where(other)}",
                    recommendation="remove one; alerts name the first",
                )


def _said(rule: Rule) -> object:
    return (rule.action, _place(rule), _limits(rule))


def _limits(rule: Rule) -> tuple[object, ...]:
    return (rule.owner_only, rule.read_only, rule.pts is False, rule.has_args, frozenset(rule.allowed_args))


def unreachable(together: Together) -> Iterator[Finding]:
    """L104: nothing can ever match."""
    for rule in together.rules:
        if rule.match is Match.PATTERN and not _starts_with_slash(glob.parse(rule.value)):
            yield Finding(
                code="L104",
                rule=rule.ref,
                message=f"never matches: paths begin with `/`, the pattern `{rule.value}` does not",
                recommendation=f"write `/**/{rule.value}`",
            )
        if rule.match in (Match.PATH, Match.DIRECTORY) and "/../" in rule.value + "/":
            yield Finding(
                code="L104",
                rule=rule.ref,
                message=f"never matches: the kernel reports paths without `..`, `{rule.value}` has it",
                recommendation="write the path without `..`",
            )


def _starts_with_slash(sequence: glob.Sequence) -> bool:
    for node in sequence:
        if isinstance(node, glob.One):
            return any(low <= glob.SLASH <= high for low, high in node.ranges)
        if isinstance(node, glob.Many):
            if any(low <= glob.SLASH <= high for low, high in node.ranges):
                return True
        elif any(not option or _starts_with_slash(option) for option in node.options):
            return True
    return False


def over_broad(together: Together) -> Iterator[Finding]:
    """L105: a Block that takes much more than anybody wants."""
    for rule in together.rules:
        if rule.action is not Action.BLOCK or rule.sources or _limited(rule):
            continue
        wide = rule.match is Match.DIRECTORY and rule.recursive and rule.value in SHARED_SYSTEM
        wide |= rule.match is Match.PATTERN and all(
            isinstance(node, glob.Many) or node == glob.SEPARATOR for node in glob.parse(rule.value)
        )
        wide |= rule.match is Match.PROTOCOL and rule.value == "all"
        if wide:
            yield Finding(
                code="L105",
                rule=rule.ref,
                message=f"blocks `{rule.value}` for everybody: most programs will not start or not work",
                recommendation="name smaller directories, limit it with fromSource or readOnly, or audit it first",
            )


def protected(together: Together) -> Iterator[Finding]:
    """L106: a host rule that would stop what the node needs."""
    if not together.host:
        return
    for rule in together.tables.get("process", ()):
        if rule.action is Action.BLOCK and not rule.sources and not rule.has_args:
            hit = next((path for path in EXECUTABLES if covers_path(rule, path)), None)
            if hit is not None:
                yield Finding(
                    code="L106",
                    rule=rule.ref,
                    message=f"blocks {hit}, which the node cannot do without",
                    recommendation="protected processes stay allowed unless overridden; exclude them from the rule",
                )


def invisible(together: Together) -> Iterator[Finding]:
    """L107: an Audit rule about a class that is not logged."""
    settings = together.settings
    seen = visibility(settings.host_visibility if together.host else settings.visibility, ()).classes
    for rule in together.rules:
        counts = rule.action is Action.AUDIT and rule.match is not Match.PRESET and rule.class_ is not Class.DEVICE
        if counts and unseen(rule) is None and not asked((rule,)) <= seen:
            yield Finding(
                code="L107",
                rule=rule.ref,
                message=f"audits {rule.class_.label}, which is not logged: alerts come, the log around them does not",
                recommendation=f"add `{rule.class_.name.lower()}` to the visibility of these workloads",
            )


def plain_pattern(together: Together) -> Iterator[Finding]:
    """L108: a pattern that is a path."""
    for rule in together.rules:
        if rule.match is Match.PATTERN:
            text = glob.plain(glob.parse(rule.value))
            if text is not None:
                yield Finding(
                    code="L108",
                    rule=rule.ref,
                    message=f"the pattern `{rule.value}` matches one path only",
                    recommendation=f"use matchPaths with `path: {text}`: it is more specific, and found by hash",
                )


def linked(together: Together) -> Iterator[Finding]:
    """L109: an execname that is a symlink on most systems. Paths are followed; a bare name has no link to follow."""
    for rule in together.rules:
        if rule.match is Match.EXECNAME and rule.value in LINKED:
            yield Finding(
                code="L109",
                rule=rule.ref,
                message=f"`{rule.value}` is a symlink on most systems, and the kernel reports the name of the file behind it",
                recommendation=f"use matchPaths with `path: /usr/bin/{rule.value}`, whose link is followed in each container",
            )


def toothless(together: Together) -> Iterator[Finding]:
    """L111: a whitelist whose posture lets everything pass."""
    settings = together.settings
    for table, rules in together.tables.items():
        allowing = [rule for rule in rules if rule.action is Action.ALLOW]
        name = posture_of(table)
        if not allowing or table in ("preset", "syscall"):
            continue
        posture = getattr(settings, f"host_{name}" if together.host or name == "device" else name, "audit")
        if posture != "block":
            what = "is only audited" if posture == "audit" else "passes without a word"
            yield Finding(
                code="L111",
                rule=min(allowing, key=lambda rule: (rule.key, rule.index)).ref,
                message=f"Allow rules make {table} a whitelist, and what is not on it {what} (posture {posture})",
                recommendation=f"set the {name} posture to block where the list is complete",
            )


def presets_allow(together: Together) -> Iterator[Finding]:
    """L112: a preset that allows."""
    for rule in together.tables.get("preset", ()):
        if rule.action is Action.ALLOW:
            yield Finding(
                code="L112",
                rule=rule.ref,
                message=f"preset {rule.value} with Allow does nothing: presets stand beside the rules and never loosen them",
                recommendation="use Block or Audit, or remove it",
            )
