# SPDX-License-Identifier: Apache-2.0
"""Runs a command in a booted Debian kernel, in this checkout with its environment: `tests/vm/run.py --kernel 6.1 -- pytest ...`.

`pytest`, `python` and `hauberk` are those of the checkout's environment. Files of the host are seen as they are and never
written, but for ROOM in the guest's environment: a directory of both. Exit status: the command's; 2 when no guest can be had.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from vmrig.debian import NoPackage
from vmrig.kernels import SOURCES, kernel
from vmrig.machine import CHECKOUT, Guest, GuestFailed
from vmrig.programs import precompile


def main() -> int:
    """The command."""
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter)
    asked.add_argument("--kernel", choices=SOURCES, default="6.1", help="series of the kernel")
    asked.add_argument("--seconds", type=float, default=3600, help="how long the command may take")
    asked.add_argument("--cold", action="store_true", help="boot, instead of going on from a template")
    asked.add_argument("--parameters", default="", help="more on the kernel's command line; boots")
    asked.add_argument("--no-programs", action="store_true", help="do not compile the eBPF programs beforehand")
    asked.add_argument("--console", action="store_true", help="print the kernel's console at the end")
    asked.add_argument("command", nargs="+", help="after `--`: what to run")
    given = asked.parse_args()
    try:
        wanted = kernel(given.kernel)
        if not given.no_programs:
            precompile(wanted)
        guest = Guest(wanted, template=not (given.cold or given.parameters), parameters=given.parameters)
    except (NoPackage, GuestFailed) as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2

    def say(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    path = f"{CHECKOUT}/.venv/bin:{os.environ.get('PATH', '/usr/bin:/bin')}"
    try:
        status = guest.lines(
            given.command, say, seconds=given.seconds, PATH=path, ROOM=str(guest.room), PYTHONUNBUFFERED="1"
        )
        if given.console:
            print((guest.place / "console").read_text(errors="replace"))
    except GuestFailed as error:
        print(f"run.py: {error}", file=sys.stderr)
        return 2
    finally:
        guest.off()
    return status


if __name__ == "__main__":
    sys.exit(main())
