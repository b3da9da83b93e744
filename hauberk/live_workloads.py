# SPDX-License-Identifier: Apache-2.0
"""Workloads of a running cluster, asked of its API server: what manifests say, of everything that runs. Nothing is written there.

What another workload made (the pods of a Deployment, the Jobs of a CronJob) is left out: its maker is there. The rights are those of the
kubeconfig, to list these kinds. Neighbours: `manifests` (what an object says), `cluster.server`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

from cluster.server import Server, connected
from cluster.settings import ServerSettings
from hauberk.manifests import ManifestContainer, containers
from schemas.errors import HauberkError, SettingsError

_KINDS: Final = (
    ("/apis/apps/v1", "deployments", "Deployment"), ("/apis/apps/v1", "statefulsets", "StatefulSet"), ("/apis/apps/v1", "daemonsets", "DaemonSet"),
    ("/apis/apps/v1", "replicasets", "ReplicaSet"), ("/api/v1", "replicationcontrollers", "ReplicationController"),
    ("/apis/batch/v1", "cronjobs", "CronJob"), ("/apis/batch/v1", "jobs", "Job"), ("/api/v1", "pods", "Pod"),
)  # fmt: skip
_MAKERS: Final = frozenset(kind for _, _, kind in _KINDS)
_OVER: Final = frozenset({"Succeeded", "Failed"})


class _ListedMeta(msgspec.Struct, frozen=True):
    continue_: str = msgspec.field(name="continue", default="")


class _ListedPage(msgspec.Struct, frozen=True):
    metadata: _ListedMeta = _ListedMeta()
    items: list[dict[str, Any]] | None = None


def live_workloads(settings: ServerSettings, namespace: str | None) -> list[ManifestContainer]:
    """Containers in order of kind and name; `namespace` None: of all. SettingsError when the server does not give them."""
    try:
        return asyncio.run(_all(settings, namespace))
    except SettingsError:
        raise
    except HauberkError as error:
        raise SettingsError(f"expected the workloads of a cluster, got: {error}") from error


async def _all(settings: ServerSettings, namespace: str | None) -> list[ManifestContainer]:
    found: list[ManifestContainer] = []
    async with connected(settings) as server:
        for group, plural, kind in _KINDS:
            place = f"{group}/namespaces/{namespace}/{plural}" if namespace else f"{group}/{plural}"
            for item in await _listed(server, place, settings.page):
                if not _made(item) and not _over(kind, item):
                    found += containers({**item, "kind": kind}, server.where)
    return found


async def _listed(server: Server, place: str, page: int) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    query = {"limit": str(page)}
    while True:
        try:
            got = msgspec.json.decode(await server.get(place, query), type=_ListedPage)
        except msgspec.MsgspecError as error:
            raise SettingsError(f"expected a list of objects at {place} of {server.where}, got: {error}") from error
        items += got.items or ()
        if not got.metadata.continue_:
            return items
        query = {"limit": str(page), "continue": got.metadata.continue_}


def _made(item: dict[str, Any]) -> bool:
    """Whether another workload made it, which speaks for it."""
    owners = (item.get("metadata") or {}).get("ownerReferences") or ()
    return any(one.get("controller") and one.get("kind") in _MAKERS for one in owners)


def _over(kind: str, item: dict[str, Any]) -> bool:
    """Whether it runs no more: a pod that ended, a ReplicaSet of before, made by a kind that is not listed here."""
    if kind == "ReplicaSet":
        return (item.get("spec") or {}).get("replicas") == 0
    return kind == "Pod" and (item.get("status") or {}).get("phase") in _OVER
