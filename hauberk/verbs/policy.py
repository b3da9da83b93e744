# SPDX-License-Identifier: Apache-2.0
"""`hauberk policy check|test|explain|diff|backtest|lint`: the tools of the policy language. Their work is in `hauberk.policies` and `hauberk.backtests`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser
from hauberk.client import sub_parser
from schemas.errors import SettingsError


def _files(made: argparse.ArgumentParser) -> None:
    made.add_argument("files", nargs="*", default=[], metavar="FILE", help="the same as -f")
    made.add_argument("-f", "--filename", action="append", default=[], metavar="FILE",
                      help="policy file, directory, `-`, `bus:` or `cluster:`; repeatable")  # fmt: skip
    made.add_argument("-R", "--recursive", action="store_true", help="subdirectories of a directory too")


def parser() -> argparse.ArgumentParser:
    """One sub-verb each."""
    made = verb_parser(
        "policy",
        "Check, test, explain, compare, replay and lint policies. Nothing is applied. In the place of a file, `bus:` is what is in force on the "
        "bus, `cluster:` what is an object of the cluster, and `bus:FILE` what is in force with FILE put over it.",
    )
    below = made.add_subparsers(dest="what", required=True, metavar="check|test|explain|diff|backtest|lint")
    check = sub_parser(below, "check", "parse, and show everything that is wrong; exit 0 clean, 1 warnings, 2 errors")
    _files(check)
    check.add_argument("--strict", action="store_true", help="warnings are errors")
    check.add_argument("-o", "--output", choices=("text", "json"), default="text", help="form of the diagnostics")
    test = sub_parser(below, "test", "one verdict per event, or the tests the policies carry; exit 1 when one fails")
    _files(test)
    test.add_argument("--events", metavar="FILE", help="JSON Lines with KubeArmor's log fields, or `-`")
    test.add_argument("--tests", action="append", default=[], metavar="FILE", help="YAML file of tests; repeatable")
    test.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form of the answer")
    explain = sub_parser(below, "explain", "which rule decides an event and why; what each backend can enforce")
    _files(explain)
    explain.add_argument(
        "--event", metavar="JSON", help="one event, as JSON, `-` or @FILE; without it: what can be enforced"
    )
    explain.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form of the answer")
    diff = sub_parser(below, "diff", "which observed behaviours change verdict; exit 1 when some do")
    diff.add_argument("before", metavar="A", help="policy file, directory, `-`, `bus:` or `cluster:`")
    diff.add_argument(
        "after", metavar="B", help="the same; `bus:FILE` puts a file over what is in force, `bus:-` standard input"
    )
    backtest = sub_parser(
        below, "backtest", "judge stored behaviours again: what would have been blocked, by whom, how often"
    )
    _files(backtest)
    for one in (diff, backtest):
        one.add_argument("--since", metavar="DURATION", default="7d", help="how far back (default 7d)")
        one.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form of the answer")
    lint = sub_parser(
        below, "lint", "rules that are mistakes (exit 1), and Block rules that are only audited (notes, exit 0)"
    )
    _files(lint)
    lint.add_argument("--strict", action="store_true", help="exit 1 for notes too")
    lint.add_argument("-o", "--output", choices=("table", "json"), default="table", help="form of the answer")
    return made


def main(argv: Sequence[str]) -> int:
    """Exit 0 for yes, 1 for no, 2 for wrong input."""
    given = parser().parse_args(argv)
    from hauberk import backtests, in_force, inputs, policies

    if given.what != "diff":
        given.filename = [*given.filename, *given.files]
        if not given.filename:
            raise SettingsError("expected policy files, got none; name them or use -f")
    # `bus:-` is standard input too.
    named = [given.before, given.after] if given.what == "diff" else given.filename
    beside = [getattr(given, "event", None), getattr(given, "events", None), *getattr(given, "tests", ())]
    inputs.once([*(in_force.parted(one)[1] for one in named), *(str(one).removeprefix("@") for one in beside)])
    match given.what:
        case "check":
            return policies.check(given)
        case "test":
            return policies.test(given)
        case "explain":
            return policies.explain(given)
        case "diff":
            return backtests.compare(given)
        case "backtest":
            return backtests.backtest(given)
        case _:
            return policies.lint(given)
