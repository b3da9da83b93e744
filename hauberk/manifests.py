# SPDX-License-Identifier: Apache-2.0
"""Workloads in Kubernetes manifests: files and directories of YAML or JSON, Deployments to bare Pods, init containers among them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from hauberk.images.image import split
from policy.learn.workloads import OF_ONE_POD
from policy.recommend.recommend import HardenedWorkload
from schemas.errors import SettingsError

_TEMPLATED: Final = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job")
_MOST: Final = 16 << 20
_OBJECTS: Final = 100_000
"""Objects and containers of one file."""


class ImagePuller(msgspec.Struct, frozen=True, order=True):
    """Whose pull secrets count for an image: those that the pod names, else those of its service account."""

    namespace: str
    secrets: tuple[str, ...]
    account: str


class ManifestContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container, whose it is, and the words of what it runs: command, arguments, probes, hooks. `placed`: its namespace is written.
    `origin`: the file that says so. `puller`: who pulls its image, in a cluster."""

    workload: HardenedWorkload
    commands: tuple[str, ...]
    placed: bool
    puller: ImagePuller | None = None
    origin: str = ""


def manifests(paths: list[Path]) -> list[ManifestContainer]:
    """Containers in order of file. SettingsError for a file that cannot be read, is no YAML or has a template in it."""
    found: list[ManifestContainer] = []
    for path in paths:
        files = (
            sorted(one for one in path.rglob("*") if one.suffix in (".yaml", ".yml", ".json") and one.is_file())
            if path.is_dir()
            else [path]
        )
        for file in files:
            found += _file(file)
    if not found:
        raise SettingsError(f"expected workloads in `{', '.join(map(str, paths))}`, found none")
    return found


def _file(path: Path) -> Iterator[ManifestContainer]:
    try:
        if path.stat().st_size > _MOST:
            raise SettingsError(f"expected a manifest of at most {_MOST:,} bytes, `{path}` is larger")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"expected a readable manifest at `{path}`, got: {error}") from error
    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if "{{" in text:
            raise _templated(path, text) from error
        raise SettingsError(f"expected YAML at `{path}`, got: {' '.join(str(error).split())}") from error
    for document in documents:
        for found in containers(document, str(path)):
            # A rendered manifest may hold braces of others: dashboards, alerts, commands.
            of = found.workload
            if any("{{" in word for word in (of.namespace, of.name, of.container, of.image, *of.labels.values())):
                raise _templated(path, text)
            yield msgspec.structs.replace(found, origin=str(path), puller=None)


def containers(document: Any, origin: str) -> Iterator[ManifestContainer]:
    """Those of one object, or of a list of them; none of kinds that have none. SettingsError for one that is not formed as they are."""
    try:
        yield from _DocumentReading(origin).containers(document)
    except (AttributeError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"expected objects of Kubernetes at `{origin}`, one is not formed as they are ({error})"
        ) from error


def _templated(path: Path, text: str) -> SettingsError:
    line = text[: text.index("{{")].count("\n") + 1
    return SettingsError(
        f"expected a manifest at `{path}`, line {line} has a template in it; render it first (`helm template`)"
    )


class _DocumentReading:
    """One document. Aliases make billions of objects and a terabyte of words of a few lines, so what they come to is counted."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._objects = self._characters = 0

    def containers(self, document: Any) -> Iterator[ManifestContainer]:
        """Of a list those of its items in order, which may be lists."""
        waiting = [document]
        while waiting:
            one = waiting.pop()
            self._object()
            if not isinstance(one, dict):
                continue
            kind = one.get("kind", "")
            if kind == "List" or (kind.endswith("List") and "items" in one):
                waiting += reversed(one.get("items") or ())
                self._object(len(waiting))
            else:
                yield from self._of(one, kind)

    def _object(self, waiting: int = 0) -> None:
        self._objects += not waiting
        if self._objects + waiting > _OBJECTS:
            raise SettingsError(f"expected at most {_OBJECTS:,} objects at `{self._origin}`, got more")

    def _word(self, value: Any) -> str:
        """A word, also one that YAML takes for a number. Never of a list."""
        if not isinstance(value, str | int | float | date | None):
            raise TypeError(f"expected a word, got a {type(value).__name__}")
        text = str(value)
        self._characters += len(text)
        if self._characters > _MOST:
            raise SettingsError(f"expected at most {_MOST:,} bytes of words at `{self._origin}`, got more")
        return text

    def _of(self, document: dict[str, Any], kind: str) -> Iterator[ManifestContainer]:
        metadata = document.get("metadata") or {}
        if kind == "Pod":
            pod, labels = document["spec"], metadata.get("labels")
        elif kind in _TEMPLATED:
            template = document["spec"]["template"]
            pod, labels = template["spec"], (template.get("metadata") or {}).get("labels")
        elif kind == "CronJob":
            template = document["spec"]["jobTemplate"]["spec"]["template"]
            pod, labels = template["spec"], (template.get("metadata") or {}).get("labels")
        else:
            return
        word = self._word
        puller = ImagePuller(
            word(metadata.get("namespace") or "default"),
            tuple(name for one in pod.get("imagePullSecrets") or () if (name := word(one.get("name")))),
            word(pod.get("serviceAccountName") or "default"),
        )
        carried = {word(key): word(value) for key, value in (labels or {}).items() if key not in OF_ONE_POD}
        for container in (*(pod.get("initContainers") or ()), *(pod.get("containers") or ())):
            self._object()
            yield ManifestContainer(
                workload=HardenedWorkload(
                    namespace=word(metadata.get("namespace") or "default"), name=word(metadata["name"]), labels=carried,
                    image=word(container.get("image", "")), container=word(container["name"]),
                ),
                commands=tuple(part for text in self._words(container) for part in split(text)), placed=bool(metadata.get("namespace")),
                puller=puller,
            )  # fmt: skip

    def _words(self, container: dict[str, Any]) -> Iterator[str]:
        places = [container]
        places += [
            (container.get(name) or {}).get("exec") or {}
            for name in ("livenessProbe", "readinessProbe", "startupProbe")
        ]
        places += [(hook or {}).get("exec") or {} for hook in (container.get("lifecycle") or {}).values()]
        for place in places:
            for name in ("command", "args"):
                yield from map(self._word, place.get(name) or ())
