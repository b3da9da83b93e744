# SPDX-License-Identifier: Apache-2.0
"""Connections that are set apart before policies are made: of programs that are, to a new place after a quiet time, to a cloud's
credentials. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from itertools import pairwise

from policy.learn.evidence import Evidence
from policy.learn.network.addresses import metadata_service, parsed
from policy.learn.network.flows import FlowKey, Flows, Subject
from policy.learn.review import TWICE, UNTOLD, ReviewItem, sort_out
from policy.learn.sightings import Sighting, by_behaviour, paths
from policy.learn.workloads import LearntWorkload, workload
from schemas.operations import Class, Operation, class_of

NEW_PLACE = "first connection to or from there after the workload had been doing nothing new"
_SOCKETS = {operation.name.lower() for operation in Operation if class_of(operation) is Class.NETWORK}
CREDENTIALS = "a cloud's metadata service, which hands out credentials"


def known_programs(
    sightings: Iterable[Sighting], accepted: Collection[str]
) -> tuple[list[Sighting], list[tuple[LearntWorkload, ReviewItem]], set[str]]:
    """(the sightings of sockets by programs that are believed, the programs that are not and that used sockets, which of `accepted` there
    were). `sightings`: of all classes, for what a program wrote says whether it may be run."""
    groups: dict[LearntWorkload, list[Sighting]] = {}
    for one in sightings:
        groups.setdefault(workload(one.identity), []).append(one)
    kept: list[Sighting] = []
    met: set[str] = set()
    apart: list[tuple[LearntWorkload, ReviewItem]] = []
    for of, some in sorted(groups.items()):
        found = sort_out(of.label, by_behaviour(some), accepted, 1 << 62, lambda base, late: [])
        met |= found.accepted
        run = {
            path for each in found.shown if each.behaviour.operation is Operation.EXEC for path in paths(each.behaviour)
        }
        strange = {item.resource: item for item in found.apart if item.operation == "exec" and item.resource not in run}
        sockets = [one for one in some if one.behaviour.cls is Class.NETWORK]
        kept += [one for one in sockets if one.behaviour.executable not in strange]
        used = {one.behaviour.executable for one in sockets}
        apart += [(of, item) for path, item in strange.items() if path in used]
        apart += [
            (of, item) for item in found.apart if item.reason == UNTOLD and set(item.operation.split(",")) & _SOCKETS
        ]
    return kept, apart, met


def set_apart(
    found: Flows, accepted: Collection[str], quiet_ns: int
) -> tuple[list[tuple[LearntWorkload, ReviewItem]], set[str]]:
    """Takes out of `found.seen` what one instance alone did and nobody accepted; (what and why, which of `accepted` there were)."""
    by_subject: dict[Subject, dict[FlowKey, Evidence]] = {}
    for key, evidence in found.seen.items():
        by_subject.setdefault(key.subject, {})[key] = evidence
    met: set[str] = set()
    apart: list[tuple[LearntWorkload, ReviewItem]] = []
    for subject, some in sorted(by_subject.items()):
        births: dict[str, int] = {}
        for key, evidence in some.items():
            births[_place(key)] = min(evidence.first, births.get(_place(key), evidence.first))
        quiet = _quiet(sorted(set(births.values())), quiet_ns)
        for key, evidence in sorted(some.items(), key=lambda item: item[0]):
            address = parsed(key.peer.name) if key.peer.kind == "outside" else None
            if address is not None and metadata_service(address):
                why = CREDENTIALS
            elif quiet is not None and births[_place(key)] > quiet:
                why = NEW_PLACE
            else:
                continue
            item = _item(subject, key, evidence, why)
            if item.ident in accepted:
                met.add(item.ident)
            elif len(evidence.instances) < TWICE:
                del found.seen[key]
                apart.append((subject.workload, item))
    return apart, met


def _quiet(moments: list[int], quiet_ns: int) -> int | None:
    """The last moment of the first stretch in which a new place was new again after `quiet_ns`; None when there is none."""
    for before, after in pairwise(moments):
        if after - before >= quiet_ns:
            return before
    return None


def _place(key: FlowKey) -> str:
    """Of the internet a network, else the peer: one more server of a cloud is no news."""
    place = str(key.peer)
    if key.peer.kind == "outside":
        place = place.rpartition(".")[0] if "." in place else ":".join(place.split(":")[:4])
    return f"{key.ingress} {place} {key.port.protocol} {key.port.name or key.port.first}"


def _item(subject: Subject, key: FlowKey, evidence: Evidence, why: str) -> ReviewItem:
    resource = f"{key.peer} {key.port.protocol} {key.port.name or key.port.first}"
    text = "\0".join((subject.workload.label, "Network", str(key.ingress), resource, why))
    return ReviewItem(
        ident=hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest(), reason=why,
        operation="ingress" if key.ingress else "egress", resource=resource, sources=tuple(sorted(evidence.sources)), count=evidence.count,
        first=evidence.first, last=evidence.last, instances=len(evidence.instances), pods=(),
    )  # fmt: skip
