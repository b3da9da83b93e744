# SPDX-License-Identifier: Apache-2.0
"""Before Hauberk leaves: rules and programs are taken down, on this node or on every node of a cluster.

A node's pod that ends leaves its rules in force, as it must where it is only made anew. So who uninstalls says it first: the
DaemonSet's pods are told to take down what is there (`hauberk node --remove`) and are ready once that is done.
Neighbours: `verbs.node`, `verbs.cluster`, the chart's hook in deploy/kubernetes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import time
from typing import Final

import msgspec

from hauberk.configuration import configuration, node_configuration
from hauberk.metrics import expose
from hauberk.service import listening, say
from kernel.loading import unload
from schemas.errors import KernelError, SettingsError, Unavailable

REMOVE: Final = ["node", "--remove"]
_LOOK: Final = 1.0
"""Seconds between looks at the DaemonSet."""


class _Generation(msgspec.Struct, frozen=True):
    generation: int = 0


class RolloutStatus(msgspec.Struct, frozen=True, rename="camel"):
    """The `status` of a DaemonSet, as far as a rollout goes."""

    observed_generation: int = 0
    desired_number_scheduled: int = 0
    updated_number_scheduled: int = 0
    number_ready: int = 0


class _DaemonSet(msgspec.Struct, frozen=True):
    metadata: _Generation
    status: RolloutStatus = RolloutStatus()


async def remove_here(given: argparse.Namespace) -> int:
    """Take down what this node's pins hold, say so, and stay until told to stop, ready meanwhile."""
    settings, _, _ = node_configuration(given)
    pins = settings.sensor.pin_dir
    unload(pins)
    if await asyncio.to_thread(os.path.lexists, pins):
        raise KernelError(
            f"expected to remove `{pins}`, it is still there; run it as who made it", operation="unpin", target=pins
        )
    say(f"nothing of `{pins}` is enforced or watched any more", "node")
    stop = asyncio.Event()
    with listening(stop):
        async with contextlib.AsyncExitStack() as opened:
            await expose(settings.metrics, opened)
            await stop.wait()
    return 0


async def remove_everywhere(given: argparse.Namespace) -> int:
    """Have every pod of the DaemonSet `--remove-from NAMESPACE/NAME` do that, and wait for all; 1 when some did not within
    `--timeout` seconds."""
    from cluster.server import connected

    namespace, _, name = given.remove_from.partition("/")
    if not namespace or not name:
        raise SettingsError(f"expected --remove-from NAMESPACE/NAME of the nodes' DaemonSet, got `{given.remove_from}`")
    settings, _, _ = configuration(given)
    path = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{name}"
    template = {
        "spec": {
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "100%"}},
            "template": {"spec": {"containers": [{"name": "node", "args": REMOVE}]}},
        }
    }
    ends = time.monotonic() + given.timeout
    told = ""
    async with connected(settings.cluster.server) as server:
        await server.send("PATCH", path, template, content="application/strategic-merge-patch+json")
        while True:
            try:
                found = msgspec.json.decode(await server.get(path), type=_DaemonSet)
            except Unavailable as error:
                found = _DaemonSet(_Generation(1))
                told = str(error)
            status = found.status
            current = status.observed_generation >= found.metadata.generation
            done = min(status.updated_number_scheduled, status.number_ready) if current else 0
            if current and done >= status.desired_number_scheduled:
                say(f"nothing is enforced any more on {done} node{'s' * (done != 1)}", "cluster")
                return 0
            said = f"{done} of {status.desired_number_scheduled} nodes enforce nothing any more"
            if said != told:
                say(said, "cluster")
                told = said
            if time.monotonic() > ends:
                say(
                    f"not within {given.timeout:g} s: {said}. `kubectl -n {namespace} get pods -o wide` shows which are left; rules "
                    "hold there until the directory of pins is removed from their bpffs", "cluster",
                )  # fmt: skip
                return 1
            await asyncio.sleep(_LOOK)
