# SPDX-License-Identifier: Apache-2.0
"""`hauberk delete policy NAME` or `-f FILE`: a tombstone on the `policies` topic. `hauberk delete node NAME`: of all a node said."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hauberk.client import parser as verb_parser
from hauberk.client import readable, with_bus
from hauberk.policy_names import SHORT, named

if TYPE_CHECKING:
    from bus.contract import Bus


def parser() -> argparse.ArgumentParser:
    """By name, by file, or all."""
    made = verb_parser("delete", "Delete policies, or forget a node that left for good.")
    made.add_argument(
        "what", nargs="?", choices=("policy", "policies", *SHORT, "node", "nodes"), help="what is deleted"
    )
    made.add_argument(
        "names", nargs="*", metavar="NAME", help="name, namespace/name, or kind/name as `get -o name` prints it"
    )
    made.add_argument("-f", "--filename", action="append", default=[], metavar="FILE", help="the policies in this file")
    made.add_argument("-R", "--recursive", action="store_true", help="subdirectories of a directory too")
    made.add_argument("-n", "--namespace", help="only in this namespace")
    made.add_argument("--all", action="store_true", help="every policy")
    made.add_argument(
        "--force",
        action="store_true",
        help="node: also one that was heard of in the last 2 minutes; it comes back if it runs; policy: also an object of a cluster",
    )
    made.epilog = (
        "A node that is deleted is no longer waited for and no longer planned for. What its kernel enforces it goes on "
        "enforcing, and when its agent starts again it is back."
    )
    return made


def main(argv: Sequence[str]) -> int:
    """Exit 1 when something named is not there."""
    made = parser()
    given = made.parse_args(argv)
    if not given.filename and not given.all and not given.names:
        made.error("expected names, -f FILE or --all")
    if given.what in ("node", "nodes"):
        if given.filename or given.all or given.namespace or not given.names:
            made.error("expected names of nodes and nothing else; `hauberk get nodes` lists them")
        return with_bus(given, lambda bus: drop(bus, given.names, given.force))

    async def work(bus: Bus) -> int:
        from bus.contract import Record
        from bus.record_times import newest, not_before
        from schemas.enforcement import decode_plan
        from schemas.policy import reference
        from schemas.policy_owner import CLUSTER_OWNER, owner_of
        from schemas.topics import ENFORCEMENT_DESIRED, POLICIES

        records = await bus.latest(POLICIES)
        known = [key.decode("utf-8", "surrogateescape") for key in records]
        owned = {
            key.decode("utf-8", "surrogateescape") for key, one in records.items() if owner_of(one) == CLUSTER_OWNER
        }
        for plan in readable(
            [one.value for one in (await bus.latest(ENFORCEMENT_DESIRED)).values() if one.value], decode_plan, "plans"
        ):
            # What a damaged table forgot is still in force, and is taken down by saying so.
            known += [name for name in plan.policies if plan.held and name not in known]
        kind = SHORT.get(given.what or "")
        if kind or given.namespace:
            known = [
                key for key in known
                if (not kind or key.split("/")[0] == kind) and (not given.namespace or [*key.split("/"), ""][1] == given.namespace)
            ]  # fmt: skip
        wanted: list[str] = list(known) if given.all else []
        missing: list[str] = []
        if given.filename:
            from hauberk.policy_files import read
            from policy.documents import key as key_of

            for document in read(given.filename, given.recursive, quiet=True):
                key = key_of(document).decode()
                wanted += [key] if key in known else []
                missing += [] if key in known else [reference(key)]
        for name in given.names:
            hits = named(known, name)
            wanted += hits
            missing += [] if hits else [name]
        kept = [] if given.force else [key for key in dict.fromkeys(wanted) if key in owned]
        for key in kept:
            print(
                f"hauberk delete: {reference(key)} is an object of the cluster: delete it with kubectl; --force deletes it here all the same, "
                "until the cluster's watch starts again",
                file=sys.stderr,
            )
        wanted = [key for key in wanted if key not in kept]
        if wanted:
            gone = [Record(key.encode("utf-8", "surrogateescape"), None) for key in dict.fromkeys(wanted)]
            await bus.publish(POLICIES, not_before(newest(records.values()), gone))
        for key in dict.fromkeys(wanted):
            print(f"{reference(key).lower()} deleted")
        for name in missing:
            print(
                f"hauberk delete: expected policy `{name}`, there is none; `hauberk get policies` lists them",
                file=sys.stderr,
            )
        return 1 if missing or kept else 0

    return with_bus(given, work)


async def drop(bus: Bus, names: Sequence[str], force: bool) -> int:
    """Forget these nodes; 1 when one is not known, or is still heard of and not forced."""
    import time

    from hauberk.nodes import STALE_SECONDS, forget, last_heard
    from hauberk.output import age

    heard = await last_heard(bus)
    wrong = 0
    for name in dict.fromkeys(names):
        ago = time.time() - heard.get(name, 0.0)
        if name in heard and ago < STALE_SECONDS and not force:
            print(
                f"hauberk delete: expected `{name}` to be away, it was heard of {age(ago)} ago; end its agent and wait "
                f"{STALE_SECONDS:g} s, or --force",
                file=sys.stderr,
            )
            wrong = 1
        elif await forget(bus, name):
            print(f"node/{name} deleted")
        else:
            print(
                f"hauberk delete: expected node `{name}`, there is none; `hauberk get nodes` lists them",
                file=sys.stderr,
            )
            wrong = 1
    return wrong
