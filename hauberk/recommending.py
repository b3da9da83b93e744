# SPDX-License-Identifier: Apache-2.0
"""What `hauberk recommend` does: reads images, manifests, recorded behaviour and templates, asks `policy.recommend`, and gives the answer."""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tarfile
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final

import msgspec

import policy.recommend
from hauberk.client import labels, seconds
from hauberk.configuration import complete, store_path
from hauberk.discovery import stored
from hauberk.images.archives import read_path
from hauberk.images.image import ReadImage
from hauberk.images.registry import ImageReference, pull, reference
from hauberk.images.streams import ImageLimits
from hauberk.learning import ROWS, selectable
from hauberk.learnt_answers import untracked
from hauberk.manifests import ManifestContainer, manifests
from hauberk.policies import postures
from hauberk.progress_line import ProgressLine
from hauberk.recommend_report import report
from hauberk.written_policies import expect_directory, write_policies, write_whole, yaml_text
from policy.learn.sightings import Sighting
from policy.learn.workloads import OF_ONE_POD, workload
from policy.recommend.contents import ImageContents
from policy.recommend.recommend import HardenedWorkload, Recommendation
from policy.recommend.recommend import recommend as recommended
from policy.recommend.templates import Template, TemplateSet, read
from schemas.behaviour import Behaviour
from schemas.errors import SettingsError
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation
from sinks.store.queries import SqliteReader
from sinks.store.store import Query

_FILE: Final = "templates.yaml"
_MOST: Final = 4 << 20


class RecordedWorkload(msgspec.Struct, kw_only=True):
    """A container of the summary store: its instances by (node, uid), and how many rows they have."""

    workload: HardenedWorkload
    instances: set[tuple[str, str]] = set()
    rows: int = 0
    orchestrated: bool = False


class HardeningTarget(msgspec.Struct, kw_only=True):
    """A container to harden: what is in its image (None: not known), what it runs by its manifest or image, what is recorded of it."""

    workload: HardenedWorkload
    contents: ImageContents | None = None
    commands: tuple[str, ...] = ()
    recorded: list[RecordedWorkload] = []


def recommend(given: argparse.Namespace) -> int:
    """Policies and report. Exit 1 when there are none."""
    known = templates(given)
    chosen = _chosen(known, given)
    if given.outdir:
        expect_directory(Path(given.outdir))
    if given.report and given.report != "-" and Path(given.report).is_dir():
        raise SettingsError(f"expected a file to write the report to, `{given.report}` is a directory")
    targets = _targets(given)
    line = ProgressLine(
        lambda number, seconds: (
            f"{number:,} of {len(targets):,} containers compared with {len(chosen)} templates in {seconds:.0f} s"
        ),
        "hauberk recommend",
    )
    found = _distinct(
        [_ask(target, sightings, chosen) for target, sightings in line.each(_with_sightings(targets, given))]
    )
    orchestrated = (
        {of.workload.namespace for one in targets for of in one.recorded if of.orchestrated} if not given.file else None
    )
    spoken = (one.body["metadata"]["namespace"] for of in found for one in of.policies)
    if said := untracked((name for name in spoken if orchestrated is None or name in orchestrated), postures(given)):
        print(f"hauberk recommend: {said}", file=sys.stderr)
    if given.image and not given.file:
        print(
            "hauberk recommend: images alone do not say where they run; policies select containers by the repository's name",
            file=sys.stderr,
        )
    bodies = {(policy.body["metadata"]["namespace"], policy.body["metadata"]["name"]): (
        policy.body, f"{policy.template.title}. {policy.template.why} {', '.join(policy.template.tags)}. "
                      f"{one.denied} of {one.behaviours} recorded behaviours would have been denied."
    )
        for one in found for policy in one.policies
    }  # fmt: skip
    # Policies first: a report that lies there says what was written.
    if given.report == "-":
        print(report(found, known, ".txt"), end="")
    elif not bodies:
        print("hauberk recommend: nothing to recommend for this selection", file=sys.stderr)
    elif given.outdir:
        for path in write_policies(Path(given.outdir), list(bodies.values()), "yaml"):
            print(path)
    else:
        print("---\n".join(yaml_text(body, comment) for body, comment in bodies.values()), end="")
    if given.report and given.report != "-":
        _whole(Path(given.report), report(found, known, Path(given.report).suffix))
    left = sum(len(one.left_out) for one in found)
    if left and given.report != "-":
        print(f"hauberk recommend: {left} templates left out; --report - says why", file=sys.stderr)
    return 0 if bodies else 1


