# SPDX-License-Identifier: Apache-2.0
"""What `hauberk recommend` does: asks `policy.recommend` about what there is to harden and the templates, and gives the answer. Neighbour:
`recommend_targets`, which reads manifests, clusters, images and recorded behaviour."""

from __future__ import annotations

import argparse
import hashlib
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

import policy.recommend
from hauberk.configuration import complete
from hauberk.learnt_answers import untracked
from hauberk.policies import postures
from hauberk.progress_line import ProgressLine
from hauberk.recommend_report import expect_form, report
from hauberk.recommend_targets import HardeningTarget, targets_of, with_sightings
from hauberk.template_files import template_files
from hauberk.written_policies import expect_directory, write_policies, write_whole, yaml_text
from policy.learn.sightings import Sighting
from policy.recommend.recommend import Recommendation
from policy.recommend.recommend import recommend as recommended
from policy.recommend.templates import Template, TemplateSet, read
from schemas.behaviour import Behaviour
from schemas.errors import SettingsError
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation

_FILE: Final = "templates.yaml"


def recommend(given: argparse.Namespace) -> int:
    """Policies and report. Exit 1 when there are none."""
    known = templates(given)
    chosen = _chosen(known, given)
    if given.outdir:
        expect_directory(Path(given.outdir))
    if given.report and given.report != "-":
        if Path(given.report).is_dir():
            raise SettingsError(f"expected a file to write the report to, `{given.report}` is a directory")
        expect_form(Path(given.report).suffix)
    targets = targets_of(given)
    line = ProgressLine(
        lambda number, seconds: (
            f"{number:,} of {len(targets):,} containers compared with {len(chosen)} templates in {seconds:.0f} s"
        ),
        "hauberk recommend",
    )
    found = _distinct(
        [_ask(target, sightings, chosen) for target, sightings in line.each(with_sightings(targets, given))]
    )
    orchestrated = (
        {of.workload.namespace for one in targets for of in one.recorded if of.orchestrated}
        if not (given.file or given.kubeconfig is not None or given.context)
        else None
    )
    spoken = (one.body["metadata"]["namespace"] for of in found for one in of.policies)
    if said := untracked((name for name in spoken if orchestrated is None or name in orchestrated), postures(given)):
        print(f"hauberk recommend: {said}", file=sys.stderr)
    if given.image and not (given.selector or given.file or given.kubeconfig is not None or given.context):
        print(
            "hauberk recommend: images alone do not say where they run; policies select containers by the repository's name, or with -l by labels",
            file=sys.stderr,
        )
    bodies = {(policy.body["metadata"]["namespace"], policy.body["metadata"]["name"]): (
        policy.body, f"{policy.template.title}. {policy.template.why} {', '.join(policy.template.tags)}. "
                      f"{one.denied} of {one.behaviours} recorded behaviours would have been denied."
    )
        for one in found for policy in one.policies
    }  # fmt: skip
    # Policies first: a report that lies there says what was written; and none where there could be no report.
    if given.report and given.report != "-":
        _expect_writable(Path(given.report))
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
    """Templates from a file, the YAML files below a directory, or those of an archive: checked whole, then taken whole."""
    path = Path(given.path)
    merged: dict[str, Template] = {}
    version: tuple[tuple[int, ...], str] = ((), "")
    for name, text in template_files(path):
        some = read(text, name)
        if twice := merged.keys() & {one.name for one in some.templates}:
            raise SettingsError(f"expected every template once at `{path}`, got `{min(twice)}` again in `{name}`")
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
    found = recommended(target.workload, chosen, target.contents, [*sightings, *declared])
    return msgspec.structs.replace(found, origin=target.origin)


def _expect_writable(path: Path) -> None:
    """SettingsError when no report can be written there; its directory is made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SettingsError(f"expected to write `{path}`, got: {error.strerror or error}") from error


def _whole(path: Path, text: str) -> None:
    """The report. SettingsError when it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text)
    except OSError as error:
        raise SettingsError(f"expected to write `{path}`, got: {error.strerror or error}") from error
