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
from schemas.file_text import not_utf8

_TEMPLATED: Final = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job")
_PULLING: Final = ("Secret", "ServiceAccount")
_MOST: Final = 16 << 20
_OBJECTS: Final = 100_000
"""Objects and containers of one file."""

PullObject = tuple[str, str, str]
"""Kind, namespace and name."""


class ImagePuller(msgspec.Struct, frozen=True, order=True):
    """Whose pull secrets count for an image: those that the pod names, else those of its service account. `in_files`: these are looked for in
    manifest files, not in a cluster."""

    namespace: str
    secrets: tuple[str, ...]
    account: str
    in_files: bool = False


class ManifestContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container, whose it is, and the words of what it runs: command, arguments, probes, hooks. `placed`: its namespace is written.
    `origin`: the file that says so. `puller`: who pulls its image."""

    workload: HardenedWorkload
    commands: tuple[str, ...]
    placed: bool
    puller: ImagePuller | None = None
    origin: str = ""


class ManifestFiles(msgspec.Struct, frozen=True):
    """What was read. `objects`: Secrets and ServiceAccounts by kind, namespace and name; of two of one name the later."""

    containers: list[ManifestContainer]
    objects: dict[PullObject, dict[str, Any]]

    def __repr__(self) -> str:
        return f"ManifestFiles({len(self.containers)} containers, ***)"


def manifests(paths: list[Path], usual: str = "default") -> ManifestFiles:
    """Containers in order of file. `usual`: the namespace of what names none, for pull secrets. SettingsError for a file that cannot be read,
    is no YAML or has a template in it."""
    found: list[ManifestContainer] = []
    objects: dict[PullObject, dict[str, Any]] = {}
    for path in paths:
        files = (
            sorted(one for one in path.rglob("*") if one.suffix in (".yaml", ".yml", ".json") and one.is_file())
            if path.is_dir()
            else [path]
        )
        for file in files:
            found += _file(file, usual, objects)
    if not found:
        raise SettingsError(f"expected workloads in `{', '.join(map(str, paths))}`, found none")
    return ManifestFiles(found, objects)


def _file(path: Path, usual: str, objects: dict[PullObject, dict[str, Any]]) -> Iterator[ManifestContainer]:
    try:
        if path.stat().st_size > _MOST:
            raise SettingsError(f"expected a manifest of at most {_MOST:,} bytes, `{path}` is larger")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SettingsError(f"expected a manifest at `{path}`, got {not_utf8(error)}") from error
    except OSError as error:
        raise SettingsError(f"expected a readable manifest at `{path}`, got: {error}") from error
    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if "{{" in text:
            raise _templated(path, text) from error
        raise SettingsError(f"expected YAML at `{path}`, got: {_fault(error)}") from error
    for document in documents:
        reading = _DocumentReading(str(path))
        for found in reading.formed(document):
            # A rendered manifest may hold braces of others: dashboards, alerts, commands.
            of = found.workload
            if any("{{" in word for word in (of.namespace, of.name, of.container, of.image, *of.labels.values())):
                raise _templated(path, text)
            yield msgspec.structs.replace(found, origin=str(path), puller=_in_files(found, usual))
        for (kind, namespace, name), one in reading.pulling.items():
            objects[kind, namespace or usual, name] = one


def _fault(error: Exception) -> str:
    """What is wrong, and where. Not the line itself, which an error of PyYAML quotes where there is no libyaml: secrets may lie there."""
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.MarkedYAMLError) and mark is not None:
        return f"{error.problem} in line {mark.line + 1}, column {mark.column + 1}"
    return " ".join(str(error).split())


def _in_files(found: ManifestContainer, usual: str) -> ImagePuller | None:
    if found.puller is None:
        return None
    namespace = found.puller.namespace if found.placed else usual
    return msgspec.structs.replace(found.puller, namespace=namespace, in_files=True)


def containers(document: Any, origin: str) -> Iterator[ManifestContainer]:
    """Those of one object, or of a list of them; none of kinds that have none. SettingsError for one that is not formed as they are."""
    return _DocumentReading(origin).formed(document)


def _templated(path: Path, text: str) -> SettingsError:
    line = text[: text.index("{{")].count("\n") + 1
    return SettingsError(
        f"expected a manifest at `{path}`, line {line} has a template in it; render it first (`helm template`)"
    )


class _DocumentReading:
    """One document. Aliases make billions of objects and a terabyte of words of a few lines, so what they come to is counted. `pulling`: the
    objects in it that say how images are pulled; "" for a namespace that is not written."""

    def __init__(self, origin: str) -> None:
        self._origin = origin
        self._objects = self._characters = 0
        self.pulling: dict[PullObject, dict[str, Any]] = {}

    def formed(self, document: Any) -> Iterator[ManifestContainer]:
        """`containers`, with one sentence for what is not formed as objects are."""
        try:
            yield from self.containers(document)
        except (AttributeError, TypeError, KeyError, ValueError, RecursionError) as error:
            raise SettingsError(
                f"expected objects of Kubernetes at `{self._origin}`, one is not formed as they are ({error})"
            ) from error

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
            elif kind in _PULLING:
                self._pulls(one, kind)
            else:
                yield from self._of(one, kind)

    def _pulls(self, one: dict[str, Any], kind: str) -> None:
        """Of one that has no name nobody can pull with it, and nothing else of it is of interest here."""
        metadata = one.get("metadata")
        if isinstance(metadata, dict) and isinstance(name := metadata.get("name"), str):
            namespace = metadata.get("namespace") or ""
            if isinstance(namespace, str):
                self.pulling[kind, namespace, name] = one

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
