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
    made = verb_parser("record", "Record the raw ring of this node. Where a running `hauberk up` or `node` holds the pins and its "
                       "bus is that of --state, what it publishes is recorded; else the programs are loaded for the time of the "
                       "recording. The file is readable by its owner alone.")  # fmt: skip
    made.usage = "hauberk record [OPTIONS] FILE [-- COMMAND [ARGUMENT ...]]"
    made.epilog = "COMMAND is run, and recorded until it ends."
    made.add_argument("file", metavar="FILE", help="the recording; appended to when it is one already")
    made.add_argument("--for", dest="duration", metavar="DURATION", help="end after so long; default Ctrl-C")
    made.add_argument(
        "--limit-bytes", type=int, default=0, metavar="N", help="end after so many bytes of frames; 0: no limit"
    )
    made.add_argument("--attach", action="store_true", help="record what is on the bus of --state, never load programs")
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
        if not command:
            parser().error("expected a command after `--`, got none")
    made = parser()
    given, rest = made.parse_known_args(words)
    if rest and not rest[0].startswith("-"):
        import shlex

        made.error(f"expected a command after `--`, got `{shlex.join(rest)}` without; write `-- {shlex.join(rest)}`")
    if rest:
        made.error(f"expected known options, got `{rest[0]}`; the options of a command stand after `--`")
    given.command = command
    given.seconds = seconds(given.duration) if given.duration else None
    code, told = asyncio.run(record(given))
    print(f"hauberk record: {told}", file=sys.stderr)
    return code
