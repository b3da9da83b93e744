# SPDX-License-Identifier: Apache-2.0
"""What `hauberk discover -p NetworkPolicy` and its like do: stored connections and what the cluster says, to policies that let all of
them through, and to the check of a set of policies. Neighbours: `hauberk.discovery`, `policy.learn.network`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import msgspec

from hauberk import inputs
from hauberk.client import readable, with_bus
from hauberk.evidence_pods import EvidencePods, cell
from hauberk.learnt_answers import expect_accepted
from hauberk.output import as_json, table
from schemas.errors import PolicyError, SettingsError
from schemas.file_text import not_utf8

if TYPE_CHECKING:
    from bus.contract import Bus
    from policy.learn.network.directory import Directory, PortRange
    from policy.learn.network.evaluate import Connectivity
    from policy.learn.network.flows import Flows, Subject
    from policy.learn.network.intermediate import ConnectPolicy
    from policy.learn.review import ReviewItem
    from policy.learn.sightings import Sighting
    from policy.learn.workloads import LearntWorkload

Bodies = list[tuple[dict[str, Any], str]]
"""A document as plain data, and the line above it."""


def learnt(
    given: argparse.Namespace, read: Callable[..., Iterator[Sighting]], pods: EvidencePods
) -> tuple[Bodies, list[tuple[str, ReviewItem]]]:
    """(policies with comments, what was set apart by workload). `pods`: of what `read` has given. PolicyError when a flow would be denied."""
    if given.policy == "KubeArmorNetworkPolicy":
        return _firewalls(read, mode=given.mode if given.apply else "enforce"), []
    from policy.learn.completeness import completeness
    from policy.learn.network.evaluate import connectivity
    from policy.learn.network.flows import caught
    from policy.learn.network.forms import FORMS
    from policy.learn.network.intermediate import policies

    directory = _directory(given)
    found, apart = _flows(given, read, directory)
    wanted = _wanted(given)
    made = policies(found, directory)
    if made and not given.review:
        _expect_facts(directory)
    form = FORMS[given.policy]
    check = connectivity(found, directory, [form(one) for one in made], matrix=False)
    if check.refused:
        raise PolicyError(
            f"expected the learnt policies to let through all {check.flows} flows that were seen, they would deny {len(check.refused)}, the first "
            f"{check.refused[0].flow} by {', '.join(check.refused[0].by)}; this is a bug in Hauberk", (),
        )  # fmt: skip
    bodies: Bodies = []
    for one in made:
        if not wanted(one.subject):
            continue
        flows = sum(key.subject == one.subject for key in found.seen)
        bodies.append((form(one), (
            f"{one.namespace}/{one.subject.workload.owner}: {len(one.ingress)} rules in, {len(one.egress)} out, from {flows} flows, all of which "
            f"pass the whole set. {completeness(rule.evidence for rule in one.rules).sentence()}."
        )))  # fmt: skip
    _tell(check, given)
    for (namespace, owner), others in caught(found, directory).items():
        if given.namespace in (None, namespace):
            print(
                f"hauberk discover: the policy of {namespace}/{owner} selects pods of {', '.join(others)} too, of which nothing was seen: they "
                "would be cut off; give them other labels, or wait until they were seen",
                file=sys.stderr,
            )
    if given.explain:
        _explain([one for one in made if wanted(one.subject)], given, pods)
    return bodies, [(of.label, item) for of, item in apart if given.namespace in (None, of.namespace)]


def _explain(made: list[ConnectPolicy], given: argparse.Namespace, pods: EvidencePods) -> None:
    """Each rule with its evidence."""
    rules = [
        (one, way, rule) for one in made for way, some in (("ingress", one.ingress), ("egress", one.egress)) for rule in some
    ]  # fmt: skip
    if given.format == "json":
        print(as_json([
            {
                "policy": one.name, "direction": way, "peer": str(rule.peer), "ports": [_port(port) for port in rule.ports],
                "count": rule.evidence.count, "first": rule.evidence.first, "last": rule.evidence.last,
                "pods": pods.of(rule.evidence.instances), "instances": sorted(rule.evidence.instances), "sources": sorted(rule.evidence.sources),
            }
            for one, way, rule in rules
        ]))  # fmt: skip
        return
    rows = [
        (one.name, way, str(rule.peer), ", ".join(map(_port, rule.ports)), rule.evidence.count, when(rule.evidence.first),
         when(rule.evidence.last), len(who := pods.of(rule.evidence.instances)), cell(who), ", ".join(sorted(rule.evidence.sources)))
        for one, way, rule in rules
    ]  # fmt: skip
    print(
        table(("POLICY", "WAY", "PEER", "PORTS", "COUNT", "FIRST SEEN", "LAST SEEN", "PODS", "WHICH", "SOURCES"), rows)
    )


def _port(port: PortRange) -> str:
    number = str(port.first) if port.first == port.last else f"{port.first}-{port.last}"
    return f"{port.protocol} {port.name or number}"


def when(unix_ns: int) -> str:
    """A time as people write it, in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_ns // 1_000_000_000))


