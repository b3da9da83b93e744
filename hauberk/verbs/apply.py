# SPDX-License-Identifier: Apache-2.0
"""`hauberk apply -f FILE`: policies to the `policies` topic; all of them or, when one has an error, none."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hauberk.client import parser as verb_parser
from hauberk.client import with_bus
from hauberk.policy_files import read
from schemas.policy import ANNOTATION_FORCE, ANNOTATION_UNCONFIRMED, reference

if TYPE_CHECKING:
    from bus.contract import Bus
    from schemas.policy import PolicyDocument


_SHOWN: Final = 4
"""Rules that nothing sees which a warning lists; `policy check` lists all."""


def parser() -> argparse.ArgumentParser:
    """Files and how careful to be."""
    made = verb_parser("apply", "Apply policies from files. Nothing is applied when any of them has an error.")
    made.add_argument(
        "-f", "--filename", action="append", required=True, metavar="FILE", help="file, directory or `-`; repeatable"
    )
    made.add_argument("-R", "--recursive", action="store_true", help="subdirectories of a directory too")
    made.add_argument("--strict", action="store_true", help="warnings are errors")
    made.add_argument(
        "--force", action="store_true",
        help="hold rules of host policies also where they would lock the operator out (annotation hauberk.io/force: enabled)",
    )  # fmt: skip
    made.add_argument(
        "--confirm", action="store_true",
        help="hold them for a minute: each node lifts them again unless `hauberk confirm NAME` is given by then, also when its agent is killed",
    )  # fmt: skip
    made.add_argument("--dry-run", action="store_true", help="show what would be done, do nothing")
    made.add_argument(
        "--wait", type=float, metavar="SECONDS", nargs="?", const=10.0,
        help="until every node says it is in force, 10 s if no number is given; a node that was not heard of for 2 minutes is named and not waited for",
    )  # fmt: skip
    return made


async def publish(bus: Bus, documents: Sequence[Any], dry_run: bool = False) -> list[tuple[str, str]]:
    """(policy, created|configured|unchanged) for each document, published where it changed. Refused for one that the cluster owns."""
    from bus.contract import Record
    from bus.record_times import newest, not_before
    from policy.documents import key, to_json
    from schemas.errors import Refused
    from schemas.policy_owner import CLUSTER_OWNER, owner_of
    from schemas.topics import POLICIES

    known = await bus.latest(POLICIES)
    owned = [
        reference(document.key)
        for document in documents
        if (old := known.get(key(document))) and owner_of(old) == CLUSTER_OWNER
    ]
    if owned:
        raise Refused(
            f"expected policies of your own, got {', '.join(owned)}, which {'is an object' if len(owned) == 1 else 'are objects'} "
            "of the cluster; change them there with kubectl, or apply under another name"
        )
    told, records = [], []
    for document in documents:
        name, value = key(document), to_json(document)
        old = known.get(name)
        told.append((name.decode(), "created" if old is None else "unchanged" if old.value == value else "configured"))
        if old is None or old.value != value:
            records.append(Record(name, value))
    if records and not dry_run:
        await bus.publish(POLICIES, not_before(newest(known.values()), records))
    return told


def main(argv: Sequence[str]) -> int:
    """Parse all, then publish all."""
    given = parser().parse_args(argv)
    documents = read(given.filename, given.recursive, given.strict)
    if given.force:
        documents = [annotated(one, ANNOTATION_FORCE, "enabled") for one in documents]

    if given.confirm:
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime()) + f".{time.time_ns() // 1000 % 10**6:06}Z"
        documents = [annotated(one, ANNOTATION_UNCONFIRMED, since) for one in documents]

    async def work(bus: Bus) -> int:
        told = await publish(bus, documents, given.dry_run)
        for name, what in told:
            print(f"{reference(name).lower()} {what}{' (dry run)' if given.dry_run else ''}")
        if given.confirm and not given.dry_run:
            names = " ".join(dict.fromkeys(document.name for document in documents))
            print(f"held for 60 s on each node, then lifted unless: hauberk confirm {names}")
            for document, (_, what) in zip(documents, told, strict=True):
                if what == "configured":
                    print(
                        f"warning: {document.name}: what was there of it is not kept: after the minute nothing of this policy holds "
                        "unless it is confirmed",
                        file=sys.stderr,
                    )
        _warn(given, documents)
        if given.wait is not None and not given.dry_run:
            from hauberk.rollout import in_force

            return await in_force(bus, [name for name, _ in told], given.wait)
        return 0

    return with_bus(given, work)


def annotated(document: PolicyDocument, name: str, value: str | None) -> PolicyDocument:
    """`document` with this annotation, without it for None."""
    import msgspec

    from policy.documents import from_json

    body = msgspec.json.decode(document.raw)
    annotations = {key: text for key, text in (body["metadata"].get("annotations") or {}).items() if key != name}
    body["metadata"]["annotations"] = annotations if value is None else annotations | {name: value}
    return from_json(msgspec.json.encode(body), document.origin)


def _warn(given: argparse.Namespace, documents: Sequence[Any]) -> None:
    """One line for each policy with Block rules that nothing of this version holds as they are written."""
    from hauberk.policies import kills, postures
    from policy.rules.normalise import normalise
    from policy.text.coverage import CANNOT
    from policy.tools.explain import HOST_ONLY, unheld
    from policy.tools.lockouts import lockouts
    from schemas.verdict import Mode

    signal, settings = kills(given), postures(given)
    for document in documents:
        policy = normalise(document)
        found = unheld(policy, signal=signal)
        if not policy.enabled:
            continue
        for one in lockouts(document, settings):
            print(
                f"warning: {policy.key.name}: not enforced: {one.ref.position or one.ref.policy}: {one.reason}",
                file=sys.stderr,
            )
        if found.unseen:
            more = f" and {len(found.unseen) - _SHOWN} more" if len(found.unseen) > _SHOWN else ""
            print(
                f"warning: {policy.key.name}: {CANNOT}, so it is neither reported nor enforced: {', '.join(found.unseen[:_SHOWN])}{more}",
                file=sys.stderr,
            )
        if not found.blocks or policy.mode is not Mode.ENFORCE:
            continue
        said = []
        if found.unheld:
            said.append(
                f"{found.unheld} of {found.blocks} Block rule{'s' * (found.blocks != 1)} {'is' if found.unheld == 1 else 'are'} "
                "only audited by the backends that a node uses by default"
            )
            if found.by_signal:
                which = "" if found.by_signal == found.unheld else f" ({found.by_signal} of them)"
                said[-1] += f": add the annotation hauberk.io/signal: enabled to end the process instead{which}"
        if found.host:
            said.append(HOST_ONLY)
        if said:
            said.append("`hauberk policy explain -f FILE` says which")
            print(f"warning: {policy.key.name}: {'; '.join(said)}", file=sys.stderr)
