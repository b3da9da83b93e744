# SPDX-License-Identifier: Apache-2.0
"""`hauberk doctor`: is this installation whole, can it run here, and what to do about what is wrong."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from hauberk.client import parser as verb_parser
from hauberk.output import paint, show
from schemas.errors import HauberkError

ROOMS: Final = ("hauberk", "bus", "policy", "kernel", "schemas", "sensors", "processors", "enforcers", "sinks")
Finding = tuple[str, str, str]
"""(`ok`, `warn` or `bad`; what was checked; what was found and what to do)."""


def parser() -> argparse.ArgumentParser:
    """The form."""
    made = verb_parser("doctor", "Check this installation and say what to mend. Exit 1 when something is bad.")
    made.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="form of the answer")
    return made


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    yield (
        ("ok", "python", found)
        if sys.version_info >= (3, 11)
        else ("bad", "python", f"expected 3.11 or newer, got {found}")
    )


def _packages() -> Iterator[Finding]:
    from importlib.metadata import packages_distributions

    owners = packages_distributions()
    for room in ROOMS:
        foreign = sorted(set(owners.get(room, ())) - {"hauberk"})
        if foreign:
            yield (
                "bad",
                f"package {room}",
                f"also shipped by {', '.join(foreign)}: it may overwrite ours; use an environment of its own",
            )
    if "hauberk" in owners.get("hauberk", ["hauberk"]):
        yield "ok", "packages", "the nine top-level packages are ours alone" if not any(
            set(owners.get(room, ())) - {"hauberk"} for room in ROOMS
        ) else "see above"  # fmt: skip


def _kernel() -> Iterator[Finding]:
    from hauberk.verbs.probe import missing

    lacks = missing()
    for lack in lacks:
        yield "warn", "kernel", f"{lack}; a recording can still be replayed"
    if not lacks:
        yield "ok", "kernel", f"Linux {os.uname().release} can be watched (hauberk probe)"


def _state(given: argparse.Namespace) -> Iterator[Finding]:
    from hauberk.configuration import configuration

    settings, _, state = configuration(given)
    yield "ok", "settings", f"{len(settings.sinks)} sinks, bus `{settings.bus.__struct_config__.tag}`"
    spot = state
    while not spot.exists():
        spot = spot.parent
    if not os.access(spot, os.W_OK):
        yield "bad", "state", f"no permission to write to `{spot}`; run as root or choose another with --state"
    else:
        free = os.statvfs(spot)
        megabytes = free.f_bavail * free.f_frsize >> 20
        level = "ok" if megabytes > 512 else "warn"
        yield (
            level,
            "state",
            f"`{state}`, {megabytes:,} MB free{'' if level == 'ok' else ': the bus may stop for want of space'}",
        )
    store = next(
        (Path(str(getattr(sink, "path", ""))) for sink in settings.sinks if sink.__struct_config__.tag == "store"), None
    )
    if store is not None and store.exists():
        from sinks.store.queries import SqliteReader
        from sinks.store.store import Query

        reader = SqliteReader(str(store))
        try:
            yield "ok", "summaries", f"`{store}` holds {len(reader.identities(Query()))} identities"
        finally:
            reader.close()


def _bus(given: argparse.Namespace) -> Iterator[Finding]:
    from hauberk.configuration import configuration

    settings, _, _ = configuration(given)
    where = getattr(settings.bus, "directory", "")
    for file in sorted(Path(where).rglob("*.corrupt")) if where else ():
        yield (
            "warn",
            "bus",
            f"`{file}` was damaged and put aside; what it held is lost to readers, remove it when you have looked",
        )


def main(argv: Sequence[str]) -> int:
    """Exit 1 when something is bad."""
    given = parser().parse_args(argv)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": _python, "packages": _packages, "kernel": _kernel, "state": lambda: _state(given),
        "bus": lambda: _bus(given),
    }  # fmt: skip
    found: list[Finding] = []
    for name, check in checks.items():
        try:
            found += check()
        except HauberkError as error:
            found.append(("bad", name, str(error)))
    colours = {"ok": "green", "warn": "yellow", "bad": "red"}
    rows = [
        (paint(level, colours[level]) if given.output == "table" and sys.stdout.isatty() else level, what, text)
        for level, what, text in found
    ]
    value = [{"level": level, "what": what, "found": text} for level, what, text in found]
    if given.output == "table":
        for level, what, text in rows:
            print(f"{level:<4} {what:<12} {text}")
    else:
        print(show(value, (), (), given.output))
    return 1 if any(level == "bad" for level, _, _ in found) else 0
