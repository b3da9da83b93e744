# SPDX-License-Identifier: Apache-2.0
"""The scope of a pod's own cgroup: what its next container is held to from its first call on, before anybody knows it.

Only rules on paths that deny, and the Allow rules among them: the runtime's own setup runs in the new cgroup too, and a posture
that blocks what nobody allowed would end it. Policies that name a container are left out, for it may be another. Network rules
are left out as well: a guard on the pod and one on the container would count each denial twice. Pure. Neighbour: `plan`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from schemas.enforcement import ScopePlan
from schemas.identity import Identity, Kind
from schemas.verdict import DEFAULT_POSTURE


def next_containers(living: Iterable[Identity]) -> list[Identity]:
    """One identity for each pod that is known: the container that it may start next. Links are those that its containers
    agree on."""
    pods: dict[int, list[Identity]] = {}
    for one in living:
        if one.kind is Kind.CONTAINER and one.complete and one.confirmed and one.pod_cgroup:
            pods.setdefault(one.pod_cgroup, []).append(one)
    return [_next(cgroup, pods[cgroup]) for cgroup in sorted(pods)]


def _next(cgroup: int, siblings: list[Identity]) -> Identity:
    first, *others = sorted(siblings, key=lambda one: one.uid)
    linked = [one.links for one in siblings if one.links]
    links = (
        {key: real for key, real in linked[0].items() if all(one.get(key) == real for one in linked)} if linked else {}
    )
    return msgspec.structs.replace(
        first, uid=f"pod-{first.pod_uid}", cgroups=(cgroup,), cgroup_path=first.cgroup_path.rpartition("/")[0],
        container_name="", image="", image_digest="", root_pid=0, pid_ns=0, mnt_ns=0, links=links,
        labels={key: value for key, value in first.labels.items() if all(one.labels.get(key) == value for one in others)},
    )  # fmt: skip


def from_birth(template: ScopePlan) -> ScopePlan:
    """What of a container's scope may hold before the container is known."""
    paths = tuple(rule for rule in template.paths if rule.ref.policy != DEFAULT_POSTURE)
    if not any(rule.stops for rule in paths):
        paths = ()
    return msgspec.structs.replace(template, paths=paths, network=(), whitelist=(), posture=())
