# SPDX-License-Identifier: Apache-2.0
"""Containers that a runtime has made and whose first program does not run yet, as an OCI hook tells of them.

The runtime's own process is in the container's cgroup by then, and sets the container up: what its rules would take from that
is left to the planner (`enforcers.newborn`). It is over when the process has become another program. The state says id, pid and
bundle; who the container is, its runtime says, and annotations of the runtime where it does not answer yet (CRI-O).
Neighbours: `start_socket` (who asks), `inventory` (who publishes), `roots`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from schemas.decoding import decoder
from schemas.errors import DecodeError, HauberkError, Refused
from sensors.containers import cgroups
from sensors.containers.cgroups import Place
from sensors.containers.contract import Found, Runtime
from sensors.containers.cri import SANDBOX_NAME
from sensors.containers.podman import stored
from sensors.containers.roots import Root
from sensors.containers.symlinks import Symlinks

ANSWER: Final = 0.5
"""Seconds for the runtimes to say who it is: the container waits meanwhile, and Docker answers only once it has started."""
LOOK: Final = 0.01
"""Seconds between looks whether its first program runs; what a file posture denies waits for that."""
LATER: Final = 0.25
"""The same after `SOON` seconds: `runc create` alone may leave a container so for days."""
SOON: Final = 5.0
MOST: Final = 512
"""Containers that start at a time."""
UNSEEN: Final = (0, 0)
_CONFIG: Final = 8 << 20


class OciState(msgspec.Struct):
    """What a hook gets on its standard input (OCI runtime specification, `State`)."""

    id: str
    pid: int
    bundle: str = ""
    annotations: dict[str, str] | None = None


class _OciRoot(msgspec.Struct):
    path: str = ""


class _OciConfig(msgspec.Struct):
    root: _OciRoot = msgspec.field(default_factory=_OciRoot)


decode_state = decoder(OciState, "the state of a container", msgspec.json)
_config = decoder(_OciConfig, "the configuration of a bundle", msgspec.json)
Complete = Callable[[Found, dict[str, str]], bool]


class Starts:
    """`begin` for each, then it is `in` here until its program runs; `over(uid)` is called then. All of one event loop."""

    def __init__(
        self, runtimes: Sequence[Runtime], links: Symlinks, complete: Complete, over: Callable[[str], None]
    ) -> None:
        self._runtimes = runtimes
        self._links = links
        self._complete = complete
        self._over = over
        self._pids: dict[str, int] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def __contains__(self, uid: str) -> bool:
        return uid in self._pids

    def known(self, found: Found) -> Found:
        """`found` with the process that the hook told of, where its runtime does not say it yet."""
        pid = self._pids.get(found.id, 0)
        return msgspec.structs.replace(found, root_pid=pid) if pid and not found.root_pid else found

    async def begin(self, state: OciState) -> int:
        """Publish who it is; the id of its cgroup, which plans are of. Raises Refused when it cannot be told what to hold."""
        if len(self._pids) >= MOST:
            raise Refused(f"expected at most {MOST} containers that start at a time, got more; try again")
        path = cgroups.of_pid(state.pid)
        place = cgroups.parse(path)
        if path in ("", "/"):
            raise Refused(
                f"expected process {state.pid} of container {state.id[:64]} in a cgroup of its own, it is in "
                f"`{path or 'none that can be read'}`; is the pid namespace of the agent the host's?"
            )
        if place is not None and place.id != state.id:
            raise Refused(f"expected a cgroup of container {state.id[:64]}, got `{path[:256]}` of another")
        place = place or Place(state.id, path)
        mark = _program(state.pid)
        found = msgspec.structs.replace(await self._who(state, place), root_pid=state.pid, cgroup_path=place.path)
        links = await self._links.of(state.id, state.pid, await asyncio.to_thread(rootfs, state))
        self._pids[state.id] = state.pid
        if not self._complete(found, links):
            del self._pids[state.id]
            raise Refused(f"expected the cgroup `{place.path[:256]}` of container {state.id[:64]}, it is gone")
        if (before := self._looking.pop(state.id, None)) is not None:
            before.cancel()
        self._looking[state.id] = asyncio.create_task(self._look(state.id, state.pid, mark))
        return cgroups.cgroup_id(cgroups.mount_point(), place.path)

    def close(self) -> None:
        """Look no longer."""
        for task in self._looking.values():
            task.cancel()

    async def _who(self, state: OciState, place: Place) -> Found:
        for runtime in self._runtimes:
            try:
                async with asyncio.timeout(ANSWER):
                    if (found := await runtime.describe(place)) is not None and found.id == state.id:
                        return found
            except (HauberkError, TimeoutError):
                continue
        return of_state(state, place)

    async def _look(self, uid: str, pid: int, mark: tuple[int, int]) -> None:
        clock = asyncio.get_running_loop().time
        began = clock()
        # What may not be looked at is not waited for long: a posture on files would never hold.
        while _program(pid) == mark and (mark != UNSEEN or clock() - began < SOON):  # noqa: ASYNC110
            await asyncio.sleep(LOOK if clock() - began < SOON else LATER)
        self._pids.pop(uid, None)
        self._looking.pop(uid, None)
        self._over(uid)


def of_state(state: OciState, place: Place) -> Found:
    """Who it is by the annotations that runtimes give to their containers. The pod's uid is that of the cgroup, where it has one."""
    said = state.annotations or {}

    def word(*names: str) -> str:
        return next((said[name][:253] for name in names if said.get(name)), "")

    uid = word("io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid")
    if place.pod_uid and uid not in ("", place.pod_uid):
        raise Refused(f"expected annotations of pod {place.pod_uid} on container {state.id[:64]}, got pod `{uid}`")
    if not (place.pod_uid or uid):
        kept = stored(state.bundle, state.id)
        return Found(
            id=state.id, runtime=place.runtime or ("podman" if said.get("io.container.manager") == "libpod" else ""),
            name=kept.get("name") or state.id, image=kept.get("image-name", ""), image_digest=kept.get("image-id", ""),
            annotations=said, cgroup_path=place.path,
        )  # fmt: skip
    sandbox = said.get("io.kubernetes.cri.container-type") == "sandbox"
    return Found(
        id=state.id, runtime=place.runtime, orchestrated=True, pod_uid=place.pod_uid or uid, cgroup_path=place.path,
        name=SANDBOX_NAME if sandbox else word("io.kubernetes.cri.container-name", "io.kubernetes.container.name"),
        namespace=word("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"),
        pod=word("io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"),
    )  # fmt: skip


def rootfs(state: OciState) -> str:
    """Path of the container's root in the mount namespace of its process, which has not changed to it yet; "" when it is not known."""
    if not state.bundle.startswith("/"):
        return ""
    try:
        with Root(state.pid) as root:
            fd = root.open(f"{state.bundle}/config.json")
        if fd is None:
            return ""
        with os.fdopen(fd, "rb") as file:
            path = _config(file.read(_CONFIG)).root.path
    except (OSError, DecodeError):
        return ""
    return os.path.join(state.bundle, path) if path else ""


def _program(pid: int) -> tuple[int, int]:
    """Device and inode of the program that runs; UNSEEN when there is none, or none that may be looked at."""
    try:
        found = os.stat(f"/proc/{pid}/exe")
    except OSError:
        return UNSEEN
    return found.st_dev, found.st_ino
