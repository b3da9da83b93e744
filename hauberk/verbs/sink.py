# SPDX-License-Identifier: Apache-2.0
"""`hauberk sink`: one part of `up` as a process of its own, over the configured bus; one sink or all of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser


def parser() -> argparse.ArgumentParser:
    """Which one, and settings."""
    made = verb_parser("sink", "Run the configured sinks, or one of them.")
    made.add_argument(
        "name", metavar="SINK", nargs="?", default="", help="only this sink of the settings; all when left out"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Run until told to stop."""
    import asyncio

    from hauberk.single_stage import run_sink

    return asyncio.run(run_sink(parser().parse_args(argv)))
