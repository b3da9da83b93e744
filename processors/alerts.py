# SPDX-License-Identifier: Apache-2.0
"""A told verdict and an occurrence to an alert record: KubeArmor's fields and words, CloudEvents headers.

Only rows that are told are materialised; a silenced flood is counted, not walked. Event ids are deterministic, so a replay
repeats them. Must never decide what is told (`processors.outcome`) nor how often (`processors.throttle`).
Neighbours: `schemas.expand` (shared fields), `processors.engine`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Final

from bus.contract import Headers, Record
from processors import rows
from processors.judge import Entry, Tally
from processors.throttle import Throttle
from schemas.alert import Alert, encode_alert
from schemas.expand import NO_PROCESS, event_id, identity_fields, log_fields, process_of
from schemas.frame import FrameHeader
from schemas.identity import Identity, Kind
from schemas.operations import Backend
from schemas.verdict import DEFAULT_POSTURE, Action, Verdict
from schemas.wording import updated_time

ENFORCERS: Final = {
    Backend.OBSERVER: "eBPF Monitor", Backend.BPF_LSM: "BPFLSM", Backend.APPARMOR: "AppArmor",
    Backend.CGROUP: "Hauberk cgroup", Backend.SIGNAL: "Hauberk signal",
}  # fmt: skip
FEW: Final = 64
"""An id with more rows than this is searched for one by one, since the throttle will cut it; by feel."""

_STORMS: Final = 4096
"""Identities remembered for the notice at the end of a silence."""

VERSION: Final = f"hauberk-{version('hauberk')}"
"""In `KubeArmorVersion`: which program told it, and it is not KubeArmor."""

NETWORK_POLICY: Final = "KubeArmorNetworkPolicy"


class Alerts:
    """Renders and throttles. `told`: alerts by `Action`, since start."""

    def __init__(self, throttle: Throttle) -> None:
        self._throttle = throttle
        self._identities: dict[str, tuple[Identity, str]] = {}
        self.told: dict[str, int] = {}

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

    def row(self, tally: Tally, entry: Entry, row: rows.Row, count: int = 1) -> Iterator[Record]:
        """Alert records of one row: of the verdict, and of shadow verdicts beside it."""
        if entry.outcome.told:
            yield from self._admit(tally, entry, entry.verdict, row, count, entry.outcome.action, "")
        for shadow in entry.shadows:
            action = "Audit (Block)" if shadow.action is Action.BLOCK else str(shadow.action)
            yield from self._admit(tally, entry, shadow, row, count, action, "shadow")

    def _flood(self, tally: Tally, entry: Entry, ident: int) -> Iterator[tuple[int, Record]]:
        """Rows of an id one after the other until every bucket is silent past the frame's end; the rest is counted."""
        header, left = tally.header, tally.counts[ident]
        end = max(tally.times[-1], tally.times[0]) + header.clock_offset_ns
        verdicts = ([entry.verdict] if entry.outcome.told else []) + list(entry.shadows)
        buckets = [self._throttle.bucket(entry.identity.uid, _policy(verdict)) for verdict in verdicts]
        for position in rows.search(tally, ident):
            if all(bucket.silent_until > end for bucket in buckets):
                break
            left -= 1
            for record in self.row(tally, entry, rows.row(tally, position)):
                yield position, record
        for bucket in buckets:
            if left:
                self._throttle.suppress(bucket, left)

    def _admit(
        self, tally: Tally, entry: Entry, verdict: Verdict, row: rows.Row, count: int, action: str, mode: str
    ) -> Iterator[Record]:
        header, identity = tally.header, entry.identity
        unix = row[3] + header.clock_offset_ns
        bucket = self._throttle.bucket(identity.uid, _policy(verdict))
        told, begins = self._throttle.admit(bucket, unix, count)
        if begins:
            yield self._threshold(header, identity, _policy(verdict), unix, 0, ENFORCERS[entry.behaviour.enforcer])
        if not told:
            return
        _, _, _, _, sequence, process, pid, ppid, ns_pid, ns_ppid, _, aux = row
        context = process_of(entry.behaviour, tally.processes, process, sequence)
        ident = event_id(header.node, header.boot, sequence)
        policy = verdict.policy or ""
        named = bool(policy) and policy != DEFAULT_POSTURE
        rule = verdict.rule
        alert = Alert(
            Timestamp=unix // 1_000_000_000,
            UpdatedTime=updated_time(unix),
            HostPPID=ppid,
            HostPID=pid,
            PPID=ns_ppid,
            PID=ns_pid,
            Type=_type(identity, verdict),
            EventID=f"{ident}:{mode}:{policy}" if mode else ident,
            Count=count,
            PolicyName=policy,
            Severity=str(verdict.severity) if named and verdict.severity else "",
            Tags=",".join(verdict.tags) if named else "",
            ATags=list(verdict.tags) if named and verdict.tags else None,
            Message=_message(entry, verdict) if named or not policy else "",
            Enforcer=ENFORCERS[entry.behaviour.enforcer],
            Action=action,
            Rule=rule.position if rule else "",
            Mode=mode,
            Suppressed=self._throttle.told(bucket),
            KubeArmorVersion=VERSION,
            UserName=entry.user,
            Links=_links(entry) or None,
            **identity_fields(identity),
            **log_fields(entry.behaviour, context, aux, header.architecture),
        )
        self.told[action] = self.told.get(action, 0) + 1
        yield record_of(alert, identity.workload)

    def _threshold(
        self, header: FrameHeader, identity: Identity, policy: str, unix: int, suppressed: int, enforcer: str
    ) -> Record:
        self._identities[identity.uid] = (identity, header.boot)
        if len(self._identities) > _STORMS:
            del self._identities[next(iter(self._identities))]
        return self._notice(identity, header.boot, policy, unix, suppressed, enforcer)

    def _notice(self, identity: Identity, boot: str, policy: str, unix: int, suppressed: int, enforcer: str) -> Record:
        settings = self._throttle.settings
        word = "silence-over" if suppressed else "threshold"
        alert = Alert(
            Timestamp=unix // 1_000_000_000,
            UpdatedTime=updated_time(unix),
            Type="SystemEvent",
            Operation="AlertThreshold",
            Enforcer=enforcer,
            Result="Passed",
            PolicyName=policy,
            MaxAlertsPerSec=settings.max_alerts_per_second,
            DroppingAlertsInterval=settings.silence_seconds,
            Suppressed=suppressed,
            EventID=f"{identity.node}:{boot}:{word}:{identity.uid}:{policy}:{unix}",
            KubeArmorVersion=VERSION,
            **identity_fields(identity),
        )
        return record_of(alert, identity.workload)

    def closing(self, now: int) -> list[Record]:
        """Notices for pairs whose silence ended before Unix ns `now` while no alert came to tell what was silenced."""
        records = []
        for uid, policy, bucket in self._throttle.over(now):
            known = self._identities.get(uid)
            if known is not None:
                count = self._throttle.told(bucket)
                records.append(self._notice(*known, policy, bucket.silent_until, count, "eBPF Monitor"))
        return records

    def lost(self, header: FrameHeader, identity: Identity, unix: int, counts: Iterable[tuple[str, int]]) -> Record:
        """A SystemEvent that says what was lost up to frame `header.number`: `(what, how many)`."""
        text = " ".join(f"{what}={many}" for what, many in counts)
        alert = Alert(
            Timestamp=unix // 1_000_000_000,
            UpdatedTime=updated_time(unix),
            Type="SystemEvent",
            Operation="EventsLost",
            Data=text,
            EventData=dict(part.split("=") for part in text.split(" ")),
            Result="Passed",
            Message=f"the node lost or could not read part of its events up to frame {header.number}: {text}",
            EventID=f"{header.node}:{header.boot}:{header.run}:loss:{header.number}",
            KubeArmorVersion=VERSION,
            **identity_fields(identity),
        )
        return record_of(alert, identity.workload)


