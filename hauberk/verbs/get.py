# SPDX-License-Identifier: Apache-2.0
"""`hauberk get policies|workloads|alerts|nodes`: what is on the bus, as kubectl would list it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from hauberk.client import Unreadable, add_output, add_scope, labels, readable, with_bus
from hauberk.client import parser as verb_parser
from hauberk.output import age, plain, show
from hauberk.policy_names import KINDS, named

if TYPE_CHECKING:
    from bus.contract import Bus, Record
    from bus.standing import Newest
    from hauberk.nodes import RefusedRule
    from hauberk.rule_hits import HitCount, PolicyHits
    from schemas.alert import Alert
    from schemas.enforcement import InForce

_EACH_SECONDS = 0.5
"""Between two looks of `--watch`."""
PLURAL = {"policy": "policies", "workload": "workloads", "alert": "alerts", "node": "nodes"}
"""What kubectl takes too: `get policy NAME`."""


class Listing(NamedTuple):
    """One answer before it is printed: values for json, rows (narrow columns first) for tables, names for `-o name`."""

    columns: tuple[str, ...]
    wide: tuple[str, ...]
    values: list[Any]
    rows: list[tuple[object, ...]]
    names: list[str]


def parser() -> argparse.ArgumentParser:
    """What, which, and how it is shown."""
    made = verb_parser("get", "List policies, workloads, alerts or nodes.")
    made.epilog = (
        "nodes: SINCE is the time since its plan was put in force, HEARD the time since it was last heard of (every 30 s while "
        "its agent runs). `hauberk describe node NAME` shows each refused rule with the reason."
    )
    made.add_argument(
        "what", type=lambda word: PLURAL.get(word, word), choices=(*PLURAL.values(), *KINDS.values()),
        help="what is listed; the singular does as well",
    )  # fmt: skip
    made.add_argument("names", nargs="*", default=[], metavar="NAME", help="only these")
    add_scope(made)
    add_output(made)
    made.add_argument("-w", "--watch", action="store_true", help="list again whenever it changes; Ctrl-C ends it")
    made.add_argument("--limit", type=_limit, default=100, metavar="N", help="alerts: the newest N (default 100)")
    return made


def _limit(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got `{text}`")
    return int(text)


async def policies(bus: Bus, given: argparse.Namespace) -> Listing:
    """Policies with their actions, selectors and, from the nodes' receipts, whether they are in force."""
    from bus.standing import StandingCount
    from schemas.topics import ALERTS, POLICIES

    known = await bus.latest(POLICIES)
    async with StandingCount(bus, ALERTS, lambda: _hit_count(known)) as told:
        return await _policies(bus, given, told.counted.found)


async def _policies(bus: Newest, given: argparse.Namespace, hits: Mapping[str, PolicyHits]) -> Listing:
    from hauberk.nodes import unheld
    from hauberk.rule_hits import PolicyHits
    from schemas.topics import POLICIES

    refused: dict[str, list[RefusedRule]] = {}
    partial: dict[str, list[RefusedRule]] = {}
    for known, found in ((refused, await unheld(bus)), (partial, await unheld(bus, partial=True))):
        for one in found:
            known.setdefault(one.policy, []).append(one)
    values: list[Any] = []
    rows: list[tuple[object, ...]] = []
    names: list[str] = []
    records = sorted((await bus.latest(POLICIES)).items())
    keys = [key.decode("utf-8", "surrogateescape") for key, _ in records]
    wanted = {key for name in given.names for key in named(keys, name)}
    for (kind, namespace, name), document, record in readable([record for _, record in records], _policy, "policies"):
        short = KINDS.get(kind, kind)
        if given.what not in ("policies", short) or (given.namespace and namespace != given.namespace):
            continue
        key = f"{kind}/{namespace}/{name}"
        if given.names and key not in wanted:
            continue
        spec = document.get("spec", {})
        annotations = document.get("metadata", {}).get("annotations") or {}
        mode = annotations.get("hauberk.io/mode") or annotations.get("kubearmor-policy") or "enabled"
        mode += ", unconfirmed" if "hauberk.io/unconfirmed-since" in annotations else ""
        mode += ", forced" if annotations.get("hauberk.io/force") == "enabled" else ""
        selector = spec.get("selector") or spec.get("nodeSelector") or {}
        chosen = ",".join(f"{k}={v}" for k, v in (selector.get("matchLabels") or {}).items()) or "*"
        told = hits.get(key) or PolicyHits(rules=[])
        mine = refused.get(key, [])
        status = {
            "rulesNotEnforced": len(mine),
            "notEnforced": list(map(_why, mine)),
            "enforcedInPart": list(map(_why, partial.get(key, []))),
        }
        values.append(document | {"status": plain(told) | status})
        each = " ".join(
            f"{row.rule.removeprefix('spec.')}={row.hits or row.shadow}" for row in told.rules if row.hits or row.shadow
        )
        rows.append((namespace or "-", short, name, spec.get("action", "Block"), mode, told.hits, told.shadow, told.drift,
                     age(time.time() - record.timestamp_ms / 1000), chosen, len(mine), told.suppressed, each or "-",
                     f"{mine[0].rule}: {mine[0].reason}" if mine else "-"))  # fmt: skip
        names.append(f"{short}/{name}")
    return Listing(
        ("NAMESPACE", "KIND", "NAME", "ACTION", "MODE", "HITS", "SHADOW HITS", "DRIFT", "AGE"),
        ("SELECTOR", "NOT ENFORCED", "THROTTLED", "HITS OF RULES", "WHY NOT"),
        values,
        rows,
        names,
    )


