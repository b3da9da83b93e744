# SPDX-License-Identifier: Apache-2.0
"""A summary store as instances of real workloads fill it: what the recorded workloads of `corpus` did, in as many instances as make the rows.

Each instance does what one of the twelve recorded runs did. What was seen in one run alone (a quarter of what a run does) has digits and
hex of its own in every instance, as names of files have; all else is the same behaviour again. From a seed.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
from discovery import corpus
from discovery.large import STORE_SETTINGS

from policy.learn.sightings import Sighting
from schemas.behaviour import Behaviour
from schemas.summary import Summary, SummaryEntry
from sinks.store.sqlite import SqliteStore

_HOUR: Final = 3600 * 10**9
_CHANGES: Final = re.compile(r"[0-9a-f]*[0-9][0-9a-f]*")


def store(path: Path, rows: int, started: int) -> tuple[int, int, int]:
    """(rows, distinct behaviours, instances) of a store with at least `rows` of them. `started`: Unix seconds of the first event."""
    made = SqliteStore(str(path))
    for setting in STORE_SETTINGS:
        made._db.execute(f"PRAGMA {setting}")
    chance = random.Random(1)
    every = sorted(corpus.runs().items())
    once = {name: _once(runs) for name, runs in every}
    distinct: set[bytes] = set()
    written = instances = 0
    while written < rows:
        for name, runs in every:
            number = instances // len(every)
            at = started * 10**9 + number * _HOUR // 4
            run = runs[number % len(runs)]
            entries = tuple(_entries(run, once[name], chance, at))
            of = msgspec.structs.replace(run[0].identity, uid=f"{name}-{number}", pod=f"{name}-{number}")
            made.apply([Summary(
                node=of.node, run=of.uid, first_frame=1, last_frame=1, bucket=at // 10**9 // 60 * 60, identity=of, entries=entries,
            )], [])  # fmt: skip
            distinct.update(msgspec.msgpack.encode(one.behaviour) for one in entries)
            written += len(entries)
            instances += 1
    made.close()
    return written, len(distinct), instances


def _once(runs: list[list[Sighting]]) -> set[Behaviour]:
    seen = Counter(one for run in runs for one in {sighting.behaviour for sighting in run})
    return {one for one, times in seen.items() if times == 1}


def _entries(run: list[Sighting], once: set[Behaviour], chance: random.Random, at: int) -> Iterator[SummaryEntry]:
    begun = min(one.first for one in run)
    known: set[Behaviour] = set()
    for one in run:
        behaviour = one.behaviour
        if behaviour in once:
            behaviour = msgspec.structs.replace(
                behaviour, resource=_CHANGES.sub(lambda found: _another(found[0], chance), behaviour.resource)
            )
        if behaviour not in known:
            known.add(behaviour)
            yield SummaryEntry(
                behaviour=behaviour,
                status="Allow",
                count=one.count,
                first=at + one.first - begun,
                last=at + one.last - begun,
            )


def _another(text: str, chance: random.Random) -> str:
    """Digits for digits, letters of hex for letters."""
    return "".join(chance.choice("0123456789") if one.isdigit() else chance.choice("abcdef") for one in text)
