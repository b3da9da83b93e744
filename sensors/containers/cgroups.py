# SPDX-License-Identifier: Apache-2.0
"""Which container a cgroup v2 path means, and what the cgroup tree of this node holds.

Paths are absolute in the cgroup2 hierarchy (`/docker/<id>`). The id of a cgroup is the inode of its directory, the same
number that `bpf_get_current_cgroup_id()` gives. The outermost container wins: a container inside a container, or a
systemd inside one, belongs to the outer. This file must never guess: a path it does not know is a host cgroup.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import msgspec

from kernel.cgroup_tree import walk
from schemas.errors import MissingDependency


class Place(msgspec.Struct, frozen=True):
    """A container as its cgroup path tells it. `path`: the container's own cgroup; `runtime` "" when the form does not say."""

    id: str
    path: str
    runtime: str = ""
    pod_uid: str = ""


_HEX = r"[0-9a-f]{64}"
_SCOPE = re.compile(rf"(?P<runtime>docker|cri-containerd|crio|libpod|nerdctl)-(?P<id>{_HEX})(?:\.scope)?")
_BARE = re.compile(_HEX)
_POD = re.compile(r"(?:.*-)?pod(?P<uid>[0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:\.slice)?")  # fmt: skip
_PARENT = re.compile(r"docker|kubepods.*|kubelet.*|besteffort|burstable|libpod_parent|machine\.slice|crio|buildkit")
_HOST = re.compile(
    r".+\.(?:service|slice|mount|socket|swap)|(?:init|session-.+)\.scope|conmon|(?:crio|libpod)-conmon-.+"
)
_NAMES = {"cri-containerd": "containerd", "crio": "cri-o", "libpod": "podman", "nerdctl": "containerd"}


def parse(path: str) -> Place | None:
    """The outermost container that `path` lies in, or None. Deeper cgroups give the same `Place` as the container's own."""
    parts = path.strip("/").split("/")
    pod_uid = ""
    for index, part in enumerate(parts):
        own = "/" + "/".join(parts[: index + 1])
        if found := _SCOPE.fullmatch(part):
            name = found["runtime"]
            return Place(found["id"], own, _NAMES.get(name, name), pod_uid)
        if _BARE.fullmatch(part):
            return Place(part, own, "docker" if index and parts[index - 1] == "docker" else "", pod_uid)
        if pod := _POD.fullmatch(part):
            pod_uid = _dashed(pod["uid"])
    return None


def _dashed(uid: str) -> str:
    # systemd names cannot hold a dash inside a slice part, so kubelet writes `_`; static pods have 32 hex digits and no dash.
    return uid.replace("_", "-")


def is_parent(path: str) -> bool:
    """Whether `path` is a directory that only groups containers (`/docker`, `/kubepods/burstable/pod<uid>`)."""
    if parse(path):
        return False
    last = path.rsplit("/", 1)[-1]
    return bool(_PARENT.fullmatch(last) or _POD.fullmatch(last))


def is_host(path: str) -> bool:
    """Whether systemd's own names say that no container runtime made `path`: services, slices, login sessions."""
    return bool(_HOST.fullmatch(path.rsplit("/", 1)[-1]))


def mount_point(mounts: str = "/proc/self/mounts") -> str:
    """Where cgroup v2 is mounted; `MissingDependency` when it is nowhere."""
    with open(mounts, encoding="utf-8") as file:
        for line in file:
            _, where, kind, *_ = line.split(" ")
            if kind == "cgroup2":
                return where.replace("\\040", " ")
    raise MissingDependency(
        "expected a cgroup2 mount, found none in /proc/self/mounts; "
        "mount one: mount -t cgroup2 none /sys/fs/cgroup/unified"
    )


def cgroup_id(mount: str, path: str) -> int:
    """Id of the cgroup at `path`, 0 when it is gone."""
    try:
        return os.stat(mount + path).st_ino
    except OSError:
        return 0


def pod_cgroup(mount: str, path: str) -> int:
    """Id of the pod's cgroup that the container at `path` lies in; 0 when its parent is no pod's."""
    parent = path.rpartition("/")[0]
    return cgroup_id(mount, parent) if _POD.fullmatch(parent.rpartition("/")[2]) else 0


def of_pid(pid: int) -> str:
    """cgroup2 path of a process, "" when it is gone or has left the hierarchy. In a cgroup namespace of our own, as a pod has, the
    kernel writes it from that namespace's root on; it is told from the hierarchy's."""
    try:
        with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                if line.startswith("0::"):
                    path = line[3:].rstrip("\n").removesuffix(" (deleted)")
                    return path if not path.startswith("/..") else _from(_namespace_root(os.getpid()), path)
    except OSError:
        pass
    return ""


def _from(root: str, path: str) -> str:
    """`path`, which begins with `/..`, as seen from the cgroup `root`; "" when that is not known."""
    return os.path.normpath(root + path) if root else ""


@lru_cache(1)
def _namespace_root(me: int) -> str:
    """The path of our own cgroup namespace, "" when the tree does not show us: the cgroup that we are in, as far as what the
    namespace shows of it is not below its root. `me`: our pid, as the tree has it only where the pid namespace is the host's."""
    try:
        mount = mount_point()
        below = next(
            (line[3:].rstrip("\n") for line in Path("/proc/self/cgroup").read_text().splitlines() if line[:3] == "0::"),
            "/",
        )
        for _, path in scan(mount):
            if str(me) in Path(mount + path, "cgroup.procs").read_text(encoding="ascii").split():
                return path.removesuffix(below.rstrip("/")) or "/"
    except (OSError, MissingDependency):
        pass
    return ""


def first_pid(mount: str, path: str) -> int:
    """The lowest pid in the cgroup (a container's first process as a rule), 0 when it is empty or gone."""
    try:
        text = Path(mount + path, "cgroup.procs").read_text(encoding="ascii")
    except OSError:
        return 0
    return min((int(word) for word in text.split() if word != "0"), default=0)


def namespaces(pid: int) -> tuple[int, int]:
    """Inodes of the pid and mount namespaces of `pid`; zeros when it is gone or not ours to look at."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino, os.stat(f"/proc/{pid}/ns/mnt").st_ino
    except OSError:
        return 0, 0


def scan(mount: str) -> Iterator[tuple[int, str]]:
    """Id and path of every cgroup, parents first, the root (`/`) included. Of one deeper than paths go: its deepest ancestor's."""
    for id_, path in walk(mount):
        yield id_, path or "/"
