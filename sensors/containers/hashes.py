# SPDX-License-Identifier: Apache-2.0
"""Hashes of executables in alerts, on request: SHA-256 of the process's image, its parent's, and of the file that an exec named.

Alerts are few and are completed just before they are published; no event is looked at. A file is read once for each (device,
inode, size, mtime, ctime). A process that still runs answers by its own image (`/proc/PID/exe`); for one that has ended, the
file that lies at its path in its container now is read, within the container's root and never through a link out of it. An
alert waits for `seconds` at most, then it goes without; what was being read is finished for the next one. Anything that is not
a regular file is left alone. Must never raise for an alert. Neighbours: `roots`, `processors.engine` (who asks).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from bus.contract import Record
from schemas.errors import DecodeError
from sensors.containers import cgroups
from sensors.containers.roots import Root

if TYPE_CHECKING:
    from schemas.alert import Alert
    from schemas.identity import Identity

log = logging.getLogger(__name__)

ALGORITHM: Final = "sha256"
_PIECE: Final = 1 << 20
_File = tuple[int, int, int, int, int]


class HashSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hashes of executables in the alerts of `hauberk up`."""

    enabled: Annotated[
        bool, msgspec.Meta(description="Compute them: `ProcessHash`, `ParentHash`, `ResourceHash`.", examples=[True])
    ] = False
    max_bytes: Annotated[
        int, msgspec.Meta(ge=1, le=1 << 40, description="Larger files have no hash.", examples=[67108864])
    ] = 64 << 20
    seconds: Annotated[
        float, msgspec.Meta(gt=0, le=60, description="Longest wait of an alert for its hashes.", examples=[0.25])
    ] = 0.25
    cached: Annotated[
        int,
        msgspec.Meta(ge=1, le=1 << 24, description="Files whose hash is remembered; 0.3 KiB each.", examples=[4096]),
    ] = 4096


class HashStats(msgspec.Struct):
    """Plain counts. `files` read whole; `remembered`: answered from memory; `large`: over `max_bytes`; `late`: alerts that went
    without."""

    files: int = 0
    remembered: int = 0
    large: int = 0
    late: int = 0


class Hashes:
    """`await fill(records)`. `root_of(container id)`: host pid of a process in that container, 0 when it is not known."""

    def __init__(self, settings: HashSettings, root_of: Callable[[str], int]) -> None:
        self.stats = HashStats()
        self._settings = settings
        self._root_of = root_of
        self._known: dict[_File, str] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hauberk-hashes")
        self._busy: asyncio.Future[list[tuple[str, str, str]]] | None = None

    def close(self) -> None:
        """Let the thread end when it is done with the file in hand."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def fill(self, records: list[Record]) -> list[Record]:
        """The same alerts, with hashes where they could be had in time."""
        # Imported here: a node whose alerts are made elsewhere does not carry what alerts need.
        from schemas.alert import decode_alert, encode_alert

        alerts: dict[int, Alert] = {}
        for index, record in enumerate(records):
            try:
                alert = decode_alert(record.value or b"")
            except DecodeError:
                continue
            if alert.HashAlgo == "":
                alerts[index] = alert
        if not alerts:
            return records
        if self._busy is not None and not self._busy.done():
            # A file system that hangs costs its hashes and one thread.
            self.stats.late += len(alerts)
            return records
        loop = asyncio.get_running_loop()
        self._busy = loop.run_in_executor(self._thread, self._all, list(alerts.values()))
        try:
            found = await asyncio.wait_for(asyncio.shield(self._busy), self._settings.seconds)
        except TimeoutError:
            self.stats.late += len(alerts)
            self._busy.add_done_callback(lambda done: done.exception())
            return records
        filled = list(records)
        for (index, alert), (process, parent, resource) in zip(alerts.items(), found, strict=True):
            if process or parent or resource:
                alert.ProcessHash, alert.ParentHash, alert.ResourceHash = process, parent, resource
                alert.HashAlgo = ALGORITHM
                filled[index] = msgspec.structs.replace(records[index], value=encode_alert(alert))
        return filled

    def _all(self, alerts: list[Alert]) -> list[tuple[str, str, str]]:
        return [self._of(alert) for alert in alerts]

    def _of(self, alert: Alert) -> tuple[str, str, str]:
        process = self._hash(alert.HostPID, alert.ProcessName, alert.ContainerID)
        parent = self._hash(alert.HostPPID, alert.ParentProcessName, alert.ContainerID)
        if alert.Operation != "Process":
            return process, parent, ""
        named = executed(alert)
        return process, parent, process if named == alert.ProcessName else self._hash(0, named, alert.ContainerID)

    def _hash(self, pid: int, path: str, container: str) -> str:
        if not path.startswith("/"):
            return ""
        try:
            fd = _image(pid, path)
            if fd is None:
                root = self._root_of(container) if container else 1
                if not root:
                    return ""
                with Root(root) as inside:
                    fd = inside.open(path)
            if fd is None:
                return ""
            try:
                return self._read(fd)
            finally:
                os.close(fd)
        except (OSError, ValueError):
            return ""

    def _read(self, fd: int) -> str:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            return ""
        if found.st_size > self._settings.max_bytes:
            self.stats.large += 1
            return ""
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if (known := self._known.get(key)) is not None:
            self.stats.remembered += 1
            return known
        digest, left = hashlib.sha256(), self._settings.max_bytes
        while piece := os.read(fd, _PIECE):
            left -= len(piece)
            if left < 0:
                self.stats.large += 1
                return ""
            digest.update(piece)
        self.stats.files += 1
        if len(self._known) >= self._settings.cached:
            del self._known[next(iter(self._known))]
        self._known[key] = digest.hexdigest()
        return self._known[key]


def inside(known: Identity | None) -> int:
    """Host pid of a process in the root of this identity; 0 when there is none now."""
    if known is None:
        return 0
    # A declared workload in the host's mount namespace has the host's root, also while nothing runs in it.
    host = known.runtime == "declared" and known.mnt_ns == cgroups.namespaces(1)[1]
    return known.root_pid or cgroups.first_pid(cgroups.mount_point(), known.cgroup_path) or (1 if host else 0)


def executed(alert: Alert) -> str:
    """The path of the file that an exec named: `Resource` without its arguments."""
    own = alert.ProcessName
    if own and (alert.Resource == own or alert.Resource.startswith(f"{own} ")):
        return own
    return alert.Resource.partition(" ")[0]


def _image(pid: int, path: str) -> int | None:
    """The running image of `pid`, when that is still the one at `path`."""
    if not pid:
        return None
    link = f"/proc/{pid}/exe"
    try:
        fd = os.open(link, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        # Read after the open: a process that has changed its image since the event says so here.
        if os.readlink(link).removesuffix(" (deleted)") == path:
            return fd
    except OSError:
        pass
    os.close(fd)
    return None