def record_of(alert: Alert, workload: str) -> Record:
    """The record on `alerts.v1`: JSON value, CloudEvents 1.0 binary mode headers."""
    headers: Headers = (
        ("ce_specversion", b"1.0"),
        ("ce_id", alert.EventID.encode()),
        ("ce_source", f"/hauberk/nodes/{alert.HostName}".encode()),
        ("ce_type", b"io.hauberk.alert.v1"),
        ("ce_time", alert.UpdatedTime.encode()),
        ("ce_subject", workload.encode()),
        ("content-type", b"application/json"),
    )
    return Record(workload.encode(), encode_alert(alert), headers)


def _policy(verdict: Verdict) -> str:
    return verdict.policy or ""


def _message(entry: Entry, verdict: Verdict) -> str:
    if verdict.policy is None and entry.outcome.told:
        return "stopped on the node by a plan that the present policies do not ask for"
    return verdict.message


def _links(entry: Entry) -> dict[str, str]:
    """The symlinks by which a rule can have met this behaviour: those that lead to one of its paths, or above it."""
    behaviour, links = entry.behaviour, entry.identity.links
    paths = (behaviour.resource, behaviour.resource2, behaviour.executable, behaviour.parent)
    return {name: real for name, real in links.items() if any(path.startswith(real) for path in paths)} if links else {}


def _position(pair: tuple[int, Record]) -> int:
    return pair[0]


def _type(identity: Identity, verdict: Verdict) -> str:
    if verdict.rule is not None and verdict.rule.kind == NETWORK_POLICY:
        return "MatchedNetworkPolicy"
    return "MatchedHostPolicy" if verdict.host or identity.kind is not Kind.CONTAINER else "MatchedPolicy"
