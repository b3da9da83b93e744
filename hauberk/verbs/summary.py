# SPDX-License-Identifier: Apache-2.0
"""`hauberk summary`: what workloads did, from the summary store, as the tables `karmor summary` had."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from hauberk.client import labels, seconds
from hauberk.client import parser as verb_parser

KINDS = {"process": "process", "file": "file", "ingress": "ingress", "egress": "egress", "bind": "bind", "dns": "dns"}


def parser() -> argparse.ArgumentParser:
    """Whose, what, since when, in which form."""
    made = verb_parser("summary", "Show what workloads did, from the summary store.")
    made.add_argument("-n", "--namespace", help="only this namespace")
    made.add_argument(
        "-l", "--selector", "--labels", metavar="K=V,...", default="", help="only workloads with these labels"
    )
    made.add_argument("-p", "--pod", help="only this pod")
    made.add_argument("-c", "--container", help="only this container")
    made.add_argument("--node", help="only this node")
    made.add_argument("--host", action="store_true", help="the host's own processes too")
    made.add_argument("-t", "--type", metavar="KIND,...", default=",".join(KINDS), help="which tables (default all)")
    made.add_argument("--since", metavar="DURATION", default="24h", help="how far back (default 24h)")
    made.add_argument("--until", metavar="DURATION", default="0s", help="up to so long ago (default 0s: now)")
    made.add_argument("--by", choices=("pod", "workload"), default="pod", help="tables for each pod, or for all pods of an owner")  # fmt: skip
    made.add_argument("--wait", metavar="DURATION", default="10s",
                      help="longest wait for counts that are on their way to the store (default 10s; 0s: answer at once)")  # fmt: skip
    made.add_argument(
        "--agg", action="store_true", help="files by kinds of names and open directories, as a learnt policy has them"
    )
    made.add_argument("--diff", nargs=2, metavar=("A", "B"),
                      help="what is new, gone or much more or less often in B, by workload: each a window (`2d..1d`), a store, or `image=NAME`; "
                           "exit 1 when something is new")  # fmt: skip
    made.add_argument("-o", "--output", choices=("table", "wide", "json", "csv", "markdown"), default="table",
                      help="form of the answer; `table` has STATUS for connections where one is not `Allow`, `wide` always; `markdown` is for "
                           "--diff")  # fmt: skip
    return made


def main(argv: Sequence[str]) -> int:
    """Exit 1 when nothing was found."""
    made = parser()
    given = made.parse_args(argv)
    kinds = [kind.strip() for kind in given.type.split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        made.error(f"expected --type of {', '.join(KINDS)}, got `{unknown[0]}`")
    if given.diff and given.output in ("wide", "csv"):
        made.error(f"expected -o table, json or markdown with --diff, got {given.output}")
    if given.output == "markdown" and not given.diff:
        made.error("expected -o markdown with --diff alone")
    patience = seconds(given.wait)
    now = time.time()
    since, ago = int(now - seconds(given.since)), seconds(given.until)
    until = int(now - ago) if ago else None
    if until is not None and until <= since:
        made.error(f"expected --until to be less long ago than --since {given.since}, got {given.until}")
    wanted = tuple(labels(given.selector).items())

    if given.diff:
        return _difference(given, kinds, wanted)
    from hauberk.configuration import existing_store
    from hauberk.summary_sides import names, placing
    from sinks.formats.summary_tables import build_each
    from sinks.formats.table_text import as_csv, as_json, text
    from sinks.store.queries import SqliteReader
    from sinks.store.store import Query

    path = existing_store(given)
    whole = patience == 0 or _wait(given, patience)
    reader = SqliteReader(str(path))
    try:
        query = Query(
            namespace=given.namespace, pod=given.pod, container=given.container, node=given.node, labels=wanted, since=since, until=until,
            kinds=() if given.host else ("container",),
        )  # fmt: skip
        tables = build_each(
            reader.totals(query),
            by_workload=given.by == "workload",
            resolve=names(given),
            placing=placing if given.agg else None,
        )
    finally:
        reader.close()
    if given.output == "json":
        sys.stdout.buffer.write(as_json(tables, kinds) + b"\n")
    elif given.output == "csv":
        sys.stdout.write(as_csv(tables, kinds))
    elif tables:
        print("\n".join(text(one, kinds, wide=given.output == "wide") for one in tables))
    if not whole:
        print(
            f"hauberk summary: counts of the latest events had not arrived after {given.wait}, so they are missing here; is "
            "Hauberk running and keeping up? `hauberk topic list` shows who is behind",
            file=sys.stderr,
        )
    if not tables:
        hint = "" if given.host else "; --host shows the host's own processes"
        print(
            f"hauberk summary: nothing in the last {given.since} for this selection{hint}",
            file=sys.stderr,
        )
        return 1
    return 0


def _difference(given: argparse.Namespace, kinds: list[str], wanted: tuple[tuple[str, str], ...]) -> int:
    """Exit 1 when something is new."""
    import msgspec

    from hauberk.summary_sides import names, shape, side
    from sinks.formats.summary_diff import as_markdown, as_table, difference
    from sinks.formats.summary_tables import build_by_workload
    from sinks.store.store import Query

    resolve = names(given, owners=True)
    query = Query(
        namespace=given.namespace, pod=given.pod, container=given.container, node=given.node, labels=wanted,
        kinds=() if given.host else ("container",),
    )  # fmt: skip
    before, after = (build_by_workload(side(text, given, query), resolve=resolve) for text in given.diff)
    changes = difference(before, after, kinds, shape)
    if given.output == "json":
        sys.stdout.buffer.write(msgspec.json.format(msgspec.json.encode(changes), indent=2) + b"\n")
    else:
        print(as_markdown(changes) if given.output == "markdown" else as_table(changes), end="")
    return 1 if any(one.change == "new" for one in changes) else 0


def _wait(given: argparse.Namespace, patience: float) -> bool:
    """Whether the store has what happened before now. True where there is no bus to ask."""
    from hauberk.arriving import arrived
    from hauberk.client import with_bus
    from hauberk.configuration import counting_groups
    from schemas.errors import SettingsError, Temporary

    shown = sys.stderr.isatty()

    def progress(left: int) -> None:
        if shown:
            print(f"waiting for {left} records on their way to the store\x1b[K", end="\r", file=sys.stderr, flush=True)

    try:
        return with_bus(given, lambda bus: arrived(bus, *counting_groups(given), patience, progress))
    except SettingsError:
        return True
    except Temporary as error:
        print(f"hauberk summary: the bus does not say what is still on its way: {error}", file=sys.stderr)
        return True
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
