# SPDX-License-Identifier: Apache-2.0
"""Counts of the watch of a cluster."""

from __future__ import annotations

import msgspec

from schemas.stats import Gauge


class ClusterStats(msgspec.Struct):
    """Plain counts since start. `facts`: known now; `published`, `removed`: records written; `unchanged`: changes of objects that
    changed no fact; `undecoded`: objects that are not what the API reference says, whose last fact stays; `waiting`: not
    on the bus yet; `unpublished`: records that the bus refused for good, larger than it takes; `policies`: in force from objects of the cluster; `refused_policies`: objects that are no policy;
    `foreign_policies`: objects whose name a policy of `hauberk apply` has; `away`: kinds that cannot be followed now; `ended_facts`: pods, services and nodes that are over and whose facts stay, `dropped_facts`: of these, those whose
    facts went before their time, because there were too many; `cut`: times that an object had more labels than are kept of one;
    `misread`: pods, namespaces and nodes with an annotation that is not understood."""

    facts: Gauge = 0
    published: int = 0
    removed: int = 0
    unchanged: int = 0
    undecoded: int = 0
    waiting: Gauge = 0
    unpublished: int = 0
    policies: Gauge = 0
    refused_policies: Gauge = 0
    foreign_policies: Gauge = 0
    away: Gauge = 0
    ended_facts: Gauge = 0
    dropped_facts: int = 0
    cut: int = 0
    misread: Gauge = 0
