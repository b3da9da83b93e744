# SPDX-License-Identifier: Apache-2.0
"""`hauberk apply -f FILE`: policies to the `policies` topic; all of them or, when one has an error, none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hauberk import inputs
from hauberk.client import parser as verb_parser
from hauberk.client import with_bus
from schemas.errors import SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus
    from schemas.enforcement import Plan, Receipt


_SHOWN: Final = 4
"""Rules that nothing sees which a warning lists; `policy check` lists all."""
_PATIENCE: Final = 1.0
"""Seconds of `--wait` after which the nodes that are waited for are named."""


def parser() -> argparse.ArgumentParser:
    """Files and how careful to be."""
    made = verb_parser("apply", "Apply policies from files. Nothing is applied when any of them has an error.")
    made.add_argument(
        "-f", "--filename", action="append", required=True, metavar="FILE", help="file, directory or `-`; repeatable"
    )
    made.add_argument("-R", "--recursive", action="store_true", help="subdirectories of a directory too")
    made.add_argument("--strict", action="store_true", help="warnings are errors")
    made.add_argument("--dry-run", action="store_true", help="say what would be done, do nothing")
    made.add_argument(
        "--wait", type=float, metavar="SECONDS", nargs="?", const=10.0,
        help="until every node says it is in force, 10 s if no number is given; a node that was not heard of for 2 minutes is named and not waited for",
    )  # fmt: skip
    return made


def files(given: Sequence[str], recursive: bool) -> Iterator[tuple[str, bytes]]:
    """(origin, bytes) of each file named, of the .yaml, .yml and .json files (but no NAME.tests.yaml) of each directory, of standard input for `-`."""
    for name in given:
        if name == "-":
            yield "<stdin>", inputs.read(name, "policies", inputs.POLICIES)
            continue
        path = Path(name)
        if path.is_dir():
            found = sorted(
                file
                for file in (path.rglob("*") if recursive else path.glob("*"))
                if file.suffix in (".yaml", ".yml", ".json") and not file.stem.endswith(".tests")
            )
            if not found:
                raise SettingsError(f"expected policies (.yaml, .yml, .json) in `{name}`, found none")
        else:
            found = [path]
        for file in found:
            yield str(file), inputs.read(str(file), "a policy file", inputs.POLICIES)


def read(given: Sequence[str], recursive: bool, strict: bool = False, quiet: bool = False) -> list[Any]:
    """Every policy document in the files; all diagnostics go to stderr, PolicyError when one of them is an error."""
    from policy.diagnostics import render
    from policy.parse import parse
    from schemas.errors import PolicyError

    documents: list[Any] = []
    found: list[object] = []
    errors = warnings = 0
    for origin, data in files(given, recursive):
        parsed = parse(data, origin, strict=strict)
        documents += parsed.policies
        found += parsed.diagnostics
        for diagnostic in parsed.diagnostics:
            errors += diagnostic.level == "error"
            warnings += diagnostic.level == "warning"
            if diagnostic.level == "error" or not quiet:
                print(render(diagnostic, parsed.text), file=sys.stderr)
    if errors:
        raise PolicyError(
            f"{errors} error{'s' * (errors != 1)}, {warnings} warning{'s' * (warnings != 1)}; nothing was applied",
            tuple(found),
        )
    if not documents:
        raise SettingsError(f"expected at least one policy in {', '.join(given)}, found none")
    return documents


async def publish(bus: Bus, documents: Sequence[Any], dry_run: bool = False) -> list[tuple[str, str]]:
    """(policy, created|configured|unchanged) for each document, published where it changed."""
    from bus.contract import Record
    from policy.documents import key, to_json
    from schemas.topics import POLICIES

    known = await bus.latest(POLICIES)
    told, records = [], []
    for document in documents:
        name, value = key(document), to_json(document)
        old = known.get(name)
        told.append((name.decode(), "created" if old is None else "unchanged" if old.value == value else "configured"))
        if old is None or old.value != value:
            records.append(Record(name, value))
    if records and not dry_run:
        await bus.publish(POLICIES, records)
    return told


def main(argv: Sequence[str]) -> int:
    """Parse all, then publish all."""
    given = parser().parse_args(argv)
    documents = read(given.filename, given.recursive, given.strict)

    async def work(bus: Bus) -> int:
        told = await publish(bus, documents, given.dry_run)
        for name, what in told:
            print(f"{name.lower()} {what}{' (dry run)' if given.dry_run else ''}")
        _warn(given, documents)
        if given.wait is not None and not given.dry_run:
            return await in_force(bus, [name for name, _ in told], given.wait)
        return 0

    return with_bus(given, work)


def _warn(given: argparse.Namespace, documents: Sequence[Any]) -> None:
    """One line for each policy with Block rules that nothing of this version holds as they are written."""
    from hauberk.policies import kills
    from policy.explain import HOST_ONLY, unheld
    from policy.normalise import normalise
    from policy.sight import CANNOT
    from schemas.verdict import Mode

    signal = kills(given)
    for policy in map(normalise, documents):
        found = unheld(policy, signal=signal)
        if not policy.enabled:
            continue
        if found.unseen:
            more = f" and {len(found.unseen) - _SHOWN} more" if len(found.unseen) > _SHOWN else ""
            print(
                f"warning: {policy.key.name}: {CANNOT}, so it neither tells nor holds: {', '.join(found.unseen[:_SHOWN])}{more}",
                file=sys.stderr,
            )
        if not found.blocks or policy.mode is not Mode.ENFORCE:
            continue
        said = []
        if found.unheld:
            said.append(
                f"{found.unheld} of {found.blocks} Block rule{'s' * (found.blocks != 1)} {'is' if found.unheld == 1 else 'are'} "
                "only audited on nodes of this version (no LSM backend)"
            )
            if found.by_signal:
                which = "" if found.by_signal == found.unheld else f" ({found.by_signal} of them)"
                said[-1] += f": add the annotation hauberk.io/signal: enabled to end the process instead{which}"
        if found.host:
            said.append(HOST_ONLY)
        if said:
            said.append("`hauberk policy explain -f FILE` says which")
            print(f"warning: {policy.key.name}: {'; '.join(said)}", file=sys.stderr)


async def in_force(bus: Bus, names: Sequence[str], deadline: float) -> int:
    """Wait until each node's plan knows of the policies `names` and of the symlinks on their paths, and its receipt is of that plan;
    0 when all are, 1 when not.

    Nodes that are away (`nodes.STALE_SECONDS`) are named and not waited for. Of plans no clock is compared: `created_ns` is the
    bus's own time of the newest policy in it."""
    import asyncio
    import contextlib
    import math
    import time

    from hauberk.nodes import STALE_SECONDS, last_heard
    from hauberk.output import age
    from schemas.enforcement import decode_plan, decode_receipt
    from schemas.errors import DecodeError
    from schemas.topics import ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS, POLICIES
    from sensors.links import named

    clock = asyncio.get_running_loop().time
    started = clock()
    wanted = set(names)
    keys = {name.encode() for name in names}
    mine = [record for key, record in (await bus.latest(POLICIES)).items() if key in keys]
    since = max((record.timestamp_ms for record in mine), default=0) * 1_000_000
    # What a path is in each root is looked up once the node has read the policy; the first plan may be without.
    linked = since if any(named(record.value or b"") for record in mine) else 0
    told = ""
    heard: dict[str, float] = {}
    looked = -math.inf
    while True:
        plans, said = [], []
        for one in (await bus.latest(ENFORCEMENT_DESIRED)).values():
            with contextlib.suppress(DecodeError):  # its writer makes it again; `get nodes` says which are not read
                plans.append(decode_plan(one.value or b""))
        for one in (await bus.latest(ENFORCEMENT_STATUS)).values():
            with contextlib.suppress(DecodeError):
                said.append(decode_receipt(one.value or b""))
        receipts = {receipt.node: receipt for receipt in said}
        done = [
            plan
            for plan in plans
            if plan.created_ns >= since and plan.linked_ns >= linked and _answers(receipts.get(plan.node), plan)
        ]
        if len(done) < len(plans) and clock() > looked + 1.0:
            heard, looked = await last_heard(bus), clock()
        open_ = {plan.node for plan in plans} - {plan.node for plan in done}
        silent = {node: time.time() - heard.get(node, 0.0) for node in open_}
        away = {node: seconds for node, seconds in silent.items() if seconds > STALE_SECONDS}
        waited = ", ".join(node for node in sorted(silent) if node not in away)
        if done and not waited:
            for plan in done:
                _tell(receipts[plan.node])
            if not any(_enforces(plan, wanted) for plan in done):
                print("in force; nothing to enforce on any node for this policy now (audit, or no workload matches)")
        if (done and not waited) or clock() > started + deadline:
            for node, seconds in sorted(away.items()):
                when = f"last heard of {age(seconds)} ago" if node in heard else "never heard of"
                print(f"{node}: not waited for, {when}; `hauberk delete node {node}` drops it", file=sys.stderr)
        if done and not waited:
            return 0
        if clock() > started + deadline:
            of = f" of {waited}" if waited else ""
            print(
                f"hauberk apply: expected a receipt{of} within {deadline:g} s, got none; is `hauberk up` or `hauberk node` "
                "running, with enforcement on?",
                file=sys.stderr,
            )
            return 1
        if waited != told and clock() > started + _PATIENCE:
            print(f"waiting for {waited}", file=sys.stderr, flush=True)
            told = waited
        await asyncio.sleep(0.02)


