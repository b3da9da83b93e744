# SPDX-License-Identifier: Apache-2.0
"""containerd and CRI-O over the Container Runtime Interface: what the kubelet knows of containers and their pods.

The pod's labels are on its sandbox, so each container is told with its sandbox's. The CRI of containerd 1.6 has no event
stream: changes are found by listing on a timer, births by the kernel's own cgroup records (`sensors.containers.inventory`). It must
never call anything that changes a container. Neighbours: `unix_grpc`, `schemas.protobuf`.
"""

from __future__ import annotations

import asyncio
import os
from typing import Annotated, Any

import msgspec

from bus.rest import until_look
from schemas import protobuf
from schemas.decoding import decoder
from schemas.errors import HauberkError
from sensors.containers import unix_grpc
from sensors.containers.cgroups import Place
from sensors.containers.contract import KUBERNETES_PREFIX, Changed, Found, pod_labels
from sensors.containers.unix_grpc import NOT_FOUND, UNIMPLEMENTED, Status

_document = decoder(dict[str, Any], "the verbose information of a runtime", msgspec.json)


class CriSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="cri"):
    """containerd 1.6 or newer, CRI-O 1.20 or newer."""

    socket: Annotated[
        str, msgspec.Meta(description="Unix socket of the runtime.", examples=["/var/run/crio/crio.sock"])
    ] = "/run/containerd/containerd.sock"
    runtime: Annotated[str, msgspec.Meta(description="Value of `Identity.runtime`.", examples=["cri-o"])] = "containerd"
    timeout_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=315_360_000, description="Seconds to wait for one answer.", examples=[2.0])
    ] = 5.0
    poll_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=315_360_000,
            description="Seconds between listings, for what the kernel did not report.",
            examples=[2.0],
        ),
    ] = 5.0


_VERSIONS = ("v1", "v1alpha2")
_POD = KUBERNETES_PREFIX + "pod."
SANDBOX_NAME = "POD"
"""Container name of a pod's sandbox (pause) container, as dockershim called it."""


