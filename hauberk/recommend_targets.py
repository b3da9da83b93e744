# SPDX-License-Identifier: Apache-2.0
"""What there is to harden: containers of manifests, of a cluster, of the summary store or of images, each with what is known of it elsewhere."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cluster.settings import ServerSettings
from hauberk.client import labels, seconds
from hauberk.configuration import store_path
from hauberk.discovery import stored
from hauberk.image_fetching import ImageFetching
from hauberk.images.archives import read_path
from hauberk.images.image import ReadImage
from hauberk.images.references import ImageReference, reference
from hauberk.images.streams import ImageLimits
from hauberk.learning import ROWS, selectable
from hauberk.manifest_secrets import ManifestSecrets
from hauberk.manifests import ImagePuller, ManifestContainer, manifests
from policy.learn.sightings import Sighting
from policy.learn.workloads import OF_ONE_POD, workload
from policy.recommend.contents import ImageContents
from policy.recommend.recommend import HardenedWorkload
from schemas.errors import SettingsError
from schemas.identity import Identity
from sinks.store.queries import SqliteReader
from sinks.store.store import Query

if TYPE_CHECKING:
    from hauberk.pull_secret_objects import PullSecrets


class RecordedWorkload(msgspec.Struct, kw_only=True):
    """A container of the summary store: its instances by (node, uid), and how many rows they have."""

    workload: HardenedWorkload
    instances: set[tuple[str, str]] = set()
    rows: int = 0
    orchestrated: bool = False


class HardeningTarget(msgspec.Struct, kw_only=True):
    """A container to harden: what is in its image (None: not known), what it runs by its manifest or image, what is recorded of it, the file
    that says of it, who pulls its image."""

    workload: HardenedWorkload
    contents: ImageContents | None = None
    commands: tuple[str, ...] = ()
    recorded: list[RecordedWorkload] = []
    origin: str = ""
    puller: ImagePuller | None = None


def targets_of(given: argparse.Namespace) -> list[HardeningTarget]:
    """Of manifests, else of what was recorded, else of the images alone; each with what is known of the other two. `-n` and `-l` choose, but
    of images, and of manifests without a namespace, they say where they will run."""
    fetch = ImageFetching(given)
    images = [one for text in given.image for one in _image(text, given, fetch)]
    recorded = _recorded(given)
    manifested = _manifested(given, fetch)
    if manifested is not None:
        found = [_of_manifest(one, given.namespace) for one in manifested]
    elif recorded and not given.image:
        found = [HardeningTarget(workload=one.workload) for one in recorded]
    else:
        found = [_of_image_alone(one, given) for one in images]
    if not found:
        raise SettingsError(
            "expected images (-i), manifests (-f) or a summary store with recorded workloads, got none of them"
        )
    wanted = labels(given.selector).items()
    found = [
        one
        for one in found
        if given.namespace in (None, one.workload.namespace) and wanted <= one.workload.labels.items()
    ]
    fetch.secrets = lambda: _secrets(given, found)
    for one in found:
        one.recorded = [
            each for each in recorded
            if _same(each.workload, one.workload) or (manifested is None and _alike(each.workload.image, one.workload.image))
        ]  # fmt: skip
        if one.contents is None and (image := _matching(one, images, fetch)) is not None:
            one.contents = image.contents
            one.commands += image.commands
    fetch.tell()
    return found


def _manifested(given: argparse.Namespace, fetch: ImageFetching) -> list[ManifestContainer] | None:
    """Of files, of a cluster, or of both; None where neither was asked for."""
    asked = given.kubeconfig is not None or given.context
    if not given.file and not asked:
        return None
    found: list[ManifestContainer] = []
    if given.file:
        files = manifests([Path(text) for text in given.file], given.namespace or "default")
        found += files.containers
        fetch.in_files = ManifestSecrets(files.objects)
    if asked:
        from hauberk.live_workloads import live_workloads

        found += live_workloads(_server(given), given.namespace)
    return found


def _server(given: argparse.Namespace) -> ServerSettings:
    return ServerSettings(kubeconfig=given.kubeconfig or "", context=given.context or "")


def _secrets(given: argparse.Namespace, targets: list[HardeningTarget]) -> PullSecrets:
    from hauberk.pull_secrets import pull_secrets

    return pull_secrets(
        _server(given), (one.puller for one in targets if one.puller is not None and not one.puller.in_files)
    )


def _same(one: HardenedWorkload, other: HardenedWorkload) -> bool:
    return (one.namespace, one.name, one.container) == (other.namespace, other.name, other.container)


def _image(text: str, given: argparse.Namespace, fetch: ImageFetching) -> list[ReadImage]:
    path = Path(text)
    if path.exists():
        return read_path(path, given.platform, ImageLimits())
    if text.startswith((".", "/")) or path.suffix in (".tar", ".gz", ".zst"):
        raise SettingsError(f"expected an image archive or an OCI layout at `{text}`, there is nothing")
    return [fetch.named(text)]


def _matching(target: HardeningTarget, images: list[ReadImage], fetch: ImageFetching) -> ReadImage | None:
    """Its image among those given, by name; fetched once where that was asked for."""
    image = target.workload.image
    if not image:
        return None
    for one in images:
        if any(_alike(name, image) for name in one.names):
            return one
    found = fetch.of_workload(image, target.puller)
    if found is not None:
        images.append(found)
    return found


def _alike(one: str, other: str) -> bool:
    mine, its = _reference(one), _reference(other)
    return mine is not None and mine == its


@lru_cache(maxsize=65536)
def _reference(text: str) -> ImageReference | None:
    try:
        return reference(text)
    except SettingsError:
        return None


def _of_manifest(one: ManifestContainer, namespace: str | None) -> HardeningTarget:
    of = one.workload
    if namespace and not one.placed:
        of = msgspec.structs.replace(of, namespace=namespace)
    return HardeningTarget(workload=of, commands=one.commands, origin=one.origin, puller=one.puller)


def _of_image_alone(one: ReadImage, given: argparse.Namespace) -> HardeningTarget:
    origin = one.origin if Path(one.origin).exists() else ""
    return HardeningTarget(workload=_of_image(one, given), contents=one.contents, commands=one.commands, origin=origin)


def _of_image(one: ReadImage, given: argparse.Namespace) -> HardenedWorkload:
    """Where nobody says how an image runs, its repository's name is the usual name of its container."""
    text = one.names[0] if one.names else Path(one.origin).stem
    name = (
        re.sub(r"[^a-z0-9-]+", "-", text.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()).strip("-")
        or "image"
    )
    chosen = labels(given.selector)
    return HardenedWorkload(
        namespace=given.namespace or "default", name=name, container="" if chosen else name, labels=chosen, image=text
    )


