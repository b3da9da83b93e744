# SPDX-License-Identifier: Apache-2.0
"""What the summary verb knows beside the store: who addresses were (facts of the cluster), and the two sides of `--diff`."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hauberk.client import readable, seconds, with_bus
from schemas.errors import SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus
    from sinks.formats.summary_tables import PeerName
    from sinks.store.store import Query, StoredRow

_WINDOW = re.compile(r"(\d+(?:\.\d+)?[smhdw]?)(?:\.\.(\d+(?:\.\d+)?[smhdw]?))?")
Resolve = Callable[[str, int], "PeerName | None"]


def names(given: argparse.Namespace, *, owners: bool = False) -> Resolve:
    """Who an address was at a time (Unix ns). `owners`: pods by their workload, for what is compared over time. Without a bus nobody."""
    from policy.cluster_peers import ClusterPeers
    from schemas.cluster import decode
    from schemas.identity import workload_name
    from schemas.topics import CLUSTER
    from sinks.formats.summary_tables import PeerName

    async def facts(bus: Bus) -> list[tuple[bytes, bytes]]:
        return [(key, record.value) for key, record in (await bus.latest(CLUSTER)).items() if record.value is not None]

    peers = ClusterPeers()
    try:
        for key, fact in readable(with_bus(given, facts), lambda one: (one[0], decode(one[1])), "facts of the cluster"):
            peers.put(key, fact)
    except SettingsError:
        return lambda address, at: None

    @lru_cache(maxsize=65536)
    def resolve(address: str, at: int) -> PeerName | None:
        found = peers.peer(address, at / 1e9)
        if found is None:
            return None
        name = found.name
        if owners and found.owner.name:
            pod = name.removeprefix("pod/")
            # Of a static pod the owner is its node, and it is not the node.
            kind = "pod" if found.owner.ref == "Node" else found.owner.ref.lower()
            name = f"{kind}/{workload_name(found.owner, pod)}"
        said = "" if owners else ",".join(f"{key}={value}" for key, value in sorted(found.labels.items()))
        return PeerName(name=name, namespace=found.namespace, labels=said)

    # To the second: facts are no finer, and rows share answers.
    return lambda address, at: resolve(address, at // 1_000_000_000 * 1_000_000_000)


def side(text: str, given: argparse.Namespace, query: Query) -> Iterator[StoredRow]:
    """The rows of one side of `--diff`: another store or its state directory, `image=NAME`, or a window such as `2d..1d` (ago)."""
    from hauberk.configuration import existing_store
    from sinks.store.queries import SqliteReader

    path: Path | None = None
    image = ""
    other = Path(text)
    window = _WINDOW.fullmatch(text)
    if text.startswith("image="):
        image = text.removeprefix("image=")
        if not image:
            raise SettingsError(
                "expected a name after `image=` for --diff, got none: of all images nothing would be new"
            )
    elif other.exists():
        path = other / "summary.db" if other.is_dir() else other
    elif window is not None:
        now = time.time()
        since, until = int(now - seconds(window[1])), seconds(window[2]) if window[2] else 0.0
        if until and int(now - until) <= since:
            raise SettingsError(f"expected a window from earlier to later, such as 2d..1d, got `{text}`")
        query = msgspec.structs.replace(query, since=since, until=int(now - until) if until else None)
    else:
        raise SettingsError(f"expected a store, `image=NAME` or a window such as 2d..1d for --diff, got `{text}`")
    if path is not None and not path.exists():
        raise SettingsError(f"expected a summary store at `{path}`, there is none")
    reader = SqliteReader(str(path or existing_store(given)))
    found = False
    try:
        for row in reader.behaviours(query):
            if not image or row.identity.image == image or row.identity.image.endswith(f"/{image}"):
                found = True
                yield row
    finally:
        reader.close()
    if not found:
        raise SettingsError(f"expected behaviours in `{text}` for this selection, found none")


@lru_cache(maxsize=65536)
def shape(path: str) -> str:
    """A path with kinds in place of names that differ every time."""
    from policy.learn.components import strong
    from policy.learn.zones import temporary

    parts = path.split("/")
    return "/".join(strong(part, temporary("/".join(parts[:at]) or "/")) or part for at, part in enumerate(parts))


def placing(rows: list[StoredRow]) -> Callable[[StoredRow], str]:
    """What stands for each file that a program touched, as a learnt policy would say it: kinds of names, open directories."""
    from policy.learn.evidence import Evidence
    from policy.learn.places import places

    seen: dict[str, dict[str, Evidence]] = {}
    for row in rows:
        evidence = seen.setdefault(row.behaviour.executable, {}).setdefault(row.behaviour.resource, Evidence())
        evidence.add(row.count, row.first, row.last, row.identity.uid, row.behaviour.executable)
    found = {program: places(paths) for program, paths in seen.items()}
    return lambda row: found[row.behaviour.executable](row.behaviour.resource)
