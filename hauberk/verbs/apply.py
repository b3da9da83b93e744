# SPDX-License-Identifier: Apache-2.0
"""`hauberk apply -f FILE`: policies to the `policies` topic; all of them or, when one has an error, none."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hauberk.client import parser as verb_parser
from hauberk.client import with_bus
from schemas.errors import SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus


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
        "--wait", type=float, metavar="SECONDS", nargs="?", const=10.0, help="until every node says it is in force"
    )
    return made


def files(given: Sequence[str], recursive: bool) -> Iterator[tuple[str, bytes]]:
    """(origin, bytes) of each file named, of the .yaml, .yml and .json files (but no NAME.tests.yaml) of each directory, of standard input for `-`."""
    for name in given:
        if name == "-":
            yield "<stdin>", sys.stdin.buffer.read()
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
            try:
                yield str(file), file.read_bytes()
            except OSError as error:
                raise SettingsError(f"expected a policy file at `{file}`, got {error.strerror}") from error


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
        from time import time_ns

        since = time_ns()
        told = await publish(bus, documents, given.dry_run)
        for name, what in told:
            print(f"{name.lower()} {what}{' (dry run)' if given.dry_run else ''}")
        if given.wait is not None and not given.dry_run and any(what != "unchanged" for _, what in told):
            return await in_force(bus, since, given.wait)
        return 0

    return with_bus(given, work)


async def in_force(bus: Bus, since: int, deadline: float) -> int:
    """Wait for a receipt newer than `since` from each node that has a plan; 0 when all came, 1 when not."""
    import asyncio

    from schemas.enforcement import decode_receipt
    from schemas.topics import ENFORCEMENT_STATUS

    end = asyncio.get_running_loop().time() + deadline
    while True:
        receipts = [
            decode_receipt(record.value) for record in (await bus.latest(ENFORCEMENT_STATUS)).values() if record.value
        ]
        if receipts and all(receipt.applied_ns >= since for receipt in receipts):
            for receipt in receipts:
                print(
                    f"{receipt.node}: generation {receipt.generation} in force, {receipt.rules} rules in {receipt.scopes} scopes"
                )
                for refusal in receipt.refused:
                    print(
                        f"{receipt.node}: not enforced: {refusal.ref.policy} {refusal.ref.position}: {refusal.reason}"
                    )
            return 0
        if asyncio.get_running_loop().time() > end:
            print(
                f"hauberk apply: expected a receipt within {deadline:g} s, got none; is `hauberk up` or `hauberk node` running?",
                file=sys.stderr,
            )
            return 1
        await asyncio.sleep(0.02)
