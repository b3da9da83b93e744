# SPDX-License-Identifier: Apache-2.0
"""The recorded corpus as sightings: runs of workloads, and attacks. `record.py` writes it."""

from __future__ import annotations

import lzma
from functools import cache
from pathlib import Path

import msgspec

from policy.learn.sightings import Sighting, Use, use
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind, Owner

PATH = Path(__file__).parent / "corpus.bin"
_HOUR = 3600 * 10**9


class _Packed(msgspec.Struct):
    behaviours: list[Behaviour]
    runs: dict[str, list[tuple[int, int]]]


@cache
def _packed() -> _Packed:
    return msgspec.msgpack.decode(lzma.decompress(PATH.read_bytes()), type=_Packed)


def identity(workload: str, run: int) -> Identity:
    """A pod of a Deployment, one for each run."""
    return Identity(
        kind=Kind.CONTAINER, node="bench", uid=f"{workload}-{run:02d}", namespace="bench", pod=f"{workload}-{run:02d}", orchestrated=True,
        owner=Owner("Deployment", workload, "bench"), container_name=workload, labels={"app": workload},
    )  # fmt: skip


@cache
def runs() -> dict[str, list[list[Sighting]]]:
    """workload -> its runs in order -> what was seen and can be judged. Times are made up: run after run, an hour apart."""
    found: dict[str, list[list[Sighting]]] = {}
    for name in sorted(_packed().runs):
        workload, _, run = name.rpartition("-")
        if workload and run.isdigit():
            found.setdefault(workload, []).append(_sightings(name, identity(workload, int(run)), int(run) * _HOUR))
    return found


@cache
def attacks() -> dict[str, list[Behaviour]]:
    """attack -> what it did beyond what every shell does when it starts."""
    every = {
        name.removeprefix("attack-"): [one.behaviour for one in _sightings(name, identity("attack", 0), 0)]
        for name in sorted(_packed().runs)
        if name.startswith("attack-")
    }
    ordinary = frozenset.intersection(*(frozenset(some) for some in every.values())) if every else frozenset()
    return {name: [one for one in some if one not in ordinary] for name, some in every.items()}


def _sightings(name: str, of: Identity, at: int) -> list[Sighting]:
    packed = _packed()
    found = [
        Sighting(identity=of, behaviour=packed.behaviours[number], count=count, first=at + step, last=at + step)
        for step, (number, count) in enumerate(packed.runs[name])
    ]
    return [one for one in found if use(one) is Use.EVIDENCE]