def _policy(record: Record) -> tuple[list[str], dict[str, Any], Record]:
    """The parts of a policy record's key, and the document. PolicyError when either is not what it should be."""
    import msgspec

    from policy.documents import from_json
    from schemas.errors import PolicyError

    names = record.key.decode("utf-8", "replace").split("/", 2)
    if len(names) != 3:
        raise PolicyError(
            f"expected a key kind/namespace/name, got `{'/'.join(names)}`; publish it with `hauberk apply`"
        )
    from_json(record.value or b"", "/".join(names))
    return names, msgspec.json.decode(record.value or b"{}"), record


def _values(records: Mapping[bytes, Record]) -> list[bytes]:
    return [record.value for record in records.values() if record.value]


def _hit_count(records: Mapping[bytes, Record]) -> HitCount:
    """Hits of each rule of each policy, by the policy's key, to be counted; a policy that cannot be read has none."""
    from hauberk.rule_hits import HitCount
    from policy.documents import from_json
    from policy.rules.normalise import normalise
    from schemas.errors import PolicyError

    known = []
    for record in records.values():
        try:
            known.append(normalise(from_json(record.value or b"")))
        except PolicyError:
            continue
    return HitCount(known)


class NewestAlerts:
    """The newest `given.limit` of the alerts that are `asked` for. In order of time: that of reading is no order where a topic has
    several partitions."""

    def __init__(self, given: argparse.Namespace, asked: Callable[[Alert], bool] = lambda alert: True) -> None:
        self._given = given
        self._asked = asked
        self._wanted = labels(given.selector)
        self._newest: list[tuple[int, str, int, Alert]] = []
        self._bad = Unreadable("alerts")
        self._many = count()

    def count(self, value: bytes) -> None:
        """One alert as it lies on the bus."""
        from heapq import heappush, heappushpop

        from schemas.alert import decode_alert

        given = self._given
        alert = self._bad.read(decode_alert, value)
        if alert is None or not self._asked(alert):
            return
        if (given.namespace and alert.NamespaceName != given.namespace) or (
            given.names and alert.PolicyName not in given.names
        ):
            return
        if self._wanted:
            own = labels(alert.Labels)
            if any(own.get(key) != text for key, text in self._wanted.items()):
                return
        put = heappush if len(self._newest) < given.limit else heappushpop
        put(self._newest, (alert.Timestamp, alert.UpdatedTime, next(self._many), alert))

    def listing(self) -> Listing:
        """Those counted so far; says on standard error how many could not be read."""
        self._bad.tell()
        found = [alert for *_, alert in sorted(self._newest)]
        rows: list[tuple[object, ...]] = [
            (alert.UpdatedTime[11:19], alert.NamespaceName or "-", alert.ContainerName or alert.HostName, alert.PolicyName, alert.Action,
             alert.Operation, alert.Resource, alert.Result, alert.Enforcer, alert.ProcessName, alert.Severity, alert.EventID)
            for alert in found
        ]  # fmt: skip
        return Listing(("TIME", "NAMESPACE", "WORKLOAD", "POLICY", "ACTION", "OPERATION", "RESOURCE"),
                       ("RESULT", "ENFORCER", "PROCESS", "SEVERITY", "EVENT ID"), list(found), rows, [f"alert/{alert.EventID}" for alert in found])  # fmt: skip