def _distinct(found: list[Recommendation]) -> list[Recommendation]:
    """With a mark of the workload in every name that two different policies would have: the second would take the place of the first."""
    named: dict[tuple[str, str], list[object]] = {}
    for one in found:
        for each in one.policies:
            same = named.setdefault((each.body["metadata"]["namespace"], each.body["metadata"]["name"]), [])
            if each.body["spec"] not in same:
                same.append(each.body["spec"])
    made = []
    for one in found:
        mark = hashlib.blake2b(msgspec.json.encode(one.workload, order="deterministic"), digest_size=3).hexdigest()
        policies = tuple(
            msgspec.structs.replace(each, body=each.body | {"metadata": each.body["metadata"] | {"name": f"{name}-{mark}"}})
            if len(named[each.body["metadata"]["namespace"], (name := each.body["metadata"]["name"])]) > 1 else each
            for each in one.policies
        )  # fmt: skip
        made.append(msgspec.structs.replace(one, policies=policies))
    return made


def templates(given: argparse.Namespace) -> TemplateSet:
    """Those of `update`, or those that came with Hauberk, whichever are newer."""
    own = Path(policy.recommend.__file__).with_name("templates") / "hardening.yaml"
    built_in = read(own.read_bytes(), own.name)
    _, state = complete(given)
    file = state / _FILE
    if not file.exists():
        return built_in
    updated = read(file.read_bytes(), str(file))
    return updated if updated.order >= built_in.order else built_in


def update(given: argparse.Namespace) -> int:
    """Templates from a file, the YAML files of a directory, or those of a tar archive: checked whole, then taken whole."""
    path = Path(given.path)
    merged: dict[str, Template] = {}
    version: tuple[tuple[int, ...], str] = ((), "")
    for name, text in _template_files(path):
        some = read(text, name)
        merged |= {one.name: one for one in some.templates}
        version = max(version, (some.order, some.version))
    if not merged:
        raise SettingsError(f"expected files of templates (.yaml) at `{path}`, found none")
    before = templates(given)
    if version[0] < before.order:
        raise SettingsError(f"expected templates of {before.version} or newer at `{path}`, got {version[1]}")
    _, state = complete(given)
    state.mkdir(parents=True, exist_ok=True)
    made = TemplateSet(version=version[1], templates=tuple(merged.values()))
    _whole(state / _FILE, msgspec.yaml.encode(msgspec.to_builtins(made)).decode())
    print(f"{len(merged)} templates of {made.version}, before {len(before.templates)} of {before.version}")
    return 0


