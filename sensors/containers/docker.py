# SPDX-License-Identifier: Apache-2.0
"""Docker (and Podman's Docker-compatible socket): `/events` for changes, `/containers/ID/json` for who it is.

It must never write to the socket's daemon: reading is all. Reconnects by itself with back-off. Neighbours: `unix_http`
carries the bytes, `contract` says what is owed.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec

from bus.rest import until_look
from schemas.decoding import decoder
from schemas.errors import HauberkError, Unavailable
from sensors.containers import unix_http
from sensors.containers.cgroups import Place
from sensors.containers.contract import Changed, Found


class DockerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="docker"):
    """Docker Engine 20.10 or newer, or a service that speaks its API."""

    socket: Annotated[
        str, msgspec.Meta(description="Unix socket of the engine.", examples=["/run/podman/podman.sock"])
    ] = "/var/run/docker.sock"
    timeout_seconds: Annotated[
        float, msgspec.Meta(gt=0, le=315_360_000, description="Seconds to wait for one answer.", examples=[2.0])
    ] = 5.0
    reconnect_max_seconds: Annotated[
        float,
        msgspec.Meta(
            gt=0, le=315_360_000, description="Longest pause between attempts to reconnect, seconds.", examples=[10.0]
        ),
    ] = 30.0


_EVENTS = '/events?filters={"type":["container"],"event":["create","start","die","destroy","rename","update"]}'
_MOST_MADE = 1024
"""Containers whose making is remembered."""
_STARTED = {"create", "start", "rename", "update"}


class Docker:
    """See `contract.Runtime`."""

    name = "docker"

    def __init__(self, settings: DockerSettings | None = None) -> None:
        self._settings = settings or DockerSettings()
        self._status = ""
        self._made: dict[str, Found] = {}

    @property
    def status(self) -> str:
        return self._status

    async def list(self) -> list[Found]:
        listed = await self._get("/containers/json")
        found = [await self._inspect(row["Id"]) for row in listed or ()]
        return [one for one in found if one is not None]

    async def describe(self, place: Place) -> Found | None:
        if place.runtime not in ("", "docker", "podman"):
            return None
        return await self._inspect(place.id)

    async def watch(self, changed: Changed) -> None:
        pause = 0.1
        while True:
            try:
                await self._follow(changed)
                pause = 0.1
            except HauberkError as error:
                self._fail(error)
            await asyncio.sleep(until_look(pause))
            pause = min(pause * 2, self._settings.reconnect_max_seconds)

    async def _follow(self, changed: Changed) -> None:
        async with unix_http.stream(self._settings.socket, _quoted(_EVENTS)) as (status, chunks):
            if status != 200:
                raise Unavailable(f"docker on {self._settings.socket} answered {status} to `/events`; is it an engine?")
            self._status = ""
            # What started while nobody listened: the events stream has no memory, the list has.
            for row in await self._get("/containers/json") or ():
                changed(row["Id"], False)
            rest = b""
            async for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = _decoded(line)
                    if event["Action"] == "create":
                        self._remember(event["Actor"])
                    changed(event["Actor"]["ID"], event["Action"] not in _STARTED)

    async def _get(self, target: str) -> Any:
        try:
            status, body = await unix_http.get(self._settings.socket, target, self._settings.timeout_seconds)
        except HauberkError as error:
            self._fail(error)
            raise
        self._status = ""
        if status == 404:
            return None
        if status != 200:
            raise Unavailable(f"docker on {self._settings.socket} answered {status} to `GET {target}`: {body[:200]!r}")
        return _decoded(body)

    def _fail(self, error: HauberkError) -> None:
        # A machine without Docker is no fault; a socket that is there and does not answer is.
        self._status = f"docker: {error}" if os.path.exists(self._settings.socket) else ""

    async def _inspect(self, id_: str) -> Found | None:
        seen = await self._get(f"/containers/{id_}/json")
        return self._made.get(id_) if seen is None else found(seen)

    def _remember(self, actor: dict[str, Any]) -> None:
        """What the event of its making says: `docker run --rm` may have removed it before anybody could ask."""
        said = dict(actor.get("Attributes") or {})
        name, image = said.pop("name", ""), said.pop("image", "")
        self._made[actor["ID"]] = found({"Id": actor["ID"], "Name": name, "Config": {"Image": image, "Labels": said}})
        if len(self._made) > _MOST_MADE:
            del self._made[next(iter(self._made))]


_decoded: Callable[[bytes], Any] = decoder(object, "an answer of the Docker API", msgspec.json)


ANNOTATIONS: Final = ("kubearmor-policy", "kubearmor-visibility")
"""Labels that count as annotations of the same name."""


def found(seen: dict[str, Any]) -> Found:
    """What `/containers/ID/json` says, in our words. Containers of cri-dockerd carry their pod in labels."""
    config, state, host = seen.get("Config") or {}, seen.get("State") or {}, seen.get("HostConfig") or {}
    labels: dict[str, str] = config.get("Labels") or {}
    pod = labels.get("io.kubernetes.pod.name", "")
    return Found(
        id=seen["Id"],
        runtime="docker",
        name=labels.get("io.kubernetes.container.name") or seen.get("Name", "").lstrip("/"),
        image=config.get("Image", ""),
        image_digest=seen.get("Image", ""),
        namespace=labels.get("io.kubernetes.pod.namespace") or labels.get("kubearmor.io/namespace", ""),
        pod=pod,
        pod_uid=labels.get("io.kubernetes.pod.uid", ""),
        labels=labels,
        # Docker has had annotations since 24.0; before that a label is all a person can give a container.
        annotations={key: labels[key] for key in ANNOTATIONS if key in labels} | (host.get("Annotations") or {}),
        orchestrated=bool(pod),
        privileged=bool(host.get("Privileged")),
        root_pid=int(state.get("Pid") or 0),
        started=seconds(state.get("StartedAt", "")),
    )


def seconds(stamp: str) -> float:
    """Unix seconds of an RFC 3339 time with nanoseconds, 0 for Go's zero time or nonsense."""
    try:
        head, _, fraction = stamp.rstrip("Z").partition(".")
        return max(0.0, datetime.fromisoformat(f"{head}.{fraction[:6] or '0':0<6}+00:00").timestamp())
    except ValueError:
        return 0.0


def _quoted(target: str) -> str:
    return target.replace('"', "%22").replace("{", "%7B").replace("}", "%7D")
