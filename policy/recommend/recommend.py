# SPDX-License-Identifier: Apache-2.0
"""Templates and an image -> policies for a workload, none of which denies what the workload was seen doing. Pure.

A template whose policy would block a recorded behaviour is left out, and says which. What is left is replayed as one set by the judge.
Without an image nothing is known of where programs are, so they are named wherever they lie.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from policy.learn.documents import checked, namespace_of
from policy.learn.sightings import Shown, Sighting, Use, by_behaviour, refused, use_of
from policy.recommend.contents import ImageContents
from policy.recommend.templates import Template
from policy.ruleset import PostureSettings, Scope, compile_ruleset
from schemas.identity import Identity
from schemas.policy import API_VERSION, PolicyDocument
from schemas.verdict import ALLOWED, Action

MANAGED: Final = {"app.kubernetes.io/managed-by": "hauberk-recommend"}
_OPEN: Final = PostureSettings(untracked_namespaces=())
_BAD: Final = re.compile(r"[^a-z0-9-]+")


class HardenedWorkload(msgspec.Struct, frozen=True, kw_only=True):
    """Whose policies. `labels`: the selector; `container` "" for all of the pod."""

    namespace: str = "default"
    name: str
    labels: dict[str, str] = {}
    container: str = ""
    image: str = ""


class LeftOut(msgspec.Struct, frozen=True):
    """A template that is not recommended, and why."""

    template: str
    reason: str


class Recommended(msgspec.Struct, frozen=True, kw_only=True):
    """One template's policy. `notes`: what of it is not enforced here."""

    template: Template
    body: dict[str, Any]
    notes: tuple[str, ...] = ()


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """`behaviours`: recorded ones that the policies were replayed on; `denied` of them would be, by construction none. `origin`: the file that
    says of the workload, "" for none."""

    workload: HardenedWorkload
    distribution: str
    policies: tuple[Recommended, ...]
    left_out: tuple[LeftOut, ...]
    behaviours: int
    denied: int
    origin: str = ""


def recommend(
    workload: HardenedWorkload, templates: Iterable[Template], contents: ImageContents | None, sightings: Iterable[Sighting] = (),
) -> Recommendation:  # fmt: skip
    """The policies for one container of a workload, in order of template."""
    shown = _evidence(sightings)
    drafts: list[tuple[Template, dict[str, Any], PolicyDocument, list[str]] | LeftOut] = []
    for template in templates:
        spec, notes = _spec(template, contents)
        if isinstance(spec, str):
            drafts.append(LeftOut(template.name, spec))
            continue
        body = _body(workload, template, spec)
        drafts.append((template, body, checked(body, template.name), notes))
    # Nearly all that was seen no template speaks of; each is asked about the rest alone.
    spoken = _spoken_of([one[2] for one in drafts if not isinstance(one, LeftOut)], shown)
    made: list[Recommended] = []
    left: list[LeftOut] = []
    documents: list[PolicyDocument] = []
    for one in drafts:
        if isinstance(one, LeftOut):
            left.append(one)
            continue
        template, body, document, notes = one
        against = next(_denied([document], spoken), None)
        if against is not None:
            behaviour = against.behaviour
            what = behaviour.resource or behaviour.detail or "a socket"
            left.append(LeftOut(
                template.name,
                f"it would block {behaviour.operation.name.lower()} of {what} by {behaviour.executable or 'a program without a file'}, "
                f"seen {against.count} times",
            ))  # fmt: skip
            continue
        documents.append(document)
        made.append(Recommended(template=template, body=body, notes=tuple(notes)))
    denied = sum(1 for _ in _denied(documents, shown))
    distribution = contents.distribution.name or contents.distribution.ident if contents is not None else ""
    return Recommendation(
        workload=workload, distribution=distribution, policies=tuple(made), left_out=tuple(left),
        behaviours=sum(len(each.some) for each in shown), denied=denied,
    )  # fmt: skip


def _evidence(sightings: Iterable[Sighting]) -> list[Shown]:
    """What somebody needed, by behaviour."""
    return [
        heard for each in by_behaviour(sightings)
        if use_of(each.behaviour) is Use.EVIDENCE and (heard := each.only(lambda one: not refused(one))) is not None
    ]  # fmt: skip