async def alerts(bus: Bus, given: argparse.Namespace, asked: Callable[[Alert], bool] = lambda alert: True) -> Listing:
    """The newest alerts on the bus, of those that are `asked` for."""
    from bus.standing import StandingCount
    from schemas.topics import ALERTS

    async with StandingCount(bus, ALERTS, lambda: NewestAlerts(given, asked)) as told:
        return told.counted.listing()


async def workloads(bus: Newest, given: argparse.Namespace) -> Listing:
    """Containers (and host cgroups with `-o wide`) of the inventory, with what the cluster says of their pods."""
    from policy.cluster_facts import ClusterFacts
    from schemas.identity import Kind, decode
    from schemas.topics import CLUSTER, INVENTORY

    wanted = labels(given.selector)
    values: list[Any] = []
    rows: list[tuple[object, ...]] = []
    names: list[str] = []
    facts = ClusterFacts()
    readable(
        (await bus.latest(CLUSTER)).items(), lambda fact: facts.fact(fact[0], fact[1].value), "facts of the cluster"
    )
    told = readable(_values(await bus.latest(INVENTORY)), decode, "identities")
    found = [joined for one in told if (joined := facts.identity(one.key, one)) is not None]
    for one in sorted(found, key=lambda one: (one.kind, one.namespace, one.pod, one.container_name)):
        if one.kind is not Kind.CONTAINER and given.output == "table":
            continue
        if (given.namespace and one.namespace != given.namespace) or any(
            one.labels.get(k) != v for k, v in wanted.items()
        ):
            continue
        name = one.container_name or one.cgroup_path or one.uid
        if given.names and name not in given.names and one.pod not in given.names:
            continue
        state = "ended" if one.ended else "running" if one.complete else "starting"
        values.append(one)
        rows.append((one.namespace or "-", one.pod or "-", name, state, one.image or "-", one.node,
                     age(time.time() - one.started) if one.started else "-", one.kind.value, one.runtime or "-", one.uid[:12],
                     ",".join(map(str, one.cgroups)), ",".join(f"{k}={v}" for k, v in one.labels.items())))  # fmt: skip
        names.append(f"workload/{name}")
    return Listing(("NAMESPACE", "POD", "CONTAINER", "STATE", "IMAGE", "NODE", "AGE"), ("KIND", "RUNTIME", "ID", "CGROUPS", "LABELS"),
                   values, rows, names)  # fmt: skip


async def nodes(bus: Newest, given: argparse.Namespace) -> Listing:
    """Nodes by their receipts: what they enforce and with what, and when each was last heard of."""
    from hauberk.nodes import last_heard
    from schemas.backends import backend_name
    from schemas.enforcement import decode_receipt
    from schemas.identity import Kind, decode
    from schemas.topics import ENFORCEMENT_STATUS, INVENTORY

    identities = readable(_values(await bus.latest(INVENTORY)), decode, "identities")
    found = readable(_values(await bus.latest(ENFORCEMENT_STATUS)), decode_receipt, "receipts")
    known = {identity.node for identity in identities if identity.kind is Kind.NODE}
    receipts = {receipt.node: receipt for receipt in found}
    heard = await last_heard(bus)
    values: list[Any] = []
    rows: list[tuple[object, ...]] = []
    for name in sorted(known | set(receipts)):
        if given.names and name not in given.names:
            continue
        receipt = receipts.get(name)
        values.append({"node": name, "heard": _moment(heard[name]), "receipt": plain(receipt)})
        ago = age(time.time() - heard[name])
        if receipt is None:
            rows.append((name, "-", "none (audit only)", 0, 0, 0, "-", ago, "-", "-", "-", "-"))
        else:
            backends = ",".join(map(backend_name, receipt.backends)) or "none (audit only)"
            first = next((f"{one.ref.policy} {one.ref.position}: {one.reason}" for one in receipt.refused), "-")
            rows.append((name, receipt.generation, backends, receipt.scopes, receipt.rules, len(receipt.refused),
                         age(time.time() - receipt.applied_ns / 1e9), ago, f"{receipt.took_ms:.1f} ms",
                         "; ".join(receipt.failed) or "-", "; ".join(map(_in_force, receipt.in_force)) or "-", first))  # fmt: skip
    return Listing(("NODE", "GENERATION", "BACKENDS", "SCOPES", "RULES", "REFUSED", "SINCE", "HEARD"),
                   ("TOOK", "FAILED", "BY BACKEND", "FIRST REFUSED"), values, rows, [f"node/{row[0]}" for row in rows])  # fmt: skip