class Cri:
    """See `contract.Runtime`."""

    def __init__(self, settings: CriSettings | None = None) -> None:
        self._settings = settings or CriSettings()
        self._version = _VERSIONS[0]
        self._status = ""
        self._sandboxes: dict[str, protobuf.Message] = {}

    @property
    def name(self) -> str:
        return self._settings.runtime

    @property
    def status(self) -> str:
        return self._status

    async def list(self) -> list[Found]:
        ready = protobuf.nested(1, protobuf.nested(2, protobuf.integer(1, 0)))
        running = protobuf.nested(1, protobuf.nested(2, protobuf.integer(1, 1)))
        pods = [protobuf.parse(row) for row in (await self._call("ListPodSandbox", ready)).get(1, ())]
        rows = [protobuf.parse(row) for row in (await self._call("ListContainers", running)).get(1, ())]
        self._sandboxes = {protobuf.text(pod, 1): pod for pod in pods}
        found = [await self._sandbox(protobuf.text(pod, 1)) for pod in pods]
        found += [await self._container(protobuf.text(row, 1), protobuf.text(row, 2)) for row in rows]
        return [one for one in found if one is not None]

    async def describe(self, place: Place) -> Found | None:
        if place.runtime not in ("", self.name):
            return None
        rows = await self._call("ListContainers", protobuf.nested(1, protobuf.string(1, place.id)))
        for row in rows.get(1, ()):
            return await self._container(place.id, protobuf.text(protobuf.parse(row), 2))
        return await self._sandbox(place.id)

    async def watch(self, changed: Changed) -> None:
        known: set[str] | None = None
        while True:
            try:
                now = await self._ids()
                for id_ in now - (known or set()):
                    changed(id_, False)
                for id_ in (known or set()) - now:
                    self._sandboxes.pop(id_, None)
                    changed(id_, True)
                known = now
            except HauberkError as error:
                self._fail(error)
            await asyncio.sleep(until_look(self._settings.poll_seconds))

    async def _ids(self) -> set[str]:
        pods = await self._call("ListPodSandbox", protobuf.nested(1, protobuf.nested(2, protobuf.integer(1, 0))))
        rows = await self._call("ListContainers", protobuf.nested(1, protobuf.nested(2, protobuf.integer(1, 1))))
        return {protobuf.text(protobuf.parse(row), 1) for row in pods.get(1, []) + rows.get(1, [])}

    async def _call(self, name: str, request: bytes) -> protobuf.Message:
        settings = self._settings
        try:
            for version in dict.fromkeys((self._version, *_VERSIONS)):
                method = f"/runtime.{version}.RuntimeService/{name}"
                try:
                    answer = await unix_grpc.call(settings.socket, method, request, settings.timeout_seconds)
                except Status as error:
                    if error.code != UNIMPLEMENTED or version == _VERSIONS[-1]:
                        raise
                    continue
                self._version, self._status = version, ""
                return protobuf.parse(answer)
        except HauberkError as error:
            # UNIMPLEMENTED: a containerd without its CRI plugin, as Docker installs it; that is no fault.
            if not (isinstance(error, Status) and error.code in (NOT_FOUND, UNIMPLEMENTED)):
                self._fail(error)
            raise
        raise AssertionError("unreachable: the last version either answers or raises")

    def _fail(self, error: HauberkError) -> None:
        self._status = f"{self.name}: {error}" if os.path.exists(self._settings.socket) else ""

    async def _status_of(self, name: str, id_: str) -> tuple[protobuf.Message, dict[str, Any]] | None:
        """The status message and the runtime's verbose JSON; None when it does not know the id."""
        try:
            answer = await self._call(name, protobuf.string(1, id_) + protobuf.integer(2, 1))
        except Status as error:
            if error.code == NOT_FOUND:
                return None
            raise
        info = protobuf.pairs(answer, 2).get("info", "")
        return protobuf.sub(answer, 1), _document(info.encode()) if info else {}

    async def _sandbox(self, id_: str) -> Found | None:
        seen = await self._status_of("PodSandboxStatus", id_)
        if seen is None:
            return None
        status, info = seen
        # PodSandboxStatus: metadata 2, created_at 4 (ns), labels 7, annotations 8.
        self._sandboxes[id_] = {
            1: [id_.encode()], 2: status.get(2, []), 5: status.get(7, []), 6: status.get(8, []),
        }  # fmt: skip
        return self._found(id_, SANDBOX_NAME, self._sandboxes[id_], info, protobuf.number(status, 4), "", "")

    async def _container(self, id_: str, sandbox: str) -> Found | None:
        seen = await self._status_of("ContainerStatus", id_)
        if seen is None:
            return None
        status, info = seen
        if sandbox not in self._sandboxes:
            await self._sandbox(sandbox)
        # ContainerStatus: metadata 2, created_at 4, started_at 5 (ns), image 8, image_ref 9, labels 12.
        name = protobuf.text(protobuf.sub(status, 2), 1)
        image = protobuf.text(protobuf.sub(status, 8), 1)
        started = protobuf.number(status, 5) or protobuf.number(status, 4)
        return self._found(
            id_, name, self._sandboxes.get(sandbox, {}), info, started, image, protobuf.text(status, 9)
        )  # fmt: skip

    def _found(
        self, id_: str, name: str, pod: protobuf.Message, info: dict[str, Any], started: int, image: str, digest: str
    ) -> Found:
        # PodSandbox: metadata 2 {name 1, uid 2, namespace 3}, labels 5, annotations 6.
        metadata, labels = protobuf.sub(pod, 2), protobuf.pairs(pod, 5)
        linux = (info.get("runtimeSpec") or {}).get("linux") or {}
        config = (info.get("config") or {}).get("linux") or {}
        pid = int(info.get("pid") or 0)
        return Found(
            id=id_,
            runtime=self.name,
            name=name,
            image=image or info.get("image", ""),
            image_digest=digest,
            namespace=labels.get(_POD + "namespace") or protobuf.text(metadata, 3),
            pod=labels.get(_POD + "name") or protobuf.text(metadata, 1),
            pod_uid=labels.get(_POD + "uid") or protobuf.text(metadata, 2),
            labels=pod_labels(labels),
            annotations=protobuf.pairs(pod, 6),
            orchestrated=bool(pod),
            privileged=bool((config.get("security_context") or {}).get("privileged")),
            root_pid=pid,
            cgroup_path="" if pid else _cgroupfs(linux.get("cgroupsPath", "")),
            started=started / 1e9,
        )


def _cgroupfs(path: str) -> str:
    # `slice:prefix:id` is systemd's notation, not a path; the running process tells it better.
    return path if path.startswith("/") else ""
