# SPDX-License-Identifier: Apache-2.0
"""`hauberk up`: every stage in one process over one bus, live or from a recording."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser


def parser() -> argparse.ArgumentParser:
    """What is applied at start, what is replayed, what is shown."""
    made = verb_parser("up", "Run every stage in this process, over the embedded bus. Ctrl-C ends it.")
    made.add_argument(
        "-f", "--filename", action="append", default=[], metavar="FILE", help="policies to apply at start; repeatable"
    )
    made.add_argument(
        "--replay", metavar="RECORDING", help="judge a recorded ring instead of this kernel's; needs no root"
    )
    made.add_argument(
        "--speed",
        type=speed,
        default=1.0,
        metavar="X",
        help="of the replay: 1 as recorded, 10 ten times as fast, 0 at once",
    )
    made.add_argument(
        "--skip-damaged", action="store_true", help="of the replay: leave damaged blocks out and count them"
    )
    made.add_argument("-q", "--quiet", action="store_true", help="no live alerts on standard output")
    made.add_argument(
        "-o", "--output", choices=("line", "text", "json"), default="line", help="form of the live alerts"
    )
    return made


def speed(text: str) -> float:
    """How many times as fast; 0 at once."""
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number from 0 on, got `{text}`")
    return found


def main(argv: Sequence[str]) -> int:
    """Run until told to stop; a replay ends by itself."""
    from sensors.node.priority import NICE, current, prefer

    given = parser().parse_args(argv)
    usual = current()
    if not given.replay:
        # Before the imports: started while floods keep every core busy they alone took 10 s.
        prefer(NICE)
    try:
        import asyncio

        from hauberk.up import run_up

        return asyncio.run(run_up(given, usual))
    finally:
        prefer(usual)