def _query(given: argparse.Namespace) -> Query:
    return Query(namespace=given.namespace, kinds=("container",), since=int(time.time() - seconds(given.since)))


def _recorded(given: argparse.Namespace) -> list[RecordedWorkload]:
    """Whom the summary store has; nothing where there is none."""
    path = store_path(given)
    if not path.exists():
        return []
    reader = SqliteReader(str(path))
    try:
        kept, left_out = selectable(reader.sizes(_query(given)))
    finally:
        reader.close()
    if left_out:
        print(f"hauberk recommend: {left_out}", file=sys.stderr)
    found: dict[tuple[str, ...], RecordedWorkload] = {}
    for identity, rows in kept:
        of = _of_identity(identity)
        one = found.setdefault((of.namespace, of.name, of.container, of.image), RecordedWorkload(workload=of))
        one.instances.add((identity.node, identity.uid))
        one.rows += rows
        one.orchestrated |= identity.orchestrated
    return [found[key] for key in sorted(found)]


def with_sightings(
    targets: list[HardeningTarget], given: argparse.Namespace
) -> Iterator[tuple[HardeningTarget, list[Sighting]]]:
    """Each with what it was seen doing, some at a time: memory is bounded by `ROWS`, or by the one that has more."""
    waiting: list[HardeningTarget] = []
    held = 0
    for target in targets:
        rows = sum(one.rows for one in target.recorded)
        if waiting and held + rows > ROWS:
            yield from _read(waiting, given)
            waiting, held = [], 0
        waiting.append(target)
        held += rows
    yield from _read(waiting, given)


def _read(
    targets: list[HardeningTarget], given: argparse.Namespace
) -> Iterator[tuple[HardeningTarget, list[Sighting]]]:
    found: dict[tuple[str, str], list[Sighting]] = {
        key: [] for target in targets for one in target.recorded for key in one.instances
    }
    if found:
        query = msgspec.structs.replace(_query(given), instances=frozenset(found))
        for one in stored(str(store_path(given)), query, None):
            found[one.identity.node, one.identity.uid].append(one)
    for target in targets:
        keys = sorted({key for one in target.recorded for key in one.instances})
        yield target, [one for key in keys for one in found[key]]


def _of_identity(identity: Identity) -> HardenedWorkload:
    of = workload(identity)
    lasting = {key: value for key, value in identity.labels.items() if key not in OF_ONE_POD}
    return HardenedWorkload(
        namespace=of.namespace, name=of.owner, labels=lasting, container=of.container, image=identity.image
    )
