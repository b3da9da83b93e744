# SPDX-License-Identifier: Apache-2.0
"""`hauberk record FILE`: what this node's ring says, with identities, to a file that `up --replay` plays anywhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from hauberk.client import parser as verb_parser
from hauberk.client import seconds


def parser() -> argparse.ArgumentParser:
    """Where to, for how long, of which command."""
    made = verb_parser("record", "Record the raw ring of this node. With a running `hauberk up` its frames are recorded, "
                       "without one the programs are loaded for the time of the recording.")  # fmt: skip
    made.add_argument("file", metavar="FILE", help="the recording; appended to when it is one already")
    made.add_argument("--for", dest="duration", metavar="DURATION", help="end after so long; default Ctrl-C")
    made.add_argument(
        "--limit-bytes", type=int, default=0, metavar="N", help="end after so many bytes of frames; 0: no limit"
    )
    made.add_argument("--attach", action="store_true", help="record what a running `hauberk up` or `node` publishes")
    made.add_argument(
        "command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="run this, and record until it ends"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Exit with the command's code when one was given."""
    import asyncio

    from hauberk.recording import record

    words = list(argv)
    command: list[str] = []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1 :]
    given = parser().parse_args(words)
    given.command = command
    given.seconds = seconds(given.duration) if given.duration else None
    code, told = asyncio.run(record(given))
    print(f"hauberk record: {told}", file=sys.stderr)
    return code
