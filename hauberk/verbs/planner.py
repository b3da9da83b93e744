# SPDX-License-Identifier: Apache-2.0
"""`hauberk planner`: one part of `up` as a process of its own, over the configured bus."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser


def parser() -> argparse.ArgumentParser:
    """Only settings."""
    return verb_parser("planner", "Run the planner: policies and inventory in, plans out.")


def main(argv: Sequence[str]) -> int:
    """Run until told to stop."""
    import asyncio

    from hauberk.single_stage import run_planner

    return asyncio.run(run_planner(parser().parse_args(argv)))
