# SPDX-License-Identifier: Apache-2.0
"""What `hauberk discover` does: reads the summary store, asks the learner of `policy/learn`, and prints, writes or applies its answer."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hauberk.client import labels, readable, seconds, with_bus
from hauberk.evidence_pods import EvidencePods, cell
from hauberk.network_discovery import when
from hauberk.output import as_json, printable, table
from hauberk.progress_line import ProgressLine
from hauberk.written_policies import comment, expect_directory, selects, write_policies, yaml_text
from schemas.errors import PolicyError, SettingsError
from schemas.identity import Kind
from schemas.operations import Class

if TYPE_CHECKING:
    from bus.contract import Bus
    from policy.learn.learner import LearntPolicy
    from policy.learn.review import ReviewItem
    from policy.learn.rules import LearntRule
    from policy.learn.sightings import Sighting
    from policy.ruleset import PostureSettings, Ruleset
    from schemas.identity import Identity
    from schemas.policy import PolicyDocument
    from sinks.store.store import Query


def discover(given: argparse.Namespace) -> int:
    """Policies for what was asked for. Exit 1 when nothing was seen."""
    from hauberk.configuration import existing_store
    from hauberk.policy_files import read as read_policies

    if given.outdir:
        expect_directory(Path(given.outdir))
    # Before anything that takes long or says something.
    existing_store(given)
    seconds(given.since)
    before = read_policies([given.merge], False, quiet=True) if given.merge else []
    if given.policy.endswith("NetworkPolicy"):
        return _network(given)
    from hauberk.learning import learn_store, selectable
    from hauberk.learnt_answers import expect_accepted, untracked
    from hauberk.policies import postures
    from hauberk.selected_unseen import unseen_of
    from policy.learn.learner import LearnSettings

    settings = LearnSettings(
        patterns=not given.no_patterns,
        quiet_hours=given.quiet_hours,
        accept=tuple(filter(None, given.accept.split(","))),
        isolate=given.isolate,
        mode=given.mode if given.apply else "enforce",
    )
    spoken = _shadows(given)
    sizes, left_out = selectable(_sizes(given))
    if left_out:
        print(f"hauberk discover: {left_out}", file=sys.stderr)
    learnt = learn_store(
        sizes,
        lambda some: _sightings(given, spoken, instances=some),
        settings,
        evidence=bool(given.merge),
        looks=given.explain,
    )
    expect_accepted(
        settings.accept,
        {ident for one in learnt for ident in one.accepted},
        (item for one in learnt for item in one.apart),
    )
    learnt = [one for one in learnt if one.rules or given.review]
    if said := untracked((one.workload.namespace for one in learnt if one.workload.orchestrated), postures(given)):
        print(f"hauberk discover: {said}", file=sys.stderr)
    if not learnt:
        print(f"hauberk discover: nothing in the last {given.since} for this selection", file=sys.stderr)
        return 1
    if given.review:
        return _review(learnt, given)
    unseen = unseen_of(given, learnt, (identity for identity, _ in sizes))
    if given.explain:
        _explain(learnt, given, EvidencePods(identity for identity, _ in sizes), unseen)
        return 0
    bodies = _merged(before, learnt, unseen) if given.merge else [(one.body, _comment(one, unseen)) for one in learnt]
    return _give(given, bodies, sum(len(one.apart) for one in learnt))


def _give(given: argparse.Namespace, bodies: list[tuple[dict[str, Any], str]], apart: int) -> int:
    """Applied, written or printed."""
    if given.apply:
        return _apply(given, [body for body, _ in bodies])
    if given.outdir:
        for path in write_policies(Path(given.outdir), bodies, given.format):
            print(path)
    elif given.format == "json":
        print(as_json([body for body, _ in bodies]))
    else:
        print("---\n".join(yaml_text(body, comment) for body, comment in bodies), end="")
    if apart:
        print(
            f"hauberk discover: {apart} thing{'s' * (apart != 1)} not learnt; --review shows what and why",
            file=sys.stderr,
        )
    return 0


def _network(given: argparse.Namespace) -> int:
    from hauberk.network_discovery import learnt, verify

    spoken = _shadows(given)
    fits = _namespaces(given)
    pods = EvidencePods()

    def read(*, everywhere: bool = False, network: bool = False) -> Iterator[Sighting]:
        line = ProgressLine(
            lambda number, seconds: f"{number:,} stored behaviours read in {seconds:.0f} s", "hauberk discover"
        )
        for one in line.of(_sightings(given, spoken, everywhere=everywhere, network=network)):
            if one.identity.kind is not Kind.CONTAINER or one.identity.namespace in fits:
                if given.explain:
                    pods.add(one.identity)
                yield one

    if given.verify:
        return verify(given, read)
    bodies, apart = learnt(given, read, pods)
    if given.review:
        return _show_apart(apart, given)
    if given.explain and bodies:
        return 0
    if not bodies:
        whose = "nodes" if given.policy == "KubeArmorNetworkPolicy" else "pods"
        print(
            f"hauberk discover: no connections of {whose} in the last {given.since} for this selection", file=sys.stderr
        )
        return 1
    return _give(given, bodies, len(apart))


def _namespaces(given: argparse.Namespace) -> set[str]:
    """Those that policies can be for; of the others it is said."""
    from hauberk.configuration import existing_store
    from hauberk.learning import selectable
    from sinks.store.queries import SqliteReader

    reader = SqliteReader(str(existing_store(given)))
    try:
        kept, left_out = selectable((one, 0) for one in reader.identities(_asked(given, everywhere=True)))
    finally:
        reader.close()
    if left_out:
        print(f"hauberk discover: {left_out}", file=sys.stderr)
    return {one.namespace for one, _ in kept}


def _asked(given: argparse.Namespace, *, everywhere: bool = False, network: bool = False) -> Query:
    """What of the store was asked for. `everywhere`: of every namespace; `network`: of sockets alone."""
    from sinks.store.store import Query

    host = given.policy in ("KubeArmorHostPolicy", "KubeArmorNetworkPolicy")
    query = Query(
        kinds=("host", "node") if host else ("container",), since=int(time.time() - seconds(given.since)), node=given.node,
        classes=(Class.NETWORK,) if network else (),
    )  # fmt: skip
    if everywhere:
        return query
    return msgspec.structs.replace(
        query, namespace=given.namespace, container=given.container, labels=tuple(labels(given.selector).items())
    )


def _sizes(given: argparse.Namespace) -> list[tuple[Identity, int]]:
    from hauberk.configuration import existing_store
    from sinks.store.queries import SqliteReader

    reader = SqliteReader(str(existing_store(given)))
    try:
        return reader.sizes(_asked(given))
    finally:
        reader.close()


def _sightings(
    given: argparse.Namespace, shadows: Ruleset | None, *, everywhere: bool = False, network: bool = False,
    instances: frozenset[tuple[str, str]] = frozenset(),
) -> Iterator[Sighting]:  # fmt: skip
    """The stored behaviours that were asked for, with what a shadow policy in force says of them. `instances`: of these alone."""
    from hauberk.configuration import existing_store

    query = msgspec.structs.replace(_asked(given, everywhere=everywhere, network=network), instances=instances)
    return stored(str(existing_store(given)), query, shadows)


def stored(path: str, query: Query, shadows: Ruleset | None) -> Iterator[Sighting]:
    """What the store at `path` has of `query`, with what a shadow policy in force says of it."""
    from policy.learn.sightings import Sighting, as_judged
    from sinks.store.queries import SqliteReader

    reader = SqliteReader(path)
    try:
        before = behaviour = None
        for row in reader.behaviours(query):
            if row.behaviour is not before or behaviour is None:
                before, behaviour = row.behaviour, as_judged(row.behaviour)
            if shadows is None:
                yield Sighting(
                    identity=row.identity, behaviour=behaviour, status=row.status, count=row.count, first=row.first, last=row.last
                )  # fmt: skip
                continue
            verdicts = shadows.scope(row.identity).judge(behaviour).shadow
            yield Sighting(
                identity=row.identity, behaviour=behaviour, status=row.status, count=row.count, first=row.first,
                last=row.last, shadowed=any(one.tell for one in verdicts),
            )  # fmt: skip
    finally:
        reader.close()


def _shadows(given: argparse.Namespace) -> Ruleset | None:
    """The policies on the bus, when one of them is a shadow or a baseline; None without a bus."""
    from hauberk.policies import postures

    try:
        documents = [document for _, document in with_bus(given, _policies)]
    except SettingsError as error:
        print(
            f"hauberk discover: what shadow policies spoke against is not known, and is learnt, nor whom else policies would select: {error}",
            file=sys.stderr,
        )
        return None
    return shadows(documents, postures(given))


def shadows(documents: list[PolicyDocument], settings: PostureSettings) -> Ruleset | None:
    """These policies, when one of them is a shadow or a baseline: what it spoke against is not learnt."""
    from policy.rules.normalise import normalise
    from policy.ruleset import compile_ruleset
    from schemas.verdict import Mode

    if not any(normalise(document).mode in (Mode.SHADOW, Mode.BASELINE) for document in documents):
        return None
    return compile_ruleset(documents, settings)


async def _policies(bus: Bus) -> list[tuple[bytes, Any]]:
    from policy.documents import from_json
    from schemas.topics import POLICIES

    told = [(key, record.value) for key, record in (await bus.latest(POLICIES)).items() if record.value is not None]
    return readable(told, lambda one: (one[0], from_json(one[1])), "policies")


def _merged(
    before: list[PolicyDocument], learnt: list[LearntPolicy], unseen: Mapping[str, Sequence[str]]
) -> list[tuple[dict[str, Any], str]]:
    """The policies of `--merge` in their order, extended; then those that it does not have."""
    from policy.learn.merge import merged

    new = {(one.body["kind"], one.body["metadata"].get("namespace", ""), one.name): one for one in learnt}
    found = []
    for document in before:
        body = json.loads(document.raw)
        one = new.pop((document.kind, document.namespace, document.name), None)
        if one is None:
            found.append((body, "as it was: nothing of it was seen in this time"))
            continue
        extended, changed = merged(body, one)
        said = f"{changed} rule{'s' * (changed != 1)} added or widened. {one.completeness.sentence()}."
        others = unseen.get(one.workload.label, ())
        # Who was looked for is whom the learnt selector is for.
        if others and extended["spec"].get("selector") == one.body["spec"].get("selector"):
            said += f" {selects(', '.join(others))}."
        found.append((extended, said))
    return [*found, *((one.body, _comment(one, unseen)) for one in new.values())]


def _comment(one: LearntPolicy, unseen: Mapping[str, Sequence[str]]) -> str:
    return comment(one, unseen.get(one.workload.label, ()))


def _explain(
    learnt: list[LearntPolicy], given: argparse.Namespace, pods: EvidencePods, unseen: Mapping[str, Sequence[str]]
) -> None:
    if given.format == "json":
        print(as_json([
            {"policy": one.name, "workload": one.workload.label, "completeness": one.completeness,
             "selects_unseen": unseen.get(one.workload.label, ()), "rules": [_evidence(rule, pods) for rule in one.rules]}
            for one in learnt
        ]))  # fmt: skip
        return
    for one in learnt:
        print(f"{one.name}: {printable(_comment(one, unseen))}")
        rows = [
            (found["rule"], found["count"], when(found["first"]), when(found["last"]), len(found["pods"]), cell(found["pods"]), ", ".join(found["sources"]))
            for found in (_evidence(rule, pods) for rule in one.rules)
        ]  # fmt: skip
        print(table(("RULE", "COUNT", "FIRST SEEN", "LAST SEEN", "PODS", "WHICH", "SOURCES"), rows) + "\n")


def rule_text(rule: LearntRule) -> str:
    """One rule in a line."""
    limits = [
        name
        for name, given in (("recursive", rule.recursive), ("readOnly", rule.read_only), ("ownerOnly", rule.owner_only))
        if given
    ]
    return " ".join((rule.section, rule.kind, rule.value, *limits))


def _evidence(rule: LearntRule, pods: EvidencePods) -> dict[str, Any]:
    found = rule.evidence
    return {
        "rule": rule_text(rule), "count": found.count, "first": found.first, "last": found.last, "pods": pods.of(found.instances),
        "instances": sorted(found.instances), "sources": sorted(found.sources),
    }  # fmt: skip


def _review(learnt: list[LearntPolicy], given: argparse.Namespace) -> int:
    return _show_apart([(one.workload.label, item) for one in learnt for item in one.apart], given)


def _show_apart(items: list[tuple[str, ReviewItem]], given: argparse.Namespace) -> int:
    if given.format == "json":
        print(as_json([{"workload": label, **msgspec.structs.asdict(item)} for label, item in items]))
    elif items:
        rows = [
            (item.ident, label, item.reason, item.operation, item.resource, item.count, when(item.first), ", ".join(item.sources))
            for label, item in items
        ]  # fmt: skip
        print(table(("ID", "WORKLOAD", "REASON", "OPERATION", "RESOURCE", "COUNT", "FIRST SEEN", "BY"), rows))
    else:
        print("Nothing was set apart.")
    return 1 if items else 0


def _apply(given: argparse.Namespace, bodies: Sequence[dict[str, Any]]) -> int:
    """Onto the bus, as `hauberk apply` does it."""
    from hauberk.verbs.apply import publish
    from policy.learn.documents import checked
    from schemas.policy import reference

    documents = [checked(body) for body in bodies]
    for name, what in with_bus(given, lambda bus: publish(bus, documents)):
        print(f"{reference(name).lower()} {what} ({given.mode})")
    return 0


def promote(given: argparse.Namespace) -> int:
    """The shadow policy or baseline of this name enforces from now on; one alone, for others may have theirs under the same name in
    another namespace. SettingsError when there is none or more than one, PolicyError when it enforces."""
    from hauberk.verbs.apply import publish
    from policy.learn.documents import checked
    from schemas.policy import ANNOTATION_MODE, reference

    namespace, _, name = given.promote.rpartition("/")
    wanted = namespace or given.namespace

    async def work(bus: Bus) -> int:
        found = [
            document
            for _, document in await _policies(bus)
            if document.name == name and (not wanted or document.namespace == wanted)
        ]
        if not found:
            raise SettingsError(
                f"expected an applied policy `{given.promote}`, there is none; `hauberk get policies` lists them"
            )
        if len(found) > 1:
            raise SettingsError(
                f"expected one policy `{given.promote}`, got {', '.join(sorted(reference(document.key) for document in found))}; name one with -n NAMESPACE "
                "or NAMESPACE/NAME"
            )
        body = json.loads(found[0].raw)
        annotations = body["metadata"].get("annotations") or {}
        if annotations.get(ANNOTATION_MODE) not in ("shadow", "baseline"):
            raise PolicyError(
                f"expected `{given.promote}` to be a shadow policy or a baseline, it enforces already", ()
            )
        annotations.pop(ANNOTATION_MODE)
        if not annotations:
            body["metadata"].pop("annotations")
        for key, what in await publish(bus, [checked(body)]):
            print(f"{reference(key).lower()} {what} (enforce)")
        return 0

    return with_bus(given, work)
