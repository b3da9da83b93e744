# SPDX-License-Identifier: Apache-2.0
"""What `hauberk policy check|test|explain|lint` do: read files, ask the pure functions of `policy/`, print their answers.

`diff` and `backtest`, which need the summary store, are in `hauberk/backtests.py`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hauberk import inputs
from hauberk.output import as_json, paint, printable, table
from schemas.errors import DecodeError, PolicyError, SettingsError
from schemas.file_text import not_utf8

if TYPE_CHECKING:
    from policy.ruleset import PostureSettings, Ruleset
    from policy.tools.lint_findings import Holding

SHOWN: Final = 500
"""Findings printed as text: nobody reads more, and 30,000 policies may have one each."""


def postures(given: argparse.Namespace) -> PostureSettings:
    """The postures of the configuration, so that a test says what a node with the same settings would do."""
    from hauberk.configuration import load
    from policy.ruleset import PostureSettings

    try:
        return msgspec.convert(load(given)[0].tree.get("postures", {}), PostureSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings: `postures`: {error}; `hauberk settings --reference` lists the keys") from error


def kills(given: argparse.Namespace) -> bool:
    """Whether the configuration opts in to kills for every policy: `planner.plan.signal`."""
    from hauberk.configuration import load

    tree: Any = load(given)[0].tree
    for word in ("planner", "plan", "signal"):
        tree = tree.get(word) if isinstance(tree, dict) else None
    return tree is True


def ruleset_of(given: argparse.Namespace, files: list[str]) -> tuple[Ruleset, list[Any]]:
    """What is in `files`, compiled, and the documents. PolicyError when any of them has an error."""
    from hauberk.policy_files import read
    from policy.ruleset import compile_ruleset

    documents = read(files, getattr(given, "recursive", False), quiet=True, sources=given)
    return compile_ruleset(documents, postures(given)), documents


def _lines(name: str) -> list[bytes]:
    return inputs.read(name, "a file", inputs.EVENTS).splitlines()


def _tests(name: str) -> str:
    try:
        return inputs.read(name, "a file of tests", inputs.POLICIES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"expected a file of tests at `{name}`, got {not_utf8(error)}") from error


def check(given: argparse.Namespace) -> int:
    """Every diagnostic of every file: 0 clean, 1 warnings, 2 errors."""
    from hauberk.policy_files import files
    from policy.parse import parse
    from policy.text.diagnostics import render
    from policy.tools.lockouts import locking

    levels: dict[str, int] = {}
    found: list[Any] = []
    policies = shown = 0
    for origin, data in files(given.filename, given.recursive, given):
        parsed = parse(data, origin, strict=given.strict)
        policies += len(parsed.policies)
        told = (
            *parsed.diagnostics,
            *(locking(parsed.policies, origin, postures(given), strict=given.strict) if parsed.ok else ()),
        )
        found += told
        for diagnostic in told:
            levels[diagnostic.level] = levels.get(diagnostic.level, 0) + 1
            shown += 1
            if given.output == "text" and shown <= SHOWN:
                print(render(diagnostic, parsed.text))
    if given.output == "json":
        print(as_json({"policies": policies, "diagnostics": found}))
    else:
        counts = (
            ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in sorted(levels.items()))
            or "nothing to say"
        )
        if shown > SHOWN:
            print(f"{shown - SHOWN} more findings are not shown; `-o json` lists them")
        print(f"{policies} polic{'y' if policies == 1 else 'ies'}: {counts}")
    return 2 if levels.get("error") else 1 if levels.get("warning") else 0


def test(given: argparse.Namespace) -> int:
    """Verdicts on events, or the tests that the policies carry."""
    from policy.rules.normalise import normalise
    from policy.ruleset import compile_ruleset
    from policy.tools import cases
    from policy.tools.events import BadLine, Notice

    ruleset, documents = ruleset_of(given, given.filename)
    if given.events is not None:
        bad = 0
        notices: dict[str, int] = {}
        rows: list[tuple[object, ...]] = []
        for answer in cases.answer_events(ruleset, _lines(given.events)):
            if isinstance(answer, BadLine):
                bad += 1
                print(f"{given.events}:{answer.line}: {answer.reason}", file=sys.stderr)
            elif isinstance(answer, Notice):
                notices[answer.operation] = notices.get(answer.operation, 0) + 1
            elif given.output == "json":
                sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            else:
                where = (answer.rule or {}).get("position", "")
                rows.append((answer.event, answer.action, answer.policy or "-", where or "-", answer.shadow or "-"))
        if given.output == "table":
            print(table(("EVENT", "ACTION", "POLICY", "RULE", "SHADOW"), rows))
        if notices:
            kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in notices.items())
            total = sum(notices.values())
            print(
                f"{given.events}: skipped {total} notice{'s' * (total != 1)} that {'is no event' if total == 1 else 'are no events'}: {kinds}",
                file=sys.stderr,
            )
        if bad:
            raise DecodeError(f"expected one event a line in `{given.events}`, {bad} of them could not be read")
        return 0
    results: list[cases.CaseResult] = []
    policies = [normalise(document) for document in documents]

    def together(origin: str) -> Ruleset:
        # A file is tested as one thing; the files of a directory need not be meant for one machine.
        beside = [other for other, its in zip(documents, policies, strict=True) if its.origin == origin]
        return compile_ruleset(beside, ruleset.settings)

    for document, policy in zip(documents, policies, strict=True):
        tests, diagnostics = cases.carried_cases(policy, document.positions)
        _refuse(diagnostics)
        results += cases.run_cases(together(policy.origin), tests, document.name, policy.origin)
    for name in dict.fromkeys(policy.origin for policy in policies):
        if (found := tests_beside(name)) is not None and str(found) not in given.tests:
            tests, diagnostics = cases.read_cases(_tests(str(found)), str(found))
            _refuse(diagnostics)
            results += cases.run_cases(together(name), tests, file=str(found))
    for name in given.tests:
        tests, diagnostics = cases.read_cases(_tests(name), name)
        _refuse(diagnostics)
        results += cases.run_cases(ruleset, tests, file=name)
    if not results:
        raise SettingsError(
            "expected events or tests, found none; give --events, --tests, a `hauberk.io/tests` annotation in the policy, "
            "or a file NAME.tests.yaml beside NAME.yaml"
        )
    failed = [result for result in results if not result.passed]
    if given.output == "json":
        print(as_json(results))
    else:
        for result in results:
            mark = paint("ok    ", "green") if result.passed else paint("FAILED", "red")
            print(
                f"{mark} {result.file}:{result.line}: {printable(f'{result.name}: {result.reason or result.expected}')}"
            )
        print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def tests_beside(origin: str) -> Path | None:
    """`web.tests.yaml` beside `web.yaml` (or .yml, .json); None when there is none."""
    path = Path(origin)
    return next(
        (file for end in (".yaml", ".yml") if (file := path.with_name(f"{path.stem}.tests{end}")).is_file()), None
    )


def _refuse(diagnostics: tuple[Any, ...]) -> None:
    if errors := [one for one in diagnostics if one.level == "error"]:
        raise PolicyError("; ".join(str(one) for one in errors), tuple(diagnostics))


def explain(given: argparse.Namespace) -> int:
    """Why an event gets its verdict, or what each backend can make of each rule."""
    from policy.tools.explain import MISSING_HERE, explain_event, explain_policy

    ruleset, _ = ruleset_of(given, given.filename)
    if given.event is None:
        signal = kills(given)
        rules = [entry for policy in ruleset.policies for entry in explain_policy(policy, signal=signal)]
        if given.output == "json":
            print(as_json(rules))
            return 0
        names = list(rules[0].backends) if rules else []
        lines = [(entry.rule.policy, entry.rule.position, entry.action, *map(entry.cell, names)) for entry in rules]
        print(table(("POLICY", "RULE", "ACTION", *(name.upper() for name in names)), lines))
        print(f"`later`: no node uses {' or '.join(MISSING_HERE)} unless `enforcement.backends` names it; elsewhere "
              "such a rule is only audited where nothing else says `yes`")  # fmt: skip
        for name, position, unseen in dict.fromkeys(
            (one.rule.policy, one.rule.position, one.unseen) for one in rules if one.unseen
        ):
            print(f"  {name} {position}: {unseen}")
        for entry in rules:
            for name, why in entry.backends.items():
                if why is not None and not (entry.unseen and why in entry.unseen):
                    missing = " (off by default)" if name in entry.not_in_this_version else ""
                    print(f"  {entry.rule.policy} {entry.rule.position}: {name}{missing}: {why}")
        for name, note in dict.fromkeys((entry.rule.policy, entry.note) for entry in rules if entry.note):
            print(f"  {name}: {note}")
        return 0
    from policy.tools.events import parse_event

    text = given.event
    if text == "-" or text.startswith("@"):
        text = b"\n".join(_lines(text.removeprefix("@"))).decode("utf-8", "replace")
    event = parse_event(text.encode())
    said = explain_event(ruleset, event.identity, event.behaviour, event.arguments)
    if given.output == "json":
        print(as_json(said))
        return 0
    print(said.summary)
    if said.weighed:
        rows = [
            ("*" if one.decides else "", one.rule.policy, one.rule.position, one.says or "-", one.why)
            for one in said.weighed
        ]
        print(table(("", "POLICY", "RULE", "SAYS", "WHY"), rows))
    if said.unselected:
        from schemas.policy import reference

        print(f"not for this workload: {', '.join(map(reference, said.unselected))}")
    return 0


def holding(given: argparse.Namespace) -> Holding:
    """With what Block rules are held where the configuration is in force."""
    from hauberk.configuration import load
    from policy.rules.backends import ALL, HERE, NAMES
    from policy.tools.lint_findings import Holding

    tree = load(given)[0].tree

    def at(*words: str) -> Any:
        found: Any = tree
        for word in words:
            found = found.get(word) if isinstance(found, dict) else None
        return found

    named = at("enforcement", "backends")
    backends = tuple(one for one in ALL if NAMES[one] in named) if isinstance(named, list | tuple) else HERE
    return Holding(
        backends=backends,
        signal=kills(given),
        hosts=bool(at("planner", "plan", "host_cgroups")),
        rings_stopped=at("enforcement", "io_uring") == "stop",
    )


def lint(given: argparse.Namespace) -> int:
    """Rules that are valid and still a mistake, and those that nothing holds; exit 1 for mistakes, with --strict for all."""
    from policy.tools.lint import lint as findings

    ruleset, _ = ruleset_of(given, given.filename)
    found = findings(ruleset, holding(given))
    counts = {level: sum(one.level == level for one in found) for level in ("warning", "note")}
    if given.output == "json":
        print(as_json(found))
    else:
        # A list of forty executables has one thing wrong with it, not forty.
        alike: dict[tuple[str, ...], list[str]] = {}
        for one in found:
            key = (
                one.level,
                one.code,
                one.rule.kind,
                one.rule.namespace,
                one.rule.policy,
                one.message,
                one.recommendation,
            )
            alike.setdefault(key, []).append(one.rule.position)
        for (level, code, _, _, policy, message, recommendation), places in list(alike.items())[:SHOWN]:
            print(f"{level}[{code}] {policy} {_together(places)}: {message}\n     {recommendation}")
        if len(alike) > SHOWN:
            print(f"{len(alike) - SHOWN} more are not shown; `-o json` lists them")
        by_level = ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in counts.items())
        total = len(ruleset.policies)
        print(
            f"{len(found)} finding{'s' * (len(found) != 1)} in {total} polic{'y' if total == 1 else 'ies'}: {by_level}"
        )
    return 1 if counts["warning"] or (given.strict and found) else 0


def _together(positions: list[str]) -> str:
    """`a[0], a[1], a[2], b[0]` as `a[0..2], b[0]`."""
    runs: list[list[str]] = []
    for position in positions:
        name, _, number = position.rpartition("[")
        if runs and runs[-1][0] == name and runs[-1][2] and f"{int(runs[-1][2]) + 1}]" == number:
            runs[-1][2] = number[:-1]
        elif name and number[:-1].isdecimal():
            runs.append([name, number[:-1], number[:-1]])
        else:
            runs.append([position, "", ""])
    return ", ".join(
        name if not first else f"{name}[{first}]" if first == last else f"{name}[{first}..{last}]"
        for name, first, last in runs
    )
