# SPDX-License-Identifier: Apache-2.0
"""A told verdict and an occurrence to an alert record: KubeArmor's fields and words, CloudEvents headers.

Only rows that are told are materialised; a silenced flood is counted, not walked. Event ids are deterministic, so a replay
repeats them. Must never decide what is told (`processors.alert_action`) nor how often (`processors.throttle`).
Neighbours: `schemas.expand` (shared fields), `processors.engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from typing import Any, Final

from bus.contract import Record
from policy.tools.events import reread
from policy.tools.rejudge import unsaid
from processors import rows
from processors.alert_record import record_of
from processors.denial_reason import denial_reason
from processors.drift import DriftTold
from processors.judge import JudgedBehaviour, Tally
from processors.telemetry import PeerOf
from processors.throttle import Bucket, Throttle, ThrottleKey
from schemas.alert import FIREWALL, NOTICE, Alert, made_by
from schemas.backends import BACKENDS
from schemas.behaviour import Behaviour
from schemas.expand import NO_PROCESS, event_id, identity_fields, log_fields, process_of
from schemas.frame import FrameHeader
from schemas.identity import Identity
from schemas.identity import Kind as Stands
from schemas.operations import Access, Backend, Class, Operation, class_of
from schemas.telemetry import NOBODY, ProcessContext
from schemas.verdict import DEFAULT_POSTURE, Action, Mode, RuleRef, Verdict
from schemas.wording import event_data, firewall_data, shows_aux, updated_time

ENFORCERS: Final = {Backend.OBSERVER: "eBPF Monitor"} | {backend: about.alert for backend, about in BACKENDS.items()}
FEW: Final = 64
"""An id with more rows than this is searched for one by one, since the throttle will cut it; by feel."""

_LISTED: Final = 32
"""Rules that a closing notice lists one by one, the busiest first; by feel."""

_KEPT: Final = 1024
"""Answers of `_like` kept; then all are forgotten."""

LATER: Final = 256
"""Behaviours outside a baseline that wait for the end of a silence, as records of about 2 kB; what more there is, is counted."""

_Kind = tuple[int, int, int, int, int, str]
"""Behaviour and verdict by id(), image, descriptor, pid in its namespace, mode: where they matter."""

NETWORK_POLICY: Final = "KubeArmorNetworkPolicy"
HOST_POLICY: Final = "KubeArmorHostPolicy"


class Alerts:
    """Renders and throttles. `by_action`: alerts by `Action`, since start."""

    def __init__(self, throttle: Throttle, peer: PeerOf | None = None) -> None:
        self._throttle = throttle
        self._peer = peer
        self._kept: dict[_Kind, tuple[Alert, JudgedBehaviour, Identity, Verdict, ProcessContext]] = {}
        self.by_action: dict[str, int] = {}
        self.drift = DriftTold()
        self._later: dict[bytes, tuple[Bucket, str, Record]] = {}

    def of(self, tally: Tally) -> Iterator[Record]:
        """Alert records of one frame, in ring order, then those of folded rows."""
        due = {
            ident: entry for ident, entry in tally.entries.items() if entry.rows and not entry.verdict.needs_arguments
        }
        few = {ident for ident in due if tally.counts[ident] <= FEW}
        found: list[tuple[int, Record]] = []
        for position in rows.positions(tally, few) if few else ():
            row = rows.row(tally, position)
            found += [(position, record) for record in self.row(tally, due[row[2]], row)]
        for ident, entry in due.items():
            if ident not in few:
                found += self._flood(tally, entry, ident)
        found.sort(key=_position)
        for _, record in found:
            yield record
        for ident, entry in due.items():
            for _, count, first, _, sequence, process in tally.folded.get(ident, ()):
                context = tally.processes.get(process, NO_PROCESS)
                row = (0, 0, ident, first, sequence, process, context.pid, context.ppid, 0, 0, 0, 0)
                yield from self.row(tally, entry, row, count)

    def row(self, tally: Tally, entry: JudgedBehaviour, row: rows.Row, count: int = 1) -> Iterator[Record]:
        """Alert records of one row: of the verdict, and of shadow verdicts beside it."""
        if entry.outcome.due:
            yield from self._admit(tally, entry, entry.verdict, row, count, entry.outcome.action, "")
        for shadow in entry.shadows:
            if shadow.mode is not Mode.BASELINE:
                yield from self._admit(tally, entry, shadow, row, count, _shadow_action(shadow), "shadow")
        if any(shadow.mode is Mode.BASELINE for shadow in entry.shadows):
            yield from self._drift(tally, entry, row, count)

    def _drift(self, tally: Tally, entry: JudgedBehaviour, row: rows.Row, count: int) -> Iterator[Record]:
        """What is outside a baseline, unless that was told before. What is told is taken off the entry: its next rows cost nothing."""
        left = []
        for shadow in entry.shadows:
            if shadow.mode is Mode.BASELINE:
                key = self.drift.key(entry.identity, entry.raw, shadow)
                if key in self.drift or key in self._later:
                    continue
                action = _shadow_action(shadow)
                before = self.by_action.get(action, 0)
                yield from self._admit(tally, entry, shadow, row, count, action, str(shadow.mode))
                if self.by_action.get(action, 0) > before:
                    self.drift.add(key)
                    continue
                if len(self._later) < LATER:
                    # Nobody may ever do it again: it is told when the silence is over.
                    bucket = self._bucket(tally.header, entry, shadow, action)
                    self._throttle.put_off(bucket, count)
                    alert = self._made(tally, entry, shadow, row, count, action, str(shadow.mode))
                    self._later[key] = (bucket, action, record_of(alert, entry.identity.workload))
                    continue
            left.append(shadow)
        entry.shadows = tuple(left)
        entry.rows = entry.outcome.due or entry.verdict.needs_arguments or bool(left)

    def _flood(self, tally: Tally, entry: JudgedBehaviour, ident: int) -> Iterator[tuple[int, Record]]:
        """Rows of an id one after the other until every bucket is silent past the frame's end; the rest is counted."""
        if any(shadow.mode is Mode.BASELINE for shadow in entry.shadows):
            position = next(rows.search(tally, ident))
            for record in self._drift(tally, entry, rows.row(tally, position), 1):
                yield position, record
        left, end = tally.counts[ident], max(tally.times[-1], tally.times[0])
        verdicts = [(entry.verdict, entry.outcome.action)] if entry.outcome.due else []
        verdicts += [(shadow, _shadow_action(shadow)) for shadow in entry.shadows if shadow.mode is not Mode.BASELINE]
        if not verdicts:
            return
        buckets = [self._bucket(tally.header, entry, *verdict) for verdict in verdicts]
        resource = _resource(entry)
        for position in rows.search(tally, ident):
            if all(bucket.silent_until > end and self._throttle.knows(bucket, resource) for bucket in buckets):
                break
            left -= 1
            for record in self.row(tally, entry, rows.row(tally, position)):
                yield position, record
        for bucket in buckets:
            if left:
                self._throttle.suppress(bucket, left)

    def _admit(
        self, tally: Tally, entry: JudgedBehaviour, verdict: Verdict, row: rows.Row, count: int, action: str, mode: str
    ) -> Iterator[Record]:
        header, identity = tally.header, entry.identity
        unix = row[3] + header.clock_offset_ns
        bucket = self._bucket(header, entry, verdict, action)
        told, begins = self._throttle.admit(bucket, row[3], _resource(entry), count)
        if begins:
            yield self._threshold(bucket, unix, ENFORCERS[entry.behaviour.enforcer])
        if not told:
            return
        alert = self._made(tally, entry, verdict, row, count, action, mode)
        alert.Suppressed = self._throttle.take_suppressed(bucket)
        self.by_action[action] = self.by_action.get(action, 0) + 1
        yield record_of(alert, identity.workload)

    def _made(
        self, tally: Tally, entry: JudgedBehaviour, verdict: Verdict, row: rows.Row, count: int, action: str, mode: str
    ) -> Alert:
        header = tally.header
        unix = row[3] + header.clock_offset_ns
        _, _, _, _, sequence, process, pid, ppid, ns_pid, ns_ppid, _, aux = row
        context = process_of(entry.behaviour, tally.processes, process, sequence)
        ident = event_id(header.node, header.boot, sequence)
        alert = copy(self._like(entry, verdict, context, aux, ns_pid, header, action, mode))
        alert.Timestamp = unix // 1_000_000_000
        alert.UpdatedTime = updated_time(unix)
        alert.HostPPID, alert.HostPID, alert.PPID, alert.PID = ppid, pid, ns_ppid, ns_pid
        alert.EventID = f"{ident}:{mode}:{verdict.policy or ''}" if mode else ident
        alert.Count = count
        alert.UserName = entry.user
        if self._peer is not None and (other := self._peer(entry.identity, entry.behaviour, unix)) is not NOBODY:
            alert.RemotePeer, alert.RemoteNamespace, alert.RemoteOwner = other.name, other.namespace, other.owner
        return alert

    def _like(
        self, entry: JudgedBehaviour, verdict: Verdict, context: ProcessContext, aux: int, ns_pid: int, header: FrameHeader,
        action: str, mode: str,
    ) -> Alert:  # fmt: skip
        """An alert without what only its own event has: equal events come in rows, and most of an alert is the same for each."""
        behaviour = entry.behaviour
        own = ns_pid if behaviour.resource.startswith("/proc/") else 0
        key = (id(entry), id(verdict), context.process, aux if shows_aux(behaviour) else 0, own, mode)
        known = self._kept.get(key)
        if known is not None:
            alert, *made_of = known
            if made_of[0] is entry and made_of[1] is entry.identity and made_of[2] is verdict and made_of[3] == context:
                return alert
        alert = _alert(entry, verdict, context, aux, header, action, mode)
        alert.PID = ns_pid
        arguments = context.judged if entry.raw.operation is Operation.EXEC else None
        # What its words leave out: reading it back takes longer than writing it.
        alert.Judged = unsaid(reread(alert), entry.identity, behaviour, arguments)
        if len(self._kept) >= _KEPT:
            self._kept.clear()
        self._kept[key] = (alert, entry, entry.identity, verdict, context)
        return alert

    def _bucket(self, header: FrameHeader, entry: JudgedBehaviour, verdict: Verdict, action: str) -> Bucket:
        rule = verdict.rule.position if verdict.rule is not None else ""
        identity = entry.identity
        kind = ThrottleKey(
            header.node, header.boot, identity.uid, verdict.policy or "", rule, action, class_of(entry.raw.operation)
        )
        return self._throttle.bucket(kind, identity, header)

    def _threshold(self, bucket: Bucket, unix: int, enforcer: str) -> Record:
        """Silence begins for one kind of alert."""
        kind = bucket.kind
        ident = f"threshold:{kind.uid}:{kind.policy}:{kind.label}:{unix}"
        return self._notice(bucket, unix, ident, enforcer, 0, {kind.label: 0})

    def _notice(
        self, bucket: Bucket, unix: int, ident: str, enforcer: str, suppressed: int, rules: dict[str, int]
    ) -> Record:
        settings, identity, kind = self._throttle.settings, bucket.identity, bucket.kind
        alert = Alert(
            Timestamp=unix // 1_000_000_000,
            UpdatedTime=updated_time(unix),
            Type=NOTICE,
            Operation="AlertThreshold",
            Enforcer=enforcer,
            Result="Passed",
            PolicyName=kind.policy,
            Rule=kind.rule if len(rules) == 1 else "",
            Data=" ".join(f"{label}={count}" for label, count in rules.items()) if suppressed else next(iter(rules)),
            EventData={label: str(count) for label, count in rules.items()} if suppressed else None,
            MaxAlertsPerSec=settings.max_alerts_per_second,
            DroppingAlertsInterval=settings.silence_seconds,
            Suppressed=suppressed,
            EventID=f"{identity.node}:{kind.boot}:{ident}",
            KubeArmorVersion=made_by(),
            **identity_fields(identity),
        )
        return record_of(alert, identity.workload)

    def closing(self, now: Callable[[FrameHeader], int], everything: bool = False) -> list[Record]:
        """Notices of silences that ended while no alert came to tell what was silenced: one per container and policy, with
        the counts of each rule. `now`: boot ns on a frame's node."""
        records = self._drifted(now, everything)
        groups: dict[tuple[str, ...], list[Bucket]] = {}
        for bucket in self._throttle.over(now, everything):
            if bucket.suppressed:
                groups.setdefault(bucket.kind[:4], []).append(bucket)
        for buckets in groups.values():
            buckets.sort(key=_suppressed, reverse=True)
            rules = {bucket.kind.label: bucket.suppressed for bucket in buckets[:_LISTED]}
            if more := sum(bucket.suppressed for bucket in buckets[_LISTED:]):
                rules["other"] = more
            last = max(buckets, key=_silent_until)
            unix = last.silent_until + last.header.clock_offset_ns
            if everything:
                unix = min(unix, now(last.header) + last.header.clock_offset_ns)
            ident = f"silence-over:{last.kind.uid}:{last.kind.policy}:{last.kind.label}:{unix}"
            records.append(self._notice(last, unix, ident, "eBPF Monitor", sum(rules.values()), rules))
        return records

    def _drifted(self, now: Callable[[FrameHeader], int], everything: bool) -> list[Record]:
        """What drifted in a silence that has ended."""
        found = []
        for key, (bucket, action, record) in list(self._later.items()):
            if everything or bucket.silent_until <= now(bucket.header):
                del self._later[key]
                self.drift.add(key)
                self.by_action[action] = self.by_action.get(action, 0) + 1
                found.append(record)
        return found

    def lost(self, header: FrameHeader, identity: Identity, unix: int, counts: Iterable[tuple[str, int]]) -> Record:
        """A SystemEvent that says what was lost up to frame `header.number`: `(what, how many)`."""
        text = " ".join(f"{what}={many}" for what, many in counts)
        whose, ident = "the node lost or could not read part of its events", ""
        if identity.kind is not Stands.NODE:
            name = identity.container_name or identity.cgroup_path or identity.uid
            whose, ident = f"events of `{name}` were lost or are reported without names", f":{identity.uid}"
        alert = Alert(
            Timestamp=unix // 1_000_000_000,
            UpdatedTime=updated_time(unix),
            Type=NOTICE,
            Operation="EventsLost",
            Data=text,
            EventData=dict(part.split("=") for part in text.split(" ")),
            Result="Passed",
            Message=f"{whose} up to frame {header.number}: {text}",
            EventID=f"{header.node}:{header.boot}:{header.run}:loss:{header.number}{ident}",
            KubeArmorVersion=made_by(),
            **identity_fields(identity),
        )
        return record_of(alert, identity.workload)


