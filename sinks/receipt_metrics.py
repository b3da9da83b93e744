# SPDX-License-Identifier: Apache-2.0
"""What nodes enforce, by their receipts, as metrics. Pure. Neighbours: `prometheus` (of all nodes), a node's own endpoint."""

from __future__ import annotations

from collections.abc import Callable, Collection

from schemas.backends import backend_name
from schemas.enforcement import InForce, Receipt
from sinks.formats.exposition import Family, Sample


def enforcement(receipts: Collection[Receipt]) -> list[Family]:
    """What nodes enforce, by their receipts."""

    def gauge(name: str, about: str, value: Callable[[Receipt], float]) -> Family:
        samples: list[Sample] = [((("node", receipt.node),), value(receipt)) for receipt in receipts]
        return Family(name=f"hauberk_enforcement_{name}", kind="gauge", help=about, samples=samples)

    def by_backend(name: str, about: str, value: Callable[[InForce], float]) -> Family:
        samples: list[Sample] = [
            ((("node", receipt.node), ("backend", backend_name(one.backend))), value(one))
            for receipt in receipts
            for one in receipt.in_force
        ]
        return Family(name=f"hauberk_enforcement_backend_{name}", kind="gauge", help=about, samples=samples)

    backends: list[Sample] = [
        ((("node", receipt.node), ("backend", backend_name(backend))), 1.0)
        for receipt in receipts
        for backend in receipt.backends
    ]
    return [
        gauge("generation", "Generation of the plan in force.", lambda receipt: receipt.generation),
        gauge("applied_timestamp_seconds", "When it was applied, Unix time.", lambda each: each.applied_ns / 1e9),
        gauge("apply_duration_seconds", "What the map updates took.", lambda receipt: receipt.took_ms / 1e3),
        gauge("scopes", "Containers and cgroups under a plan.", lambda receipt: receipt.scopes),
        gauge("rules", "Rules in force.", lambda receipt: receipt.rules),
        gauge("refused_rules", "Rules no backend of the node can enforce.", lambda each: len(each.refused)),
        gauge("partial_rules", "Rules enforced in part.", lambda each: len(each.partial)),
        gauge("failed_updates", "Updates the kernel refused.", lambda receipt: len(receipt.failed)),
        Family(name="hauberk_enforcement_backend", kind="gauge", help="Backends in use.", samples=backends),
        by_backend("scopes", "Containers and cgroups under a backend.", lambda one: one.scopes),
        by_backend("rules", "Rules in force by a backend.", lambda one: one.rules),
    ]
