# SPDX-License-Identifier: Apache-2.0
"""`hauberk cluster`: a Kubernetes cluster watched, as a process of its own, over the configured bus."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser


def parser() -> argparse.ArgumentParser:
    """Only settings."""
    return verb_parser(
        "cluster", "Watch a Kubernetes cluster: pods, namespaces, nodes, services and policies to the bus."
    )


def main(argv: Sequence[str]) -> int:
    """Run until told to stop."""
    import asyncio

    from hauberk.single_stage import run_cluster

    return asyncio.run(run_cluster(parser().parse_args(argv)))