def _alert(
    entry: JudgedBehaviour, verdict: Verdict, context: ProcessContext, aux: int, header: FrameHeader, action: str, mode: str
) -> Alert:  # fmt: skip
    """What an alert says of its behaviour, verdict, image and identity."""
    policy, rule = verdict.policy or "", verdict.rule
    named = bool(policy) and policy != DEFAULT_POSTURE
    fields = log_fields(entry.behaviour, context, aux, header.architecture)
    if rule is not None:
        fields |= _told_as(rule, entry.behaviour)
    return Alert(
        Timestamp=0,
        UpdatedTime="",
        Type=_type(entry.identity, verdict),
        PolicyName=policy,
        Severity=str(verdict.severity) if named and verdict.severity else "",
        Tags=",".join(verdict.tags) if named else "",
        ATags=list(verdict.tags) if named and verdict.tags else None,
        Message=_message(entry, verdict) if named or not policy else "",
        Enforcer=f"PRESET-{verdict.preset}" if verdict.preset else ENFORCERS[entry.behaviour.enforcer],
        Action=action,
        ProcessHash="",
        ParentHash="",
        ResourceHash="",
        HashAlgo="",
        Rule=rule.position if rule else "",
        Mode=mode,
        KubeArmorVersion=made_by(),
        Links=_links(entry) or None,
        **identity_fields(entry.identity),
        **fields,
    )


