# SPDX-License-Identifier: Apache-2.0
"""Verbs from a laptop that reaches only the API server: the same verb, run in a pod of Hauberk there, its output and exit code carried.

`hauberk get policies --kubeconfig FILE` finds a ready pod that sees the bus and runs `hauberk get policies` in it, with the rights of the
kubeconfig. Nothing of it opens a port or reads a bus here. Neighbours: `cluster.execution`, `hauberk.cli` (who sends verbs here).
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any

import msgspec

from cluster.execution import OUT, execute
from cluster.server import connected
from cluster.settings import ServerSettings
from hauberk.client import THROUGH, cluster_options
from schemas.errors import Refused


class _PodMeta(msgspec.Struct):
    name: str


class _Container(msgspec.Struct):
    name: str


class _PodSpecified(msgspec.Struct):
    containers: list[_Container]


class _Condition(msgspec.Struct):
    type: str
    status: str


class _PodCondition(msgspec.Struct):
    phase: str = ""
    conditions: list[_Condition] | None = None


class _RunningPod(msgspec.Struct):
    metadata: _PodMeta
    spec: _PodSpecified
    status: _PodCondition = msgspec.field(default_factory=_PodCondition)

    @property
    def ready(self) -> bool:
        said = {one.type: one.status for one in self.status.conditions or ()}
        return self.status.phase == "Running" and said.get("Ready", "True") == "True"

    def container(self, component: str) -> str:
        """The container of Hauberk, which has the name of its role; the first where none has, others may have been put in."""
        names = [one.name for one in self.spec.containers]
        role = component.partition("-")[0]
        return role if role in names else names[0]


class _Pods(msgspec.Struct):
    items: list[_RunningPod] | None = None


def run(verb: str, words: Sequence[str]) -> int:
    """The exit code of the verb there. Raises HauberkError."""
    given, rest = cluster_options(verb, words)
    settings = ServerSettings(kubeconfig=given.kubeconfig or "", context=given.context or "")
    return asyncio.run(_run(settings, given.installed_in, THROUGH[verb], ["hauberk", verb, *rest]))


async def _run(settings: ServerSettings, namespace: str, component: str, words: list[str]) -> int:
    async with connected(settings) as server:
        query = {"labelSelector": f"app.kubernetes.io/name=hauberk,app.kubernetes.io/component={component}"}
        found = msgspec.json.decode(await server.get(f"/api/v1/namespaces/{namespace}/pods", query), type=_Pods)
        pods = found.items or []
        pod = next((one for one in pods if one.ready), None)
        if pod is None:
            raise Refused(
                f"expected a ready pod of Hauberk's component `{component}` in namespace `{namespace}` of {server.where}, got "
                f"{len(pods)} that are not; is it installed there (--installed-in NAMESPACE)?"
            )
    return await execute(settings, namespace, pod.metadata.name, pod.container(component), words, _print)


def _print(channel: int, data: bytes) -> None:
    stream: Any = sys.stdout if channel == OUT else sys.stderr
    stream.buffer.write(data)
    stream.buffer.flush()
