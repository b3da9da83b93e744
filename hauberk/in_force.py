# SPDX-License-Identifier: Apache-2.0
"""Policies that are not in files: `bus:` names those on the configured bus, `cluster:` those that are objects of the cluster.

What follows the colon is a file or a directory put over them: `bus:new.yaml` is what would be in force once `new.yaml` is applied.
Nothing is changed. Neighbours: `policy_files` (who asks), `cluster.policy_object` (what of an object is the policy).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import msgspec

from schemas.errors import DecodeError, Incompatible, SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus
    from cluster.settings import ServerSettings

BUS: Final = "bus:"
CLUSTER: Final = "cluster:"
_SOURCES: Final = (BUS, CLUSTER)


def parted(name: str) -> tuple[str, str]:
    """The source that `name` begins with, "" for a file, and what is put over it. `./bus:` is a file."""
    for source in _SOURCES:
        if name.startswith(source):
            return source, name.removeprefix(source)
    return "", name


def policies(source: str, given: argparse.Namespace) -> Iterator[tuple[str, bytes]]:
    """(origin, JSON) of each policy. Raises HauberkError."""
    from schemas.policy import reference

    found = _of_bus(given) if source == BUS else _of_cluster(given)
    for key, document in sorted(found.items()):
        yield f"{source}{reference(key)}", document


def _of_bus(given: argparse.Namespace) -> dict[str, bytes]:
    from hauberk.client import with_bus
    from schemas.topics import POLICIES

    async def work(bus: Bus) -> dict[str, bytes]:
        records = await bus.latest(POLICIES)
        return {key.decode("utf-8", "replace"): one.value for key, one in records.items() if one.value is not None}

    return with_bus(given, work)


def _of_cluster(given: argparse.Namespace) -> dict[str, bytes]:
    return asyncio.run(_listed(_settings(given)))


def _settings(given: argparse.Namespace) -> ServerSettings:
    from cluster.settings import ServerSettings
    from hauberk.configuration import load

    tree: Any = load(given)[0].tree.get("cluster", {})
    try:
        return msgspec.convert(tree.get("server", {}) if isinstance(tree, dict) else tree, ServerSettings)
    except msgspec.ValidationError as error:
        raise SettingsError(
            f"settings: `cluster.server`: {error}; `hauberk settings --reference` lists the keys"
        ) from error


class _PolicyPageMeta(msgspec.Struct):
    continue_: str = msgspec.field(default="", name="continue")


class _PolicyPage(msgspec.Struct):
    metadata: _PolicyPageMeta = msgspec.field(default_factory=_PolicyPageMeta)
    items: list[msgspec.Raw] | None = None


async def _listed(settings: ServerSettings) -> dict[str, bytes]:
    from cluster.policy_object import KINDS, author_document
    from cluster.server import connected
    from schemas.policy import API_VERSION

    found: dict[str, bytes] = {}
    async with connected(settings) as server:
        for plural, kind in KINDS.items():
            query = {"limit": str(settings.page)}
            while True:
                try:
                    page = msgspec.json.decode(
                        await server.get(f"/apis/{API_VERSION}/{plural}", query), type=_PolicyPage
                    )
                    made = [author_document(kind, raw) for raw in page.items or ()]
                except Incompatible:
                    print(f"hauberk: the cluster has no definition of {kind}, so it has none of these", file=sys.stderr)
                    break
                except (msgspec.MsgspecError, ValueError) as error:
                    raise DecodeError(f"expected policies of the cluster, got: {error}") from error
                found |= {key.decode(): document for key, document, _ in made}
                if not page.metadata.continue_:
                    break
                query["continue"] = page.metadata.continue_
    return found