def _shadow_action(shadow: Verdict) -> str:
    return "Audit (Block)" if shadow.action is Action.BLOCK else str(shadow.action)


def _resource(entry: JudgedBehaviour) -> str:
    """What the throttle calls one resource: paths as they are, other things as far as they differ."""
    behaviour = entry.raw
    return behaviour.resource + behaviour.resource2 or f"{behaviour.address}:{behaviour.port}:{behaviour.syscall}"


def _suppressed(bucket: Bucket) -> int:
    return bucket.suppressed


def _silent_until(bucket: Bucket) -> int:
    return bucket.silent_until


def _message(entry: JudgedBehaviour, verdict: Verdict) -> str:
    if entry.raw.access & Access.UNTOLD:
        return "blocked on the node; its container made too many new names at once, so the details are missing"
    if verdict.policy is None and entry.outcome.due:
        return denial_reason(entry.behaviour)
    return verdict.message


def _links(entry: JudgedBehaviour) -> dict[str, str]:
    """The symlinks by which a rule can have met this behaviour: those that lead to one of its paths, or above it."""
    behaviour, links = entry.behaviour, entry.identity.links
    paths = (behaviour.resource, behaviour.resource2, behaviour.executable, behaviour.parent)
    near = [f"{path}/" for path in paths if path]
    return {name: real for name, real in links.items() if any(path.startswith(real) for path in near)} if links else {}


def _told_as(rule: RuleRef, behaviour: Behaviour) -> dict[str, Any]:
    """Fields that KubeArmor writes in another way for rules of some sections (kubearmor.md 2.10, 3.3)."""
    if rule.kind == NETWORK_POLICY:
        data = firewall_data(behaviour)
        way = "INGRESS" if behaviour.operation is Operation.ACCEPT else "EGRESS"
        return {"Operation": FIREWALL, "Resource": way, "Data": data, "EventData": event_data(data)}
    return {"Operation": Class.SYSCALL.label} if rule.position.startswith("spec.syscalls.") else {}


def _position(pair: tuple[int, Record]) -> int:
    return pair[0]


def _type(identity: Identity, verdict: Verdict) -> str:
    if verdict.rule is not None and verdict.rule.kind == NETWORK_POLICY:
        return "MatchedNetworkPolicy"
    if verdict.rule is not None and verdict.rule.kind == HOST_POLICY:
        return "MatchedHostPolicy"  # also in a container that no runtime confirms
    return "MatchedHostPolicy" if verdict.host or identity.kind is not Stands.CONTAINER else "MatchedPolicy"
