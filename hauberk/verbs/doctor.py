# SPDX-License-Identifier: Apache-2.0
"""`hauberk doctor`: is this installation whole, can it run here, and what to do about what is wrong."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from hauberk.client import parser as verb_parser
from hauberk.output import paint, show
from schemas.errors import HauberkError

if TYPE_CHECKING:
    from hauberk.sections import Configuration

ROOMS: Final = (
    "hauberk",
    "bus",
    "cluster",
    "policy",
    "kernel",
    "schemas",
    "sensors",
    "processors",
    "enforcers",
    "sinks",
)
_CLEANUP: Final = (
    "newest values would be deleted by age, or records that are not read yet by key; run `hauberk topic alter`"
)

Finding = tuple[str, str, str]
"""(`ok`, `warn` or `bad`; what was checked; what was found and what to do)."""


def parser() -> argparse.ArgumentParser:
    """The form."""
    made = verb_parser(
        "doctor", "Check this installation and show how to fix what is wrong. Exit 1 when something is bad."
    )
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
        yield "ok", "packages", f"the {len(ROOMS)} top-level packages are ours alone" if not any(
            set(owners.get(room, ())) - {"hauberk"} for room in ROOMS
        ) else "see above"  # fmt: skip


def _kernel() -> Iterator[Finding]:
    from hauberk.verbs.probe import missing

    lacks = missing()
    for lack in lacks:
        yield "warn", "kernel", f"{lack}; a recording can still be replayed"
    if not lacks:
        yield "ok", "kernel", f"Linux {os.uname().release} can be watched (hauberk probe)"


def _settings(settings: Configuration) -> Iterator[Finding]:
    yield "ok", "settings", f"{len(settings.sinks)} sinks, bus `{settings.bus.__struct_config__.tag}`"


def _places(settings: Configuration, state: Path) -> Iterator[Finding]:
    made = [
        ("state", str(state)), ("bus", getattr(settings.bus, "directory", "")),
        ("sensor", settings.sensor.rings.state_dir), ("enforcement", settings.enforcement.state_dir),
    ]  # fmt: skip
    for what, where in made:
        if what == "state" or (where and not Path(where).is_relative_to(state)):
            yield _place(what, Path(where))
    for sink in settings.sinks:
        path = getattr(sink, "path", "")
        directory = Path(os.path.abspath(path)).parent
        if path and not directory.is_relative_to(os.path.abspath(state)):
            what = f"sink {sink.name or sink.__struct_config__.tag}"
            if not directory.is_dir():
                yield (
                    "bad",
                    what,
                    f"`{directory}` is not there, and a sink makes no directories; make it or change `path`",
                )
            elif why := _refusal(directory):
                yield "bad", what, f"nothing can be written to `{directory}`: {why}; change `path`"


def _place(what: str, path: Path) -> Finding:
    """Whether a start can use or make the directory `path`."""
    advice = "run as root, or choose another with --state" if what == "state" else "run as root, or change the setting"
    spot = Path(os.path.abspath(path))
    while not os.path.lexists(spot):
        spot = spot.parent
    if not os.path.isdir(spot):
        return "bad", what, f"`{path}` cannot be a directory: `{spot}` is no directory; {advice}"
    if why := _refusal(spot):
        return "bad", what, f"nothing can be made in `{spot}`, and `{path}` is needed: {why}; {advice}"
    free = os.statvfs(spot)
    megabytes = free.f_bavail * free.f_frsize >> 20
    there = f"`{path}`" if spot == Path(os.path.abspath(path)) else f"`{path}` is not there yet and can be made"
    level = "ok" if megabytes > 512 else "warn"
    return (
        level,
        what,
        f"{there}, {megabytes:,} MB free{'' if level == 'ok' else ': the bus may stop for want of space'}",
    )


def _refusal(directory: Path) -> str:
    """Why nothing can be made in `directory`, "" when it can: mode bits say nothing to root, of /proc or a read-only mount."""
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".hauberk-doctor-", dir=directory))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _summaries(settings: Configuration) -> Iterator[Finding]:
    store = next(
        (Path(str(getattr(sink, "path", ""))) for sink in settings.sinks if sink.__struct_config__.tag == "store"), None
    )
    if store is not None and os.path.exists(store):
        from sinks.store.queries import SqliteReader
        from sinks.store.store import Query

        reader = SqliteReader(str(store))
        try:
            yield "ok", "summaries", f"`{store}` holds {len(reader.identities(Query()))} identities"
        finally:
            reader.close()


def _brokers(settings: Configuration) -> Iterator[Finding]:
    """Whether a bus that is elsewhere answers, and has what it needs."""
    import asyncio

    from bus.kafka.settings import KafkaSettings
    from bus.registry import elsewhere, open_bus
    from schemas.topics import TOPICS

    if not elsewhere(settings.bus):
        return

    async def asked() -> int:
        bus = await open_bus(settings.bus, aloud=False)
        try:
            return sum([sum((await bus.end(topic)).values()) for topic in TOPICS])
        finally:
            await bus.close()

    where = f"`{getattr(settings.bus, 'bootstrap', '')}`"
    yield "ok", "brokers", f"{where} has the {len(TOPICS)} topics, with {asyncio.run(asked()):,} records ever published"
    if isinstance(settings.bus, KafkaSettings):
        from bus.kafka.topic_configs import TIME_TYPE
        from hauberk.cluster_topics import drift

        others = 0
        for one in asyncio.run(drift(settings.bus)):
            has = f"`{one.topic}` has {one.what} `{one.found}`, expected `{one.wanted}`"
            if one.what == "cleanup.policy":
                yield "bad", "topics", f"{has}: {_CLEANUP}"
            elif one.what == TIME_TYPE and one.why:
                yield "warn", "topics", f"{has}: {one.why}; run `hauberk topic alter`"
            else:
                others += 1
        if others:
            yield (
                "warn",
                "topics",
                f"{others} more of what topics are differs from the settings; `hauberk topic check` shows it",
            )


def _cluster(settings: Configuration) -> Iterator[Finding]:
    """Whether the definitions of policies in the cluster can say what ours do."""
    import asyncio

    from hauberk.cluster_definitions import asked, findings

    if asked(settings.cluster.server):
        yield from asyncio.run(findings(settings.cluster.server))


def _bus(settings: Configuration) -> Iterator[Finding]:
    where = getattr(settings.bus, "directory", "")
    # os.walk passes over what may not be read, which `_places` has told already.
    found = (Path(at, name) for at, _, names in os.walk(where) for name in names if name.endswith(".corrupt"))
    for file in sorted(found) if where else ():
        yield (
            "warn",
            "bus",
            f"`{file}` was damaged and put aside; its records are lost to readers; remove it after inspection",
        )


def _findings(given: argparse.Namespace) -> Iterator[Finding]:
    """Every check; one that cannot be made is a finding, and what needs right settings is left out without them."""
    from hauberk.configuration import configuration

    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("python", _python), ("packages", _packages), ("kernel", _kernel),
    ]  # fmt: skip
    wrong = None
    try:
        settings, _, state = configuration(given)
        checks += [
            ("settings", lambda: _settings(settings)), ("state", lambda: _places(settings, state)),
            ("summaries", lambda: _summaries(settings)), ("bus", lambda: _bus(settings)), ("brokers", lambda: _brokers(settings)),
            ("cluster", lambda: _cluster(settings)),
        ]  # fmt: skip
    except HauberkError as error:
        wrong = str(error)
    for name, check in checks:
        try:
            yield from check()
        except HauberkError as error:
            yield "bad", name, str(error)
    if wrong is not None:
        yield "bad", "settings", wrong


def main(argv: Sequence[str]) -> int:
    """Exit 1 when something is bad."""
    given = parser().parse_args(argv)
    found = list(_findings(given))
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