def _spec(template: Template, contents: ImageContents | None) -> tuple[dict[str, Any] | str, list[str]]:
    """(sections, notes), or (why there are none, [])."""
    notes: list[str] = []
    if contents is not None and template.needs:
        found, shared = contents.programs(template.needs)
        if not found and not shared:
            return f"the image has none of {', '.join(template.needs)}", []
    if template.unless and contents is None:
        return f"whether the image has {template.unless[0]} is not known without it", []
    for path in template.unless:
        if contents is not None and contents.has(path):
            return f"the image has {path}", []
    process: dict[str, Any] = {}
    paths = _programs(template, contents, notes)
    if paths:
        process["matchPaths"] = paths
    if template.no_exec:
        process["matchDirectories"] = [{"dir": path.rstrip("!"), "recursive": True} for path in template.no_exec]
    file: dict[str, Any] = {}
    for limit, wanted in (("readOnly", template.read_only), ("", template.closed)):
        for path in wanted:
            if not path.endswith("!") and contents is not None and not contents.has(path):
                continue
            place = path.rstrip("!")
            entry: dict[str, Any] = {"dir": place, "recursive": True} if place.endswith("/") else {"path": place}
            file.setdefault("matchDirectories" if "dir" in entry else "matchPaths", []).append(
                entry | ({limit: True} if limit else {})
            )
    spec: dict[str, Any] = {}
    if process:
        spec["process"] = process
    if file:
        spec["file"] = {name: file[name] for name in ("matchPaths", "matchDirectories") if name in file}
    if template.protocols:
        spec["network"] = {"matchProtocols": [{"protocol": one} for one in template.protocols]}
    if template.presets:
        spec["presets"] = [{"name": name, "action": template.action} for name in template.presets]
    if not spec:
        return notes[0] if notes else "the image has nothing of it", []
    return spec, notes


def _programs(template: Template, contents: ImageContents | None, notes: list[str]) -> list[dict[str, Any]]:
    if contents is None:
        found: list[dict[str, Any]] = [
            {"execname": name} for name in dict.fromkeys((*template.programs, *template.named))
        ]
        if template.sources:
            # Without the image nobody knows where the sources are.
            found = []
            notes.append("where its programs are is not known without the image")
        return found
    mine, shared = contents.programs(template.programs)
    notes += [
        f"{name} is {target}, which has other names too: not blocked" if target.isprintable()
        else f"{name} is {target!a}, a path that no policy can write: not blocked"
        for name, target in shared
    ]  # fmt: skip
    made: list[dict[str, Any]] = [{"path": path} for path in mine]
    if template.sources:
        sources, _ = contents.programs(template.sources)
        made = [entry | {"fromSource": [{"path": path} for path in sources]} for entry in made] if sources else []
    return made + [{"execname": name} for name in template.named]


def _body(workload: HardenedWorkload, template: Template, spec: Mapping[str, Any]) -> dict[str, Any]:
    parts = "-".join(
        part for part in (workload.name, workload.container if workload.container != workload.name else "") if part
    )
    name = re.sub("-+", "-", _BAD.sub("-", f"{parts}"[:120].lower())).strip("-") or "workload"
    labels = dict(sorted(workload.labels.items()))
    if workload.container:
        labels["kubearmor.io/container.name"] = f"[{workload.container}]"
    return {
        "apiVersion": API_VERSION, "kind": "KubeArmorPolicy",
        "metadata": {"name": f"{name}-{template.name}", "namespace": namespace_of(workload.namespace), "labels": dict(MANAGED)},
        "spec": {
            "severity": template.severity, "message": template.title, "tags": list(template.tags), "action": template.action,
            "selector": {"matchLabels": labels}, **spec,
        },
    }  # fmt: skip


def _spoken_of(documents: list[PolicyDocument], shown: list[Shown]) -> list[Shown]:
    """What any rule of the policies says anything of, all of them asked at once. The rest gets the one answer `ALLOWED`, which no rule
    gives, and which each of the policies would give alone."""
    if not documents or not shown:
        return []
    scope_of = _scopes(documents)
    return [
        each for each in shown
        if any(scope.judge(each.behaviour) is not ALLOWED for scope in {scope_of(one.identity) for one in each.some})
    ]  # fmt: skip


def _denied(documents: list[PolicyDocument], shown: list[Shown]) -> Iterator[Sighting]:
    """What the policies would block, asked as of a workload that they select."""
    if not documents or not shown:
        return
    scope_of = _scopes(documents)
    for each in shown:
        blocked: dict[Scope, bool] = {}
        for one in each.some:
            scope = scope_of(one.identity)
            if scope not in blocked:
                blocked[scope] = scope.judge(each.behaviour).action is Action.BLOCK
            if blocked[scope]:
                yield one


def _scopes(documents: list[PolicyDocument]) -> Callable[[Identity], Scope]:
    ruleset = compile_ruleset(documents, _OPEN)
    scopes: dict[tuple[str, str], Scope] = {}

    def scope_of(identity: Identity) -> Scope:
        key = (identity.node, identity.uid)
        found = scopes.get(key)
        if found is None:
            plain = msgspec.structs.replace(identity, annotations={}, namespace_annotations={}, confirmed=True)
            found = scopes[key] = ruleset.scope(plain)
        return found

    return scope_of