def _answers(receipt: Receipt | None, plan: Plan) -> bool:
    return receipt is not None and (receipt.generation, receipt.digest) == (plan.generation, plan.digest)


def _enforces(plan: Plan, wanted: set[str]) -> bool:
    """Whether something of `wanted` is carried out by the plan, or is refused in it (which is told by itself)."""
    refs = [rule.ref for scope in plan.scopes for rule in scope.paths]
    refs += [rule.ref for scope in plan.scopes for rule in scope.network]
    refs += [refusal.ref for refusal in (*plan.refused, *plan.partial)]
    if any(f"{ref.kind}/{ref.namespace}/{ref.policy}" in wanted for ref in refs):
        return True
    # A posture has no rule of its own: where there is one, the policy may be why.
    return bool(wanted & set(plan.policies)) and any(scope.posture for scope in plan.scopes)


def _tell(receipt: Receipt) -> None:
    node = receipt.node
    print(f"{node}: generation {receipt.generation} in force, {receipt.rules} rules in {receipt.scopes} scopes")
    for refusal in receipt.refused:
        print(f"{node}: not enforced: {refusal.ref.policy} {refusal.ref.position}: {refusal.reason} [{refusal.code}]")
    # One sentence for all rules that it is true of: a policy of many would say it as many times.
    partial: dict[tuple[str, str], list[str]] = {}
    for one in receipt.partial:
        partial.setdefault((one.reason, one.code), []).append(f"{one.ref.policy} {one.ref.position}".rstrip())
    for (reason, code), rules in partial.items():
        more = f" and {len(rules) - 8} more" if len(rules) > 8 else ""
        print(f"{node}: enforced in part: {', '.join(rules[:8])}{more}: {reason} [{code}]")
    for sentence in receipt.failed:
        print(f"{node}: {sentence}", file=sys.stderr)