def _in_force(one: InForce) -> str:
    from schemas.backends import backend_name

    what = f"not usable, {one.problem}" if one.problem else f"{one.rules} rules in {one.scopes} scopes"
    return f"{backend_name(one.backend)}: {what}"


def _why(one: RefusedRule) -> dict[str, str]:
    return {"node": one.node, "rule": one.rule, "backend": one.backend, "code": one.code, "reason": one.reason}


def _moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


async def _once(bus: Bus, given: argparse.Namespace) -> Listing:
    match given.what:
        case "workloads":
            return await workloads(bus, given)
        case "alerts":
            return await alerts(bus, given)
        case "nodes":
            return await nodes(bus, given)
        case _:
            return await policies(bus, given)


async def _again_and_again(bus: Bus, given: argparse.Namespace, say: Callable[[Listing], None]) -> NoReturn:
    """What `_once` finds, now and each half second, of readers that stay: each record is read once."""
    from bus.standing import StandingCount, StandingTables
    from schemas.topics import ALERTS, CLUSTER, ENFORCEMENT_STATUS, INVENTORY, POLICIES

    match given.what:
        case "alerts":
            async with StandingCount(bus, ALERTS, lambda: NewestAlerts(given)) as newest:
                while True:
                    say(newest.counted.listing())
                    await newest.follow(_EACH_SECONDS)
        case "workloads":
            async with StandingTables(bus, (CLUSTER, INVENTORY)) as tables:
                while True:
                    say(await workloads(tables, given))
                    await tables.follow(_EACH_SECONDS)
        case "nodes":
            async with StandingTables(bus, (INVENTORY, ENFORCEMENT_STATUS)) as tables:
                while True:
                    say(await nodes(tables, given))
                    await tables.follow(_EACH_SECONDS)
        case _:
            async with StandingTables(bus, (POLICIES, ENFORCEMENT_STATUS)) as tables:
                known = dict(await tables.latest(POLICIES))
                async with StandingCount(bus, ALERTS, lambda: _hit_count(known)) as hits:
                    while True:
                        say(await _policies(tables, given, hits.counted.found))
                        await hits.follow(_EACH_SECONDS)
                        await tables.follow(0)
                        if (now := await tables.latest(POLICIES)) != known:
                            # Whose the alerts before were is another question now.
                            known = dict(now)
                            await hits.read()


def main(argv: Sequence[str]) -> int:
    """Exit 1 when something named is not there."""
    import sys

    given = parser().parse_intermixed_args(argv)  # names may stand behind options, as kubectl takes them
    before: str | None = None

    def say(found: Listing) -> None:
        nonlocal before
        text = show(found.values, found.columns, found.rows, given.output, wide=found.wide, names=found.names,
                    headings=not given.no_headers)  # fmt: skip
        if text == before:
            return
        if found.rows or given.output in ("json", "yaml"):
            print(text, flush=True)
        elif before is None:
            where = f" in namespace `{given.namespace}`" if given.namespace else ""
            print(f"No {given.what} found{where}.", file=sys.stderr)
        before = text

    async def work(bus: Bus) -> int:
        if given.watch:
            await _again_and_again(bus, given, say)
        found = await _once(bus, given)
        say(found)
        return 1 if given.names and not found.rows else 0

    return with_bus(given, work)
