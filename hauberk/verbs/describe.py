# SPDX-License-Identifier: Apache-2.0
"""`hauberk describe policy|workload|node|alert|pod|service|namespace NAME`: one thing in full, as YAML with its latest alerts."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from hauberk.client import parser as verb_parser
from hauberk.client import with_bus
from hauberk.output import as_yaml, printable, table
from hauberk.policy_names import SHORT, parted

if TYPE_CHECKING:
    from bus.contract import Bus
    from hauberk.cluster_view import ClusterView

WHAT = {"policy": "policies", "workload": "workloads", "node": "nodes", "alert": "alerts"} | {
    kind: kind for kind in SHORT
}
CLUSTER = ("pod", "service", "namespace")
"""What the cluster alone knows of."""
_LATEST: Final = 10
"""Alerts of a policy or a workload that are shown."""
_SAME: Final = 100
"""Alerts of one id that are shown: repeats of a publication that was tried again, and those of several policies."""
_OF_NAMESPACE = ("POLICY", "PODS", "MODE")
_SELECTED = ("POLICY", "CONTAINERS", "MODE", "NODE", "STATE", "WHY")
_COLUMNS = ("NODE", "POLICY", "RULE", "BACKEND", "CODE", "REASON")
SINGULAR = {plural: singular for singular, plural in WHAT.items()} | {f"{one}s": one for one in CLUSTER}


def parser() -> argparse.ArgumentParser:
    """What and which."""
    made = verb_parser(
        "describe", "Show one policy, workload, node or alert, or a pod, service or namespace of the cluster, in full."
    )
    made.add_argument(
        "what",
        type=lambda word: SINGULAR.get(word, word),
        choices=(*WHAT, *CLUSTER),
        help="what; the plural does as well",
    )
    made.add_argument("name", metavar="NAME", help="its name; of an alert its EventID")
    made.add_argument("-n", "--namespace", help="only in this namespace")
    return made


def main(argv: Sequence[str]) -> int:
    """Exit 1 when there is no such thing."""
    made = parser()
    given = made.parse_args(argv)
    if given.what in ("policy", *SHORT):
        kind, namespace, given.name = parted(given.name)
        if (kind and given.what not in ("policy", kind)) or (namespace and given.namespace not in (None, namespace)):
            made.error("expected one kind and one namespace, the name has another")
        given.what, given.namespace = kind or given.what, namespace or given.namespace

    async def work(bus: Bus) -> int:
        from hauberk.verbs import get
        from schemas.identity import Identity

        if given.what in CLUSTER:
            return await _of_cluster(bus, given)
        asked = argparse.Namespace(
            what=WHAT[given.what], names=[given.name], namespace=given.namespace, selector="", output="wide"
        )
        if given.what == "alert":
            asked.names, asked.limit = [], _SAME
            values = (await get.alerts(bus, asked, lambda alert: alert.EventID == given.name)).values
        else:
            values = (await get._once(bus, asked)).values
        if not values:
            print(
                f"hauberk describe: expected {given.what} `{given.name}`, there is none; `hauberk get {asked.what}` lists them",
                file=sys.stderr,
            )
            return 1
        hits = [value.get("status", {}).pop("rules", []) if isinstance(value, dict) else [] for value in values]
        refused = await _refused(bus, given.what, values)
        partial = await _partial(bus, given.what, given.name)
        print("\n---\n".join(as_yaml(value) for value in values))
        _not_understood(
            one
            for value in values
            if isinstance(value, Identity)
            for one in (value.annotations, value.namespace_annotations)
        )
        for rules in hits:
            if rules:
                rows = [
                    (row["rule"], row["match"], row["action"], row["hits"], row["shadow"], row["last"] or "-")
                    for row in rules
                ]
                print("\nRules:\n" + table(("RULE", "MATCH", "ACTION", "HITS", "SHADOW HITS", "LAST"), rows))
        if refused:
            print("\nNot enforced:\n" + table(_COLUMNS, refused))
        if partial:
            print("\nEnforced in part:\n" + table(_COLUMNS, partial))
        of_policy = given.what in ("policy", *SHORT)
        if given.what == "node":
            await _node_of_cluster(bus, given)
        if of_policy or given.what == "workload":
            asked = argparse.Namespace(
                what="alerts", names=[], namespace=None, selector="", output="table", limit=_LATEST
            )
            alerts = await get.alerts(
                bus,
                asked,
                lambda alert: (alert.PolicyName if of_policy else alert.ContainerName or alert.HostName) == given.name,
            )
            if alerts.rows:
                print(
                    "\nLatest alerts:\n"
                    + table(alerts.columns, [row[: len(alerts.columns)] for row in alerts.rows], whole=False)
                )
        return 0

    return with_bus(given, work)


async def _partial(bus: Bus, what: str, name: str) -> list[tuple[str, ...]]:
    """A row for each rule of this node or policy that is enforced and of which a part is not."""
    from hauberk.nodes import unheld

    found = await unheld(bus, partial=True)
    if what == "node":
        found = [one for one in found if one.node == name]
    elif what in ("policy", *SHORT):
        found = [one for one in found if one.ref.policy == name]
    else:
        return []
    return [(one.node, one.ref.policy, one.rule, one.backend, one.code, one.reason) for one in found]


async def _refused(bus: Bus, what: str, values: list[Any]) -> list[tuple[str, ...]]:
    """A row for each rule that a node refuses, of the policies or the nodes in `values`; taken out of them."""
    from hauberk.nodes import unheld

    if what in ("policy", *SHORT):
        for value in values:
            del value["status"]["enforcedInPart"]
        return [
            (one["node"], value["metadata"]["name"], one["rule"], one["backend"], one["code"], one["reason"])
            for value in values
            for one in value["status"].pop("notEnforced")
        ]
    if what != "node":
        return []
    names = {value["node"] for value in values}
    for value in values:
        if value["receipt"]:
            value["receipt"]["refused"] = len(value["receipt"]["refused"])
            value["receipt"]["partial"] = len(value["receipt"]["partial"])
    return [
        (one.node, one.ref.policy, one.rule, one.backend, one.code, one.reason)
        for one in await unheld(bus)
        if one.node in names
    ]


def _not_understood(annotations: Iterable[Mapping[str, str]]) -> None:
    """A line for each annotation whose value is no word that it takes."""
    from schemas.workload_annotations import misread

    said = dict.fromkeys(sentence for some in annotations for sentence in misread(some))
    if said:
        print("\nAnnotations that are not understood, and change nothing:\n" + "\n".join(map(printable, said)))


async def _of_cluster(bus: Bus, given: argparse.Namespace) -> int:
    from hauberk.cluster_view import gather
    from hauberk.policies import postures

    view = await gather(bus, postures(given))
    shown = {"pod": _pods, "service": _services, "namespace": _namespace}[given.what](view, given)
    if not shown:
        print(
            f"hauberk describe: expected {given.what} `{given.name}`, the cluster has told of none; `kubectl get {given.what}s -A` lists "
            "them, and `hauberk cluster` tells of them while it runs",
            file=sys.stderr,
        )  # fmt: skip
    return 0 if shown else 1


def _services(view: ClusterView, given: argparse.Namespace) -> bool:
    values = [view.service(one) for one in view.services(given.name, given.namespace)]
    print("\n---\n".join(as_yaml(one) for one in values), end="\n" if values else "")
    return bool(values)


def _pods(view: ClusterView, given: argparse.Namespace) -> bool:
    pods = view.pods(given.name, given.namespace)
    for number, pod in enumerate(pods):
        print(("---\n" if number else "") + as_yaml(view.pod(pod)))
        _not_understood((pod.annotations, view.namespace_annotations(pod.namespace)))
        containers = view.containers(pod)
        if selected := view.policies(containers):
            print("\nPolicies:\n" + table(_SELECTED, selected, whole=True))
        elif not containers and not pod.ended:
            print(f"\nno container of it is known: is `hauberk node` running on {pod.node or 'its node'}?")
    return bool(pods)


def _namespace(view: ClusterView, given: argparse.Namespace) -> bool:
    told = view.namespace(given.name)
    if told is None:
        return False
    print(as_yaml(told))
    _not_understood([told["annotations"]])
    if rows := view.misread_pods(given.name):
        print(
            "\nAnnotations of its pods that are not understood, and change nothing:\n"
            + table(("POD", "WHAT"), rows, whole=True)
        )
    if selected := view.policies_of_namespace(given.name):
        print("\nPolicies:\n" + table(_OF_NAMESPACE, selected, whole=True))
    return True


async def _node_of_cluster(bus: Bus, given: argparse.Namespace) -> None:
    """What the cluster says of a node, and the policies for the node itself."""
    from hauberk.cluster_view import gather
    from hauberk.policies import postures

    view = await gather(bus, postures(given))
    if (told := view.node(given.name)) is not None:
        print("\nOf the cluster:\n" + as_yaml(told))
        _not_understood([told["annotations"]])
    if selected := view.policies(view.of_node(given.name)):
        print("\nPolicies:\n" + table(_SELECTED, selected, whole=True))