def verify(given: argparse.Namespace, read: Callable[..., Iterator[Sighting]]) -> int:
    """The policies of `--verify FILE`, or those that would be learnt, against every flow. Exit 1 when one is denied."""
    from policy.learn.network.evaluate import connectivity
    from policy.learn.network.forms import FORMS
    from policy.learn.network.intermediate import policies

    # Strictly first: a file that is none must not pass for an answer where nothing was seen.
    written = None if given.verify is True else _documents(given.verify)
    directory = _directory(given)
    found, _ = _flows(given, read, directory)
    if not found.seen:
        print(f"hauberk discover: no connections in the last {given.since} for this selection", file=sys.stderr)
        return 1
    _expect_facts(directory)
    documents = [FORMS[given.policy](one) for one in policies(found, directory)] if written is None else written
    check = connectivity(found, directory, documents)
    if given.format == "json":
        print(as_json({**msgspec.to_builtins(check), "policies": len(documents), "over_permission": check.over}))
        return 1 if check.refused else 0
    print(
        f"{len(documents)} policies, {check.flows} flows that were seen: {check.flows - len(check.refused)} pass, {len(check.refused)} are denied."
    )
    if check.refused:
        print(table(("DENIED FLOW", "BY"), [(one.flow, ", ".join(one.by)) for one in check.refused]))
    print(
        f"Of {check.pairs} combinations of workload, workload and port, {check.allowed} are open, {check.needed} of them were seen in use: "
        f"over-permission {check.over:.1%}."
    )
    if check.uncovered:
        print(
            f"No policy selects {len(check.uncovered)} kinds of pods, which stay open: {'; '.join(check.uncovered[:10])}"
        )
    _tell(check, given)
    return 1 if check.refused else 0


def _documents(path: str) -> list[dict[str, Any]]:
    import yaml

    try:
        text = inputs.read(path, "a readable file of policies", inputs.POLICIES).decode("utf-8-sig")
        found = [one for one in yaml.safe_load_all(text) if one is not None]
    except UnicodeDecodeError as error:
        raise SettingsError(f"expected a file of policies at `{path}`, got {not_utf8(error)}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"expected YAML in `{path}`, got: {' '.join(str(error).split())}") from error
    if not found or not all(isinstance(one, dict) for one in found):
        raise SettingsError(f"expected network policies in `{path}`, found none")
    return [each for one in found for each in _listed(one, path)]


def _listed(one: dict[str, Any], path: str) -> list[dict[str, Any]]:
    """What `kubectl get -o yaml` gives is a list of them in one document."""
    kind = one.get("kind")
    if not isinstance(kind, str) or not kind.endswith("List") or "items" not in one:
        return [one]
    items = one["items"] or []
    if not isinstance(items, list) or not all(isinstance(each, dict) for each in items):
        raise SettingsError(f"expected network policies in the list of `{path}`, got something else")
    of = {} if kind == "List" else {"kind": kind.removesuffix("List"), "apiVersion": one.get("apiVersion")}
    return [of | each for each in items]


def _flows(
    given: argparse.Namespace, read: Callable[..., Iterator[Sighting]], directory: Directory
) -> tuple[Flows, list[tuple[LearntWorkload, ReviewItem]]]:
    """Of all namespaces: who is spoken to from elsewhere needs a rule for it. What programs that are set apart did is no flow."""
    from policy.learn.network.flows import flows
    from policy.learn.network.late import known_programs, set_apart

    accepted = tuple(filter(None, given.accept.split(",")))
    kept, strange, met = known_programs(read(everywhere=True), accepted)
    found = flows(kept, directory)
    late, met_late = set_apart(found, accepted, int(given.quiet_hours * 3600e9))
    apart = strange + late
    expect_accepted(accepted, met | met_late, (item for _, item in apart))
    return found, apart


def _wanted(given: argparse.Namespace) -> Callable[[Subject], bool]:
    from hauberk.client import labels

    asked = labels(given.selector).items()

    def wanted(subject: Subject) -> bool:
        return given.namespace in (None, subject.workload.namespace) and asked <= dict(subject.labels).items()

    return wanted


def _directory(given: argparse.Namespace) -> Directory:
    from policy.learn.network.directory import Directory
    from schemas.cluster import decode
    from schemas.topics import CLUSTER

    async def facts(bus: Bus) -> list[bytes]:
        return [record.value for record in (await bus.latest(CLUSTER)).values() if record.value is not None]

    return Directory(readable(with_bus(given, facts), decode, "facts of the cluster"))


def _expect_facts(directory: Directory) -> None:
    """SettingsError where nothing is known of the cluster: services are translated before policies are asked."""
    if not (directory.pods or directory.services or directory.nodes):
        raise SettingsError(
            "expected facts of the cluster on the bus, there are none, so that services and pods would be taken for addresses outside; run "
            "`hauberk cluster` where it reaches the API server"
        )


def _firewalls(read: Callable[..., Iterator[Sighting]], *, mode: str) -> Bodies:
    from policy.learn.completeness import completeness
    from policy.learn.network.firewall import firewalls
    from schemas.policy import ANNOTATION_MODE

    bodies: Bodies = []
    for one in firewalls(read(everywhere=True, network=True)):
        if mode != "enforce":
            one.body["metadata"]["annotations"] = {ANNOTATION_MODE: mode}
        said = completeness([one.evidence]).sentence()
        bodies.append((one.body, f"{one.node}: from {one.sightings:,} behaviours, of which it denies none. {said}."))
    return bodies


def _tell(check: Connectivity, given: argparse.Namespace) -> None:
    for why, count in sorted(check.unsure.items()):
        print(f"hauberk discover: {count} connection{'s' * (count != 1)} not learnt: {why}", file=sys.stderr)
    if check.left and given.explain:
        for why, count in sorted(check.left.items()):
            print(f"hauberk discover: {count} left out, no policy is about it: {why}", file=sys.stderr)
