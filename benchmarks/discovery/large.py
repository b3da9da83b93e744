# SPDX-License-Identifier: Apache-2.0
"""A summary store in which next to nothing repeats: a million behaviours, each of them another one.

Made up, from a seed, in the shapes that data directories of real programs have: objects under two hex digits, files by tenant and day,
database files by number, logs that rotate, temporary names, modules of a language, words in a content tree. Every workload has programs
and directories of its own. `STARTED` behaviours of a workload are those of its start, which all of its instances show; every other one is
shown by one instance alone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Access, Operation
from schemas.summary import Summary, SummaryEntry
from sinks.store.sqlite import SqliteStore

EACH: Final = 4000
"""Distinct behaviours of a workload."""
STARTED: Final = 400
INSTANCES: Final = 4
STORE_SETTINGS: Final = ("synchronous=OFF", "cache_size=-524288")
"""Behaviours lie under keyed hashes, each in another page: without these the making takes longer than what is measured."""
_SECOND: Final = 10**9
_HOUR: Final = 3600 * _SECOND
_WORDS: Final = (
    "order", "invoice", "basket", "user", "session", "thumb", "report", "price", "stock", "index", "segment", "journal", "cache", "asset",
    "mail", "queue", "event", "metric", "photo", "draft", "label", "route", "token", "batch", "audit", "ledger", "market", "region",
)  # fmt: skip


def identity(workload: int, instance: int) -> Identity:
    """A pod of a Deployment."""
    name = f"{_WORDS[workload % len(_WORDS)]}-{workload:04d}"
    return Identity(
        kind=Kind.CONTAINER, node=f"node-{workload % 20:02d}", uid=f"{name}-{instance}", namespace=f"team-{workload % 25:02d}",
        pod=f"{name}-{instance}", owner=Owner("Deployment", name, f"team-{workload % 25:02d}"), container_name="main",
        labels={"app": name}, orchestrated=True,
    )  # fmt: skip


def store(path: Path, distinct: int, started: int) -> tuple[int, int]:
    """(rows, workloads) of a store with `distinct` behaviours that all differ. `started`: Unix seconds of the first event."""
    made = SqliteStore(str(path))
    for setting in STORE_SETTINGS:
        made._db.execute(f"PRAGMA {setting}")
    rows = 0
    workloads = max(1, round(distinct / EACH))
    for workload in range(workloads):
        rows += _workload(made, workload, min(EACH, distinct), started)
    made.close()
    return rows, workloads


def _workload(made: SqliteStore, workload: int, each: int, started: int) -> int:
    chance = random.Random(workload)
    begun = min(STARTED, each // 2)
    every = _distinct(chance, workload, each)
    start = [next(every) for _ in range(begun)]
    rest = list(every)
    rows = 0
    for instance in range(INSTANCES):
        at = started * _SECOND + instance * _HOUR
        mine = rest[instance::INSTANCES]
        entries = [
            SummaryEntry(behaviour=one, status="Allow", count=1, first=at + n * 10**6, last=at + n * 10**6)
            for n, one in enumerate(start)
        ]
        # Over three hours, so that later looks bring what earlier ones had not.
        entries += [
            SummaryEntry(
                behaviour=one,
                status="Allow",
                count=1 + n % 7,
                first=(t := at + _SECOND + n * 3 * _HOUR // max(1, len(mine))),
                last=t,
            )
            for n, one in enumerate(mine)
        ]
        of = identity(workload, instance)
        made.apply([Summary(
            node=of.node, run=of.uid, first_frame=1, last_frame=1, bucket=at // _SECOND // 60 * 60, identity=of, entries=tuple(entries),
        )], [])  # fmt: skip
        rows += len(entries)
    return rows


def _distinct(chance: random.Random, workload: int, each: int) -> Iterator[Behaviour]:
    """`each` behaviours, no two of them the same; those of a start first."""
    seen: set[tuple[int, str, str, int, str]] = set()
    name = identity(workload, 0).owner.name
    programs = [
        f"/usr/local/bin/{name}",
        f"/usr/bin/{name}-worker",
        f"/opt/{name}/bin/helper",
        f"/usr/bin/{name}-migrate",
    ]
    makers = [*(_execs,), *(_modules,) * 60, *(_settings,) * 10]
    while len(seen) < each:
        if len(seen) == min(STARTED, each // 2):
            makers = [
                *(_objects,) * 6,
                *(_tenants,) * 6,
                *(_numbers,) * 3,
                *(_logs,) * 2,
                *(_temporary,) * 3,
                *(_words,) * 4,
                _peers,
                _processes,
            ]
        one = chance.choice(makers)(chance, name, programs)
        key = (int(one.operation), one.executable, one.resource, int(one.access), f"{one.address}:{one.port}")
        if key not in seen:
            seen.add(key)
            yield one


def _file(program: str, path: str, access: Access, chance: random.Random) -> Behaviour:
    return Behaviour(
        operation=Operation.OPEN, access=access, resource=path, executable=program, parent=program, uid=1000,
        owner=1000 if access & Access.WRITE else 0, flags=chance.choice((0, 0o2000000)),
    )  # fmt: skip


def _execs(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    run = chance.choice((*programs, "/usr/bin/dash", "/usr/bin/python3.11"))
    return Behaviour(
        operation=Operation.EXEC, access=Access.EXEC, resource=run, executable=programs[0], parent="/usr/bin/dash"
    )


def _modules(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    package, module = chance.choice(_WORDS), f"{chance.choice(_WORDS)}_{chance.choice(_WORDS)}"
    root = chance.choice(
        (
            f"/opt/{name}/node_modules/{package}/lib",
            f"/usr/lib/python3/dist-packages/{package}",
            "/usr/lib/x86_64-linux-gnu",
        )
    )
    return _file(
        chance.choice(programs[:2]), f"{root}/{module}{chance.choice(('.js', '.py', '.so.1'))}", Access.READ, chance
    )


def _settings(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    return _file(
        programs[0],
        f"/etc/{name}/{chance.choice(_WORDS)}.d/{chance.randrange(90):02d}-{chance.choice(_WORDS)}.conf",
        Access.READ,
        chance,
    )


def _objects(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    digest = f"{chance.getrandbits(160):040x}"
    return _file(
        programs[1],
        f"/var/lib/{name}/objects/{digest[:2]}/{digest[2:]}",
        chance.choice((Access.READ, Access.WRITE)),
        chance,
    )


def _tenants(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    day = f"2026/{chance.randrange(1, 13):02d}/{chance.randrange(1, 29):02d}"
    tenant = f"{chance.choice(_WORDS)}{chance.randrange(400)}"
    return _file(
        programs[0],
        f"/srv/{name}/{tenant}/{day}/{chance.choice(_WORDS)}-{chance.randrange(10**6)}.json",
        Access.WRITE,
        chance,
    )


def _numbers(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    return _file(
        programs[0],
        f"/var/lib/{name}/base/{chance.randrange(1, 40)}/{chance.randrange(10**5)}",
        Access.READ | Access.WRITE,
        chance,
    )


def _logs(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    return _file(
        programs[0], f"/var/log/{name}/{chance.choice(_WORDS)}.log.{chance.randrange(2000)}", Access.WRITE, chance
    )


def _temporary(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    end = "".join(chance.choices("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", k=8))
    return _file(programs[1], f"/tmp/{name}.{end}", Access.WRITE, chance)


def _words(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    parts = [chance.choice(_WORDS) for _ in range(chance.randrange(3, 7))]
    return _file(programs[0], f"/srv/{name}/content/{'/'.join(parts)}.html", Access.READ, chance)


def _peers(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    return Behaviour(
        operation=Operation.CONNECT, executable=programs[0], parent=programs[0], family=2, socket_type=1, protocol=6,
        address=f"10.{chance.randrange(256)}.{chance.randrange(256)}.{chance.randrange(1, 255)}", port=chance.choice((443, 5432, 6379, 8080)),
    )  # fmt: skip


def _processes(chance: random.Random, name: str, programs: list[str]) -> Behaviour:
    return _file(programs[0], f"/proc/{chance.randrange(1, 32768)}/stat", Access.READ, chance)
