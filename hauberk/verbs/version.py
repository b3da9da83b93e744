# SPDX-License-Identifier: Apache-2.0
"""`hauberk version`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parser() -> argparse.ArgumentParser:
    """No options but the form."""
    made = argparse.ArgumentParser(prog="hauberk version", description="Print the version.", allow_abbrev=False)
    made.add_argument("-o", "--output", choices=("text", "json"), default="text", help="form of the answer")
    return made


def main(argv: Sequence[str]) -> int:
    """Print version, Python, kernel and machine."""
    import json
    import platform
    from importlib.metadata import version

    given = parser().parse_args(argv)
    facts = {
        "hauberk": version("hauberk"),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "architecture": platform.machine(),
    }
    if given.output == "json":
        print(json.dumps(facts))
    else:
        print(
            f"hauberk {facts['hauberk']} ({facts['architecture']}, Linux {facts['kernel']}, Python {facts['python']})"
        )
    return 0
