# SPDX-License-Identifier: Apache-2.0
"""`hauberk node`: one part of `up` as a process of its own, over the configured bus."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser


def parser() -> argparse.ArgumentParser:
    """Settings, and the end of everything."""
    made = verb_parser("node", "Run the sensor, the inventory and the enforcement of this node.")
    made.add_argument("--remove", action="store_true",
                      help="instead take down the rules and programs that are pinned here, and stay until told to stop")  # fmt: skip
    return made


def main(argv: Sequence[str]) -> int:
    """Run until told to stop."""
    from sensors.node.priority import NICE, current, prefer

    given = parser().parse_args(argv)
    usual = current()
    # Before the imports, as `up` does.
    prefer(NICE)
    try:
        import asyncio

        if given.remove:
            from hauberk.removal import remove_here

            return asyncio.run(remove_here(given))
        from hauberk.single_stage import run_node

        return asyncio.run(run_node(given, usual))
    finally:
        prefer(usual)