def _template_files(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            for file in sorted(path.glob("*.y*ml")):
                yield str(file), _bounded(file.read_bytes(), str(file))
        elif tarfile.is_tarfile(path):
            with tarfile.open(path) as archive:
                for number, member in enumerate(archive):
                    if number > 1000:
                        raise SettingsError(f"expected at most 1000 files in `{path}`, got more")
                    if member.isreg() and member.name.endswith((".yaml", ".yml")):
                        if member.size > _MOST:
                            raise SettingsError(
                                f"expected at most {_MOST:,} bytes in `{member.name}`, got {member.size:,}"
                            )
                        held = archive.extractfile(member)
                        yield f"{path}: {member.name}", held.read() if held is not None else b""
        else:
            yield str(path), _bounded(path.read_bytes(), str(path))
    except (OSError, tarfile.TarError) as error:
        raise SettingsError(f"expected templates at `{path}`, got: {error}") from error


def _bounded(text: bytes, name: str) -> bytes:
    if len(text) > _MOST:
        raise SettingsError(f"expected at most {_MOST:,} bytes in `{name}`, got {len(text):,}")
    return text


def _chosen(known: TemplateSet, given: argparse.Namespace) -> list[Template]:
    tags = [tag.strip().lower() for tag in given.tag.split(",") if tag.strip()]
    names = [name.strip() for name in given.policy.split(",") if name.strip()]
    if unknown := set(names) - {one.name for one in known.templates}:
        raise SettingsError(f"expected names of templates with -p, got `{min(unknown)}`; `--report -` lists them")
    chosen = [
        one for one in known.templates
        if (not names or one.name in names) and (not tags or any(tag in said.lower().split() for tag in tags for said in one.tags))
    ]  # fmt: skip
    if not chosen:
        raise SettingsError(f"expected a framework or a tag that templates have with -t, got `{given.tag}`")
    return chosen


def _targets(given: argparse.Namespace) -> list[HardeningTarget]:
    """Of manifests, else of what was recorded, else of the images alone; each with what is known of the other two."""
    images = [one for text in given.image for one in _image(text, given)]
    recorded = _recorded(given)
    if given.file:
        found = [_of_manifest(one) for one in manifests([Path(text) for text in given.file])]
    elif recorded and not given.image:
        found = [HardeningTarget(workload=one.workload) for one in recorded]
    else:
        found = [
            HardeningTarget(workload=_of_image(one), contents=one.contents, commands=one.commands) for one in images
        ]
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
    for one in found:
        one.recorded = [
            each for each in recorded
            if _same(each.workload, one.workload) or (not given.file and _alike(each.workload.image, one.workload.image))
        ]  # fmt: skip
        if one.contents is None and (image := _matching(one.workload.image, images, given)) is not None:
            one.contents = image.contents
            one.commands += image.commands
    return found


def _same(one: HardenedWorkload, other: HardenedWorkload) -> bool:
    return (one.namespace, one.name, one.container) == (other.namespace, other.name, other.container)


def _image(text: str, given: argparse.Namespace) -> list[ReadImage]:
    path = Path(text)
    limits = ImageLimits()
    if path.exists():
        return read_path(path, given.platform, limits)
    if text.startswith((".", "/")) or path.suffix in (".tar", ".gz", ".zst"):
        raise SettingsError(f"expected an image archive or an OCI layout at `{text}`, there is nothing")
    return [pull(text, _docker_config(given), given.platform, limits)]


def _docker_config(given: argparse.Namespace) -> Path:
    if given.docker_config and not Path(given.docker_config).exists():
        raise SettingsError(f"expected docker's configuration at `{given.docker_config}`, there is none")
    return Path(given.docker_config or Path.home() / ".docker/config.json")


def _matching(image: str, images: list[ReadImage], given: argparse.Namespace) -> ReadImage | None:
    """The image of that name among those given; pulled where that was asked for."""
    if not image:
        return None
    for one in images:
        if any(_alike(name, image) for name in one.names):
            return one
    return pull(image, _docker_config(given), given.platform) if given.pull else None


def _alike(one: str, other: str) -> bool:
    mine, its = _reference(one), _reference(other)
    return mine is not None and mine == its


@lru_cache(maxsize=65536)
def _reference(text: str) -> ImageReference | None:
    try:
        return reference(text)
    except SettingsError:
        return None


def _of_manifest(one: ManifestContainer) -> HardeningTarget:
    return HardeningTarget(workload=one.workload, commands=one.commands)


def _of_image(one: ReadImage) -> HardenedWorkload:
    """Nobody says where an image runs: its repository's name is the usual name of its container."""
    text = one.names[0] if one.names else Path(one.origin).stem
    name = (
        re.sub(r"[^a-z0-9-]+", "-", text.partition("@")[0].rpartition("/")[2].partition(":")[0].lower()).strip("-")
        or "image"
    )
    return HardenedWorkload(name=name, container=name, image=text)


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


def _with_sightings(
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


def _ask(target: HardeningTarget, sightings: list[Sighting], chosen: Iterable[Template]) -> Recommendation:
    """What a container runs by its manifest or image is as good as seen: a health check with curl needs curl."""
    identity = Identity(
        kind=Kind.CONTAINER, node="", uid="declared", namespace=target.workload.namespace, labels=target.workload.labels,
        container_name=target.workload.container, orchestrated=True,
    )  # fmt: skip
    declared = []
    if target.contents is not None and target.commands:
        paths, shared = target.contents.programs({word.rpartition("/")[2] for word in target.commands})
        paths += [path for _, path in shared]
        declared = [
            Sighting(identity=identity, behaviour=Behaviour(operation=Operation.EXEC, access=Access.EXEC, resource=path, executable="/init", parent="/init"))
            for path in paths
        ]  # fmt: skip
    return recommended(target.workload, chosen, target.contents, [*sightings, *declared])


def _whole(path: Path, text: str) -> None:
    """The report. SettingsError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise SettingsError(f"expected to write `{path}`, got: {error.strerror or error}") from error
