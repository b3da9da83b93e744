#!/opt/hauberk/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the stage in this container does its work: `health node|processor|enforcer|sink`. Exit 0 when it does, 1 with a sentence.

That the process lives, the engine knows already; this asks for what a process that hangs would not have: the lock on the
rings, progress through the bus, a plan for each node, an answer over HTTP. It reads, and never publishes or commits.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import urllib.error
import urllib.request
from argparse import Namespace
from collections.abc import Callable, Coroutine
from typing import Any, Final

LOOK_AGAIN: Final = 2.0
"""Seconds between two looks at a group that is behind: a batch and its commit take a fraction of that."""


async def node() -> str:
    """The rings have a reader: the agent holds a lock on their directory for as long as it lives."""
    directory = os.environ["HAUBERK__SENSOR__PIN_DIR"]
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        return f"expected the programs pinned under `{directory}`, got {error.strerror}"
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return ""
    finally:
        os.close(descriptor)
    return f"expected an agent to hold the lock on `{directory}`, nobody does"


async def processor() -> str:
    """The group has read everything, or it gets on."""
    from hauberk.configuration import client_bus

    group = os.environ.get("HAUBERK__PROCESSOR__GROUP", "processors")
    bus = await client_bus(Namespace(config=None, set=[], state=None))
    try:
        before = (await bus.groups()).get(group)
        if before is not None and not any((await bus.lag(group)).values()):
            return ""
        await asyncio.sleep(LOOK_AGAIN)
        after = (await bus.groups()).get(group)
        behind = sum((await bus.lag(group)).values())
    finally:
        await bus.close()
    if after is None:
        return f"expected a group `{group}` on the bus, there is none: nothing has been read yet"
    return (
        f"expected group `{group}` to get on, it stands {behind} records behind" if after == before and behind else ""
    )


async def enforcer() -> str:
    """Every node that told of itself has a plan."""
    from hauberk.configuration import client_bus
    from schemas.identity import Kind, decode
    from schemas.topics import ENFORCEMENT_DESIRED, INVENTORY

    bus = await client_bus(Namespace(config=None, set=[], state=None))
    try:
        told = [decode(record.value) for record in (await bus.latest(INVENTORY)).values() if record.value]
        nodes = {identity.node for identity in told if identity.kind is Kind.NODE}
        planned = {record.key.decode() for record in (await bus.latest(ENFORCEMENT_DESIRED)).values() if record.value}
    finally:
        await bus.close()
    missing = sorted(nodes - planned)
    return f"expected a plan for every node, {', '.join(missing)} has none" if missing else ""


async def sink() -> str:
    """The Prometheus sink says that every sink gets rid of what it takes."""
    url = os.environ.get("HAUBERK_HEALTH_URL", "http://127.0.0.1:9642/readyz")
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: ASYNC210 - nothing else runs in this process
            answer.read()
    except urllib.error.HTTPError as error:
        return error.read().decode("utf-8", "replace").strip() or str(error)
    except OSError as error:
        return f"expected an answer at {url}, got: {error}"
    return ""


CHECKS: Final[dict[str, Callable[[], Coroutine[Any, Any, str]]]] = {
    "node": node, "processor": processor, "enforcer": enforcer, "sink": sink,
}  # fmt: skip


def main(words: list[str]) -> int:
    """The check named by the one word given."""
    if len(words) != 1 or words[0] not in CHECKS:
        print(f"usage: health {'|'.join(CHECKS)}", file=sys.stderr)
        return 2
    try:
        wrong = asyncio.run(CHECKS[words[0]]())
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer is no, and Docker keeps this line
        wrong = f"{type(error).__name__}: {error}"
    print(f"{words[0]}: {wrong or 'well'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
