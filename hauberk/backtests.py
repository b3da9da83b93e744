# SPDX-License-Identifier: Apache-2.0
"""What `hauberk policy diff|backtest` do: judge the behaviours of the summary store again, and say what came of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from hauberk import in_force
from hauberk.client import seconds
from hauberk.output import as_json, plain, table
from hauberk.policies import ruleset_of
from hauberk.progress_line import ProgressLine
from schemas.errors import SettingsError
from schemas.operations import Access

if TYPE_CHECKING:
    from policy.tools.backtest import BacktestRow
    from policy.tools.diff import Observed


_IN_ITS_POD: Final = (
    "that of a cluster lies in the pod of its sink `store`: `kubectl exec -i -n hauberk deployment/hauberk-sink-store -- hauberk policy ...` "
    "runs this there, with `bus:` for what is in force and `-` for a file on standard input"
)


def _named_by(given: argparse.Namespace) -> list[str]:
    return [given.before, given.after] if given.what == "diff" else list(given.filename)


def observed(given: argparse.Namespace) -> Iterator[Observed]:
    """The stored behaviours of the last `--since`."""
    from hauberk.configuration import existing_store
    from policy.learn.sightings import as_judged
    from policy.tools.diff import Observed
    from sinks.store.queries import SqliteReader
    from sinks.store.store import Query

    since = int(time.time() - seconds(given.since))
    try:
        store = existing_store(given)
    except SettingsError as error:
        if not any(name.startswith(in_force.CLUSTER) for name in _named_by(given)):
            raise
        raise SettingsError(f"{error}; {_IN_ITS_POD}") from error
    reader = SqliteReader(str(store))
    try:
        for row in reader.behaviours(Query(since=since)):
            yield Observed(
                identity=row.identity,
                behaviour=as_judged(row.behaviour),
                count=row.count,
                first=row.first,
                last=row.last,
            )
    finally:
        reader.close()


class _Judging:
    """Counts what is judged, and says how far it is. `untold`: events that were told without names, which nothing judges."""

    def __init__(self) -> None:
        self.behaviours = self.events = self.untold = 0
        self._line = ProgressLine(
            lambda number, seconds: f"{number:,} behaviours, {self.events:,} events judged in {seconds:.0f} s"
        )

    def of(self, found: Iterable[Observed]) -> Iterator[Observed]:
        for one in self._line.of(found):
            self.behaviours += 1
            self.events += one.count
            self.untold += one.count * bool(one.behaviour.access & Access.UNTOLD)
            yield one


def compare(given: argparse.Namespace) -> int:
    """Behaviours whose verdict differs between two sets of policies."""
    from policy.tools.diff import diff

    before, _ = ruleset_of(given, [given.before])
    after, _ = ruleset_of(given, [given.after])
    progress = _Judging()
    changes = list(diff(before, after, progress.of(observed(given))))
    if given.output == "json":
        print(
            as_json(
                {
                    "behaviours": progress.behaviours,
                    "events": progress.events,
                    "untold": progress.untold,
                    "changes": plain(changes),
                }
            )
        )
    else:
        rows = [
            (change.kind, change.observed.identity.workload, change.observed.behaviour.operation.name.lower(),
             change.observed.behaviour.executable, change.observed.behaviour.resource or change.observed.behaviour.address,
             change.observed.count, _named(change.before), _named(change.after))
            for change in changes
        ]  # fmt: skip
        print(
            table(
                ("CHANGE", "WORKLOAD", "OPERATION", "PROCESS", "RESOURCE", "COUNT", "BEFORE", "AFTER"),
                rows,
                whole=False,
            )
            if rows
            else "No behaviour changes its verdict."
        )
        print(
            f"{progress.behaviours:,} behaviours since {given.since} compared, {len(changes)} change"
            + (
                f"; {progress.untold:,} events were told without names, too many new ones at once, and not judged"
                if progress.untold
                else ""
            )
        )
    return 1 if changes else 0


def _named(verdict: Any) -> str:
    return f"{verdict.action.value} ({verdict.policy})" if verdict.policy else str(verdict.action.value)


def backtest(given: argparse.Namespace) -> int:
    """What the policies would have said of the stored behaviours."""
    from policy.tools import backtest as tests

    ruleset, _ = ruleset_of(given, given.filename)
    report = None
    for said in tests.backtest(ruleset, _Judging().of(observed(given))):
        if isinstance(said, tests.BacktestReport):
            report = said
    assert report is not None
    if given.output == "json":
        print(as_json(plain(report)))
        return 0
    rows = [
        (row.workload, row.operation, _would(row), row.policy, row.rule.position if row.rule else "-", row.count,
         ", ".join(f"{name} ({count})" for name, count in row.resources[:3]))
        for row in report.rows
    ]  # fmt: skip
    if rows:
        print(table(("WORKLOAD", "OPERATION", "ACTION", "POLICY", "RULE", "COUNT", "RESOURCES"), rows, whole=False))
    totals = report.totals
    print(
        f"{totals.events:,} events of {totals.behaviours:,} behaviours since {given.since}: "
        f"{totals.blocked:,} would be blocked, {totals.audited:,} audited"
        + (f", {totals.shadowed:,} by shadows and baselines alone" if totals.shadowed else "")
        + (f"; of {totals.uncertain:,} it depends on arguments, which are not stored" if totals.uncertain else "")
        + (
            f"; {totals.untold:,} were told without names, too many new ones at once, and not judged"
            if totals.untold
            else ""
        )
        + (f"; {report.beyond:,} more did not fit the table" if report.beyond else "")
    )
    return 0


def _would(row: BacktestRow) -> str:
    """As alerts say it: an audited or shadow Block blocks nothing."""
    match row.mode.value:
        case "enforce":
            return row.action
        case "audited":
            return f"Audit ({row.action})"
        case _:
            return f"{row.action} ({row.mode.value})"
