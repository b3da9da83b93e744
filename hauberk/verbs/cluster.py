# SPDX-License-Identifier: Apache-2.0
"""`hauberk cluster`: a Kubernetes cluster watched, as a process of its own, over the configured bus."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser
from hauberk.client import seconds


def parser() -> argparse.ArgumentParser:
    """Settings, and what comes before an uninstall."""
    made = verb_parser(
        "cluster", "Watch a Kubernetes cluster: pods, namespaces, nodes, services and policies to the bus."
    )
    made.add_argument("--remove-from", metavar="NAMESPACE/DAEMONSET", default="",
                      help="instead have the nodes of this DaemonSet take down all rules and programs, and wait for them")  # fmt: skip
    made.add_argument(
        "--timeout", metavar="DURATION", default="10m", help="longest wait with --remove-from (default 10m)"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run until told to stop."""
    import asyncio

    given = parser().parse_args(argv)
    if given.remove_from:
        from hauberk.removal import remove_everywhere

        given.timeout = seconds(given.timeout)
        return asyncio.run(remove_everywhere(given))
    from hauberk.single_stage import run_cluster

    return asyncio.run(run_cluster(given))
