# SPDX-License-Identifier: Apache-2.0
"""`hauberk release`: nothing is enforced on this node any more, at once and without a bus.

Empties the tables in the kernel and the profiles, and sets the saved plan aside, so that a start does not bring it back. Programs
stay and go on observing. An agent that runs carries out the next plan that it is given: delete or change the policies, or stop it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from hauberk.client import parser as verb_parser

ASIDE = "plan.released"
"""Where the saved plan is put, beside its place."""


def parser() -> argparse.ArgumentParser:
    """The settings alone."""
    return verb_parser(
        "release",
        "Take every cgroup of this node from under enforcement, at once and without a bus. The saved plan is set aside as "
        f"`{ASIDE}`. A running agent enforces again with the next plan that it is given.",
    )


def main(argv: Sequence[str]) -> int:
    """0 when nothing is enforced any more, 1 when something could not be released."""
    from typing import get_args

    from enforcers.apply import Applier
    from enforcers.swap import saved_file
    from hauberk.configuration import configuration
    from schemas.backends import Implemented
    from schemas.errors import PermissionMissing

    given = parser().parse_args(argv)
    settings, _, _ = configuration(given)
    if os.geteuid() != 0:
        raise PermissionMissing("expected root, got uid " + str(os.geteuid()) + "; run with sudo", operation="release")
    # Whatever the settings name now: a backend that they once named may hold something still.
    applier = Applier(settings.sensor.pin_dir, settings.node or os.uname().nodename, get_args(Implemented))
    try:
        held = len(applier.enforced)
        applier.clear()
        left = len(applier.enforced)
    finally:
        applier.close()
    kept = saved_file(settings.enforcement)
    if kept is not None and kept.exists():
        os.replace(kept, kept.with_name(ASIDE))
    print(f"released {held - left} cgroups" + (f"; {left} are still enforced" if left else ""))
    return 1 if left else 0
