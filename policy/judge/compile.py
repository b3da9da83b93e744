# SPDX-License-Identifier: Apache-2.0
"""Rules -> the tables of a judge. Everything that can be decided before an event comes is decided here.

Order of rules never matters: tables are keyed by content, ranks come from `policy/rules/specificity.py`, and equal ranks are told apart
by the name of the policy and the place in it. A rule that can mean nothing matches nothing and is named in `problems`; if it is
an Allow rule, its table is a whitelist all the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policy.judge.judge import Judge, RuleTables
from policy.judge.paths import Entry, PathTable
from policy.judge.precedence import Candidate, Unmatched
from policy.judge.presets import PRESETS
from policy.judge.sockets import NameTable, PeerTable, WordTable
from policy.judge.sources import Actors
from policy.match import glob
from policy.rules.specificity import rank
from schemas.errors import PolicyError
from schemas.rules import Match, Ports, Rule, SourceKind
from schemas.verdict import Action, Mode

TABLES = ("process", "file", "network", "dns", "capabilities", "device", "ingress", "egress")
"""Tables with a whitelist of their own; an Allow rule in one says nothing about the others."""


def table_of(rule: Rule) -> str:
    """The table a rule is looked up in; `syscall` and `preset` have no whitelist."""
    match rule.match:
        case Match.PRESET:
            return "preset"
        case Match.DNS:
            return "dns"
        case Match.PEER:
            return rule.value
        case _:
            return rule.class_.name.lower()


def posture_of(table: str) -> str:
    """The posture a table falls back to: process uses the one of files, DNS and peers the one of the network."""
    return {"process": "file", "dns": "network", "ingress": "network", "egress": "network"}.get(table, table)


def judged(rule: Rule) -> bool:
    """Whether the judge can decide the rule at all: quotas and interfaces are not part of a behaviour."""
    return rule.peer is None or not (rule.peer.limit or rule.peer.interfaces)


def whitelists(rules: Iterable[Rule]) -> frozenset[str]:
    """Tables in which these rules turn everything else over to the default posture."""
    found = {table_of(rule) for rule in rules if rule.action is Action.ALLOW and judged(rule)}
    return frozenset(found.intersection(TABLES))


def problem(rule: Rule) -> str | None:
    """Why a rule can never match; None when it can."""
    if rule.void:
        return rule.void
    try:
        if rule.match is Match.PATTERN:
            glob.parse(rule.value)
        for source in rule.sources:
            if source.kind is SourceKind.PATTERN:
                glob.parse(source.value)
    except PolicyError as error:
        return str(error)
    return None


def compile_judge(
    rules: Iterable[tuple[Rule, Mode]],
    postures: Mapping[str, str],
    *,
    host: bool = False,
) -> Judge:
    """A judge of `rules`, each told in its mode. `postures`: file, network, capabilities, device -> audit, block, allow."""
    meant = [(rule, mode) for rule, mode in rules if judged(rule)]
    usable = [(rule, mode) for rule, mode in meant if problem(rule) is None]
    actors = Actors([source for rule, _ in usable for source in rule.sources])
    tables = RuleTables(actors)
    entries: dict[str, list[Entry]] = {}
    peers: dict[str, list[tuple[str, Ports, Candidate]]] = {}
    for rule, mode in usable:
        name = table_of(rule)
        if rule.match is Match.PEER:
            peers.setdefault(name, []).extend(_peers(rule, mode))
        else:
            for source in rule.sources or (None,):
                entries.setdefault(name, []).append((Candidate(rule, rank(rule, source), mode), source))
    tables.process = PathTable(entries.get("process", []), actors)
    tables.file = PathTable(entries.get("file", []), actors)
    tables.protocols = WordTable([(entry[0].rule.value, entry) for entry in entries.get("network", [])], actors)
    tables.names = NameTable(entries.get("dns", []), actors)
    tables.capabilities = WordTable([(entry[0].rule.value, entry) for entry in entries.get("capabilities", [])], actors)
    tables.devices = [candidate for candidate, _ in entries.get("device", [])]
    tables.presets = [(PRESETS[candidate.rule.value], candidate) for candidate, _ in entries.get("preset", [])]
    _syscalls(tables, entries.get("syscall", []))
    tables.unmatched = _unmatched(meant, postures, host)
    if "ingress" in peers or "ingress" in tables.unmatched:
        tables.ingress = PeerTable(peers.get("ingress", []))
    if "egress" in peers or "egress" in tables.unmatched:
        tables.egress = PeerTable(peers.get("egress", []))
    return Judge(tables)


def _syscalls(tables: RuleTables, entries: list[Entry]) -> None:
    named = [entry for entry in entries if entry[0].rule.match is Match.SYSCALL]
    if named:
        words = [(word, entry) for entry in named for word in entry[0].rule.syscalls]
        tables.syscalls = WordTable(words, tables.actors)
    paths = [entry for entry in entries if entry[0].rule.match is not Match.SYSCALL]
    if paths:
        tables.syscall_paths = PathTable(paths, tables.actors)


def _unmatched(rules: list[tuple[Rule, Mode]], postures: Mapping[str, str], host: bool) -> dict[str, Unmatched]:
    found = {}
    # The mildest mode last: a table that an enforced rule turned into a whitelist is told as enforced.
    for wanted in (Mode.SHADOW, Mode.AUDITED, Mode.ENFORCE):
        for table in whitelists(rule for rule, mode in rules if mode is wanted):
            found[table] = Unmatched(True, postures.get(posture_of(table), "audit"), wanted, host)
    return found


def _peers(rule: Rule, mode: Mode) -> list[tuple[str, Ports, Candidate]]:
    peer = rule.peer
    assert peer is not None
    found = []
    # Entries that rank alike share one: a rule may have a thousand networks times sixty ranges of ports.
    candidates: dict[tuple[int, int], Candidate] = {}
    for network in peer.networks or ("",):
        prefix = int(network.partition("/")[2] or (128 if ":" in network else 32)) if network else -1
        for ports in peer.ports or (Ports(),):
            width = 0 if not ports.first else 2 if ports.first == ports.last else 1
            candidate = candidates.get((prefix, width))
            if candidate is None:
                candidate = candidates[prefix, width] = Candidate(rule, rank(rule, prefix=prefix, ports=width), mode)
            found.append((network, ports, candidate))
    return found
