# SPDX-License-Identifier: Apache-2.0
"""podman, and plain runc and crun: no daemon to ask, so their state files are read.

`<root>/<id>/state.json` is runc's, `<root>/<id>/status` crun's; both name the cgroup, the first process and the bundle,
whose `config.json` holds the annotations. A bundle under a podman storage has names and images in `containers.json`
beside it. Files are small and local: read in place, a few dozen microseconds each. It must never write there.
Neighbours: `contract`; with podman's Docker-compatible socket running, `docker` also gives labels.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from glob import iglob
from pathlib import Path
from typing import Annotated, Any

import msgspec

from bus.rest import until_look
from schemas.decoding import decoder
from schemas.errors import DecodeError
from sensors.containers.cgroups import Place, parse
from sensors.containers.contract import Changed, Found
from sensors.containers.docker import seconds

_document: Callable[[bytes], Any] = decoder(object, "a state file of podman", msgspec.json)


class PodmanSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="podman"):
    """podman 4, runc 1.0, crun 1.0 and newer."""

    roots: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="State directories of OCI runtimes; `*` stands for one directory.", examples=[["/run/crun"]]
        ),
    ] = ("/run/runc", "/run/crun", "/run/containerd/runc/*", "/run/docker/runtime-runc/*", "/run/user/*/crun")
    poll_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0,
            le=315_360_000,
            description="Seconds between polls, for what the kernel did not report.",
            examples=[2.0],
        ),
    ] = 5.0


_STATES = ("state.json", "status")
_V2_MOUNTS = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")


class Podman:
    """See `contract.Runtime`."""

    name = "podman"

    def __init__(self, settings: PodmanSettings | None = None) -> None:
        self._settings = settings or PodmanSettings()
        self._status = ""

    @property
    def status(self) -> str:
        return self._status

    async def list(self) -> list[Found]:
        seen = (self._read(directory) for directory in self._directories())
        return [one for one in seen if one is not None and alive(one.root_pid) and _mine(parse(one.cgroup_path))]

    async def describe(self, place: Place) -> Found | None:
        """By id, and where the path does not hold one (`place.id` ""): by the cgroup path that the state file names."""
        if not _mine(place):
            return None
        for directory in self._directories():
            if place.id and os.path.basename(directory) != place.id:
                continue
            found = self._read(directory)
            if found and (place.id or _within(place.path, found.cgroup_path)):
                return found
        return None

    async def watch(self, changed: Changed) -> None:
        known: dict[str, str] = {}
        while True:
            now = {directory: os.path.basename(directory) for directory in self._directories()}
            for directory in now.keys() - known.keys():
                changed(now[directory], False)
            for directory in known.keys() - now.keys():
                changed(known[directory], True)
            known = now
            await asyncio.sleep(until_look(self._settings.poll_seconds))

    def _directories(self) -> Iterator[str]:
        for root in self._settings.roots:
            for directory in iglob(root):
                # No glob for what is below: it costs ten times as much, every few seconds for as long as this runs.
                try:
                    names = [name for name in os.listdir(directory) if not name.startswith(".")]
                except OSError:
                    continue
                for name in names:
                    if any(os.path.exists(f"{directory}/{name}/{state}") for state in _STATES):
                        yield f"{directory}/{name}"

    def _read(self, directory: str) -> Found | None:
        for name in _STATES:
            try:
                state = _document(Path(directory, name).read_bytes())
            except FileNotFoundError:
                continue
            except PermissionError as error:
                self._status = f"podman: expected to read {directory}/{name}, got `{error.strerror}`; run as root"
                return None
            except (OSError, DecodeError):  # being written, or just removed: the caller asks again
                return None
            return _found(os.path.basename(directory), state)
        return None


def _found(id_: str, state: dict[str, Any]) -> Found:
    if "init_process_pid" in state:
        pid = state["init_process_pid"]
        path = _path((state.get("cgroup_paths") or {}).get("", ""))
        labels = dict(label.partition("=")[::2] for label in (state.get("config") or {}).get("labels") or ())
        bundle, runtime = labels.get("bundle", ""), "runc"
    else:
        pid, path, bundle, runtime = state.get("pid", 0), state.get("cgroup-path", ""), state.get("bundle", ""), "crun"
    annotations: dict[str, str] = _json(Path(bundle, "config.json")).get("annotations") or {}
    kept = stored(bundle, id_)
    return Found(
        id=id_,
        runtime="podman" if annotations.get("io.container.manager") == "libpod" else runtime,
        name=kept.get("name") or id_,
        image=kept.get("image-name", ""),
        image_digest=kept.get("image-id", ""),
        annotations=annotations,
        privileged=annotations.get("io.podman.annotations.privileged") == "TRUE",
        root_pid=int(pid),
        cgroup_path=path,
        started=seconds(state.get("created", "")),
    )


def _path(full: str) -> str:
    for mount in _V2_MOUNTS:
        if full.startswith(mount + "/"):
            return full[len(mount) :]
    return ""


def stored(bundle: str, id_: str) -> dict[str, str]:
    """What podman's storage says of the container of a bundle: `name`, `image-name`, `image-id`; nothing for another's bundle."""
    # .../<driver>-containers/<id>/userdata -> .../<driver>-containers/containers.json
    if not bundle.endswith(f"/{id_}/userdata"):
        return {}
    for row in _json(Path(bundle).parent.parent / "containers.json", []):
        if row.get("id") == id_:
            metadata: dict[str, str] = _document((row.get("metadata") or "{}").encode())
            return {**metadata, "name": (row.get("names") or [metadata.get("name", "")])[0]}
    return {}


def _json(path: Path, empty: Any = None) -> Any:
    try:
        return _document(path.read_bytes())
    except (OSError, DecodeError):
        return {} if empty is None else empty


def _mine(place: Place | None) -> bool:
    """Not what a daemon knows better: Docker and containerd run runc too, and its files name no image and no label."""
    return place is None or (place.runtime in ("", "podman") and not place.pod_uid)


def _within(path: str, own: str) -> bool:
    return bool(own) and (path == own or path.startswith(own + "/"))


def alive(pid: int) -> bool:
    """Whether a process with this host pid exists."""
    return pid > 0 and os.path.exists(f"/proc/{pid}")
