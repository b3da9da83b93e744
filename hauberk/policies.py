# SPDX-License-Identifier: Apache-2.0
"""What `hauberk policy` does: reads files and the summary store, asks the pure functions of `policy/`, prints their answers."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hauberk.client import seconds
from hauberk.output import as_json, paint, plain, table
from schemas.errors import DecodeError, PolicyError, SettingsError

if TYPE_CHECKING:
    from policy.diff import Observed
    from policy.ruleset import Ruleset


def _ruleset(files: list[str], recursive: bool = False) -> tuple[Ruleset, list[Any]]:
    from hauberk.verbs.apply import read
    from policy.ruleset import compile_ruleset

    documents = read(files, recursive, quiet=True)
    return compile_ruleset(documents), documents


def _lines(name: str) -> list[bytes]:
    if name == "-":
        return sys.stdin.buffer.read().splitlines()
    try:
        return Path(name).read_bytes().splitlines()
    except OSError as error:
        raise SettingsError(f"expected a file at `{name}`, got {error.strerror}") from error


def check(given: argparse.Namespace) -> int:
    """Every diagnostic of every file: 0 clean, 1 warnings, 2 errors."""
    from hauberk.verbs.apply import files
    from policy.diagnostics import render
    from policy.parse import parse

    names = [*given.filename, *given.files]
    if not names:
        raise SettingsError("expected policy files, got none; name them or use -f")
    levels: dict[str, int] = {}
    found: list[Any] = []
    policies = 0
    for origin, data in files(names, given.recursive):
        parsed = parse(data, origin, strict=given.strict)
        policies += len(parsed.policies)
        found += parsed.diagnostics
        for diagnostic in parsed.diagnostics:
            levels[diagnostic.level] = levels.get(diagnostic.level, 0) + 1
            if given.output == "text":
                print(render(diagnostic, parsed.text))
    if given.output == "json":
        print(as_json({"policies": policies, "diagnostics": found}))
    else:
        counts = (
            ", ".join(f"{count} {level}{'s' * (count != 1)}" for level, count in sorted(levels.items()))
            or "nothing to say"
        )
        print(f"{policies} polic{'y' if policies == 1 else 'ies'}: {counts}")
    return 2 if levels.get("error") else 1 if levels.get("warning") else 0


def test(given: argparse.Namespace) -> int:
    """Verdicts on events, or the tests that the policies carry."""
    from policy import cases
    from policy.events import BadLine
    from policy.normalise import normalise
    from policy.ruleset import compile_ruleset

    ruleset, documents = _ruleset(given.filename, given.recursive)
    if given.events is not None:
        bad = 0
        rows: list[tuple[object, ...]] = []
        for answer in cases.answer_events(ruleset, _lines(given.events)):
            if isinstance(answer, BadLine):
                bad += 1
                print(f"{given.events}:{answer.line}: {answer.reason}", file=sys.stderr)
            elif given.output == "json":
                sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
            else:
                where = (answer.rule or {}).get("position", "")
                rows.append((answer.event, answer.action, answer.policy or "-", where or "-"))
        if given.output == "table":
            print(table(("EVENT", "ACTION", "POLICY", "RULE"), rows))
        if bad:
            raise DecodeError(f"expected one event a line in `{given.events}`, {bad} of them could not be read")
        return 0
    results: list[cases.CaseResult] = []
    policies = [normalise(document) for document in documents]
    for document, policy in zip(documents, policies, strict=True):
        tests, diagnostics = cases.carried_cases(policy)
        _refuse(diagnostics)
        # A file is tested as one thing; the files of a directory need not be meant for one machine.
        beside = [other for other, its in zip(documents, policies, strict=True) if its.origin == policy.origin]
        results += cases.run_cases(compile_ruleset(beside), tests, document.name)
    for name in given.tests:
        tests, diagnostics = cases.read_cases(b"\n".join(_lines(name)).decode("utf-8", "replace"), name)
        _refuse(diagnostics)
        results += cases.run_cases(ruleset, tests, name)
    if not results:
        raise SettingsError(
            "expected events or tests, found none; give --events, --tests, or a `hauberk.io/tests` annotation in the policy"
        )
    failed = [result for result in results if not result.passed]
    if given.output == "json":
        print(as_json(results))
    else:
        for result in results:
            mark = paint("ok    ", "green") if result.passed else paint("FAILED", "red")
            print(
                f"{mark} {result.name}:{result.line} {result.expected}"
                + (f": {result.reason}" if result.reason else "")
            )
        print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


def _refuse(diagnostics: tuple[Any, ...]) -> None:
    if errors := [one for one in diagnostics if one.level == "error"]:
        raise PolicyError("; ".join(str(one) for one in errors), tuple(diagnostics))


def explain(given: argparse.Namespace) -> int:
    """Why an event gets its verdict, or what each backend can make of each rule."""
    from policy.explain import explain_event, explain_policy

    ruleset, _ = _ruleset(given.filename, given.recursive)
    if given.event is None:
        rules = [entry for policy in ruleset.policies for entry in explain_policy(policy)]
        if given.output == "json":
            print(as_json(rules))
            return 0
        names = list(rules[0].backends) if rules else []
        rows = [
            (entry.rule.policy, entry.rule.position, entry.action, *("yes" if entry.backends[name] is None else "no" for name in names))
            for entry in rules
        ]  # fmt: skip
        print(table(("POLICY", "RULE", "ACTION", *(name.upper() for name in names)), rows))
        for entry in rules:
            for name, why in entry.backends.items():
                if why is not None:
                    print(f"  {entry.rule.policy} {entry.rule.position}: {name}: {why}")
        return 0
    from policy.events import parse_event

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
        print(f"not for this workload: {', '.join(said.unselected)}")
    return 0


def observed(given: argparse.Namespace) -> Iterator[Observed]:
    """The stored behaviours of the last `--since`."""
    from hauberk.configuration import store_path
    from policy.diff import Observed
    from sinks.store.queries import SqliteReader
    from sinks.store.store import Query

    path = store_path(given)
    if not path.exists():
        raise SettingsError(
            f"expected a summary store at `{path}`, there is none; is a `store` sink running? name its state with --state"
        )
    reader = SqliteReader(str(path))
    try:
        for row in reader.behaviours(Query(since=int(time.time() - seconds(given.since)))):
            yield Observed(
                identity=row.identity, behaviour=row.behaviour, count=row.count, first=row.first, last=row.last
            )
    finally:
        reader.close()


def compare(given: argparse.Namespace) -> int:
    """Behaviours whose verdict differs between two sets of policies."""
    from policy.diff import diff

    before, _ = _ruleset([given.before])
    after, _ = _ruleset([given.after])
    changes = list(diff(before, after, observed(given)))
    if given.output == "json":
        print(as_json(changes))
    else:
        rows = [
            (change.kind, change.observed.identity.workload, change.observed.behaviour.operation.name.lower(),
             change.observed.behaviour.executable, change.observed.behaviour.resource or change.observed.behaviour.address,
             change.observed.count, _named(change.before), _named(change.after))
            for change in changes
        ]  # fmt: skip
        print(
            table(("CHANGE", "WORKLOAD", "OPERATION", "PROCESS", "RESOURCE", "COUNT", "BEFORE", "AFTER"), rows)
            if rows
            else "No behaviour changes its verdict."
        )
    return 1 if changes else 0


def _named(verdict: Any) -> str:
    return f"{verdict.action.value} ({verdict.policy})" if verdict.policy else str(verdict.action.value)


def backtest(given: argparse.Namespace) -> int:
    """What the policies would have said of the stored behaviours; progress on a terminal."""
    from policy import backtest as tests

    ruleset, _ = _ruleset(given.filename, given.recursive)
    report = None
    started = time.monotonic()
    for said in tests.backtest(ruleset, observed(given)):
        if isinstance(said, tests.Report):
            report = said
        elif sys.stderr.isatty():
            took = time.monotonic() - started
            print(
                f"\r{said.behaviours:,} behaviours, {said.events:,} events judged in {took:.0f} s",
                end="",
                file=sys.stderr,
                flush=True,
            )
    if sys.stderr.isatty():
        print(file=sys.stderr)
    assert report is not None
    if given.output == "json":
        print(as_json(plain(report)))
        return 0
    rows = [
        (row.workload, row.operation, row.action, row.policy, row.rule.position if row.rule else "-", row.count,
         ", ".join(f"{name} ({count})" for name, count in row.resources[:3]))
        for row in report.rows
    ]  # fmt: skip
    if rows:
        print(table(("WORKLOAD", "OPERATION", "ACTION", "POLICY", "RULE", "COUNT", "RESOURCES"), rows))
    totals = report.totals
    print(
        f"{totals.events:,} events of {totals.behaviours:,} behaviours since {given.since}: "
        f"{totals.blocked:,} would be blocked, {totals.audited:,} audited"
    )
    return 0


def lint(given: argparse.Namespace) -> int:
    """Rules that are valid and still a mistake; exit 1 when there are some."""
    from policy.lint import lint as findings

    ruleset, _ = _ruleset(given.filename, given.recursive)
    found = findings(ruleset)
    if given.output == "json":
        print(as_json(found))
    else:
        for one in found:
            print(f"{one.code} {one.rule.policy} {one.rule.position}: {one.message}\n     {one.recommendation}")
        print(
            f"{len(found)} finding{'s' * (len(found) != 1)} in {len(ruleset.policies)} polic{'y' if len(ruleset.policies) == 1 else 'ies'}"
        )
    return 1 if found else 0
