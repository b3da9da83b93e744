# SPDX-License-Identifier: Apache-2.0
"""`hauberk confirm NAME`: a policy that was applied with `--confirm` is held for good."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hauberk.client import parser as verb_parser
from hauberk.client import with_bus
from hauberk.policy_names import named

if TYPE_CHECKING:
    from bus.contract import Bus


def parser() -> argparse.ArgumentParser:
    """Names of policies."""
    made = verb_parser(
        "confirm",
        "Keep policies that were applied with `hauberk apply --confirm`. One that was lifted already is held again.",
    )
    made.add_argument(
        "names", nargs="+", metavar="NAME", help="name of a policy, NAMESPACE/NAME, or KIND/NAME as `apply` prints it"
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Exit 1 when something named is not there."""
    given = parser().parse_args(argv)

    async def work(bus: Bus) -> int:
        from hauberk.verbs.apply import annotated, publish
        from policy.documents import from_json
        from schemas.policy import ANNOTATION_UNCONFIRMED, reference
        from schemas.topics import POLICIES

        known = {key.decode(): record for key, record in (await bus.latest(POLICIES)).items() if record.value}
        wrong = 0
        for name in dict.fromkeys(given.names):
            hits = named(known, name)
            if not hits:
                print(
                    f"hauberk confirm: expected policy `{name}`, there is none; `hauberk get policies` lists them",
                    file=sys.stderr,
                )
                wrong = 1
            for key in hits:
                document = from_json(known[key].value or b"", key)
                waits = ANNOTATION_UNCONFIRMED in document.policy.metadata.annotations
                await publish(bus, [annotated(document, ANNOTATION_UNCONFIRMED, None)] if waits else [])
                print(f"{reference(key).lower()} {'confirmed' if waits else 'needs no confirmation'}")
        return wrong

    return with_bus(given, work)
