# SPDX-License-Identifier: Apache-2.0
"""AppArmor's denials as alerts: the kernel's audit stream, joined to the plan in force.

    record of the stream -> scope (by the process's cgroup, else by its profile) -> rule of the plan, else the posture -> alert

The stream names a profile and no rule; which rule it was is worked out from the plan as its profile was. A denial that no rule of
the plan explains is one of the baseline. What the kernel dropped, and what came faster than `PER_SECOND`, is counted and told by an
alert `EventsLost`. Must never wait for the bus: what it does not take is counted as lost. Neighbours: `kernel.audit`, `agent`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec

from bus.contract import Record
from kernel.audit import AuditDenial
from policy.match.covering import covers
from schemas.alert import NOTICE, Alert, cloudevents, encode_alert, made_by
from schemas.backends import BACKENDS
from schemas.enforcement import ScopePlan
from schemas.expand import identity_fields
from schemas.identity import Identity
from schemas.operations import Backend, Class
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef
from schemas.wording import updated_time

PER_SECOND: Final = 100
"""Alerts of a node; a workload may be denied the same thing for ever. By feel."""
_NETWORK: Final = frozenset(
    {"create", "bind", "connect", "listen", "accept", "sendmsg", "recvmsg", "getsockname", "setsockopt"}
)
_WATCHED: Final = frozenset(
    {
        "open",
        "exec",
        "mknod",
        "mkdir",
        "rmdir",
        "unlink",
        "rename_src",
        "rename_dest",
        "link",
        "symlink",
        "truncate",
        "chmod",
        "chown",
    }
)
"""Operations on a name that are a call which the sensor watches; others (file_lock, getattr, file_receive) are told here alone."""
_RESULT: Final = "Permission denied"
_HOST: Final = "KubeArmorHostPolicy"


class AuditCounts(msgspec.Struct):
    """`told`: denials that became alerts; `elsewhere`: that the sensor reports with the same rule; `silenced`: that came too fast; `dropped`: by the kernel (times) or because the bus was away."""

    told: int = 0
    elsewhere: int = 0
    silenced: int = 0
    dropped: int = 0


def told_by_sensor(denial: AuditDenial, rule: RuleRef | None, cls: Class, watched: int) -> bool:
    """Whether the judge has it as a call that failed with EACCES and matches `rule`: then one alert is enough. Nobody watches checks of
    capabilities or mappings. What a posture denied is reported of the classes in `watched` (a scope's visibility), by name; sockets are not
    sure to be, for a posture says nothing to the judge of families that stay on the machine."""
    if rule is None:
        return False
    if rule.policy == DEFAULT_POSTURE:
        return watched >= 0 and bool(watched >> cls & 1) and bool(denial.name) and denial.operation in _WATCHED
    return cls is not Class.CAPABILITIES and denial.operation != "file_mmap"


def class_of_denial(denial: AuditDenial) -> Class:
    """What AppArmor's operation is about."""
    if denial.operation in ("exec", "file_mmap") and "x" in denial.mask:
        return Class.PROCESS
    if denial.operation == "capable":
        return Class.CAPABILITIES
    return Class.NETWORK if denial.operation in _NETWORK and not denial.name else Class.FILE


def rule_of_denial(scope: ScopePlan, denial: AuditDenial, cls: Class) -> RuleRef | None:
    """The first rule of the plan that denies it, the posture, or None: the baseline of profiles did."""
    if cls is Class.NETWORK:
        blocked = [rule for rule in scope.network if rule.action is Action.BLOCK and not rule.no_terminal]
        return next(
            (rule.ref for rule in blocked if rule.ref.policy != DEFAULT_POSTURE), blocked[0].ref if blocked else None
        )
    for rule in scope.paths:
        if rule.cls is cls and rule.stops and covers(rule, denial.name):
            return rule.ref
    return RuleRef(DEFAULT_POSTURE) if (cls, Action.BLOCK) in scope.posture else None


def alert_of_denial(
    denial: AuditDenial,
    rule: RuleRef | None,
    cls: Class,
    identity: Identity | None,
    node: str,
    boot: str,
    executable: str,
) -> Alert:
    """Pure. `identity`: of the workload, None when nobody knows it; `executable`: its path, or the command's name."""
    kind = "MatchedHostPolicy" if rule is not None and rule.kind == _HOST else "MatchedPolicy"
    whose = {"HostName": node} if identity is None else identity_fields(identity)
    return Alert(
        Timestamp=int(denial.seconds), UpdatedTime=updated_time(int(denial.seconds * 1e9)), Type=kind,
        PolicyName="" if rule is None else rule.policy, Rule="" if rule is None else rule.position, Enforcer=BACKENDS[Backend.APPARMOR].alert,
        Action="Block", Operation=cls.label, Resource=denial.name, Result=_RESULT, HostPID=denial.pid, ProcessName=executable,
        Source=executable, Data=f"operation={denial.operation} mask={denial.mask} profile={denial.profile}",
        EventData={"operation": denial.operation, "mask": denial.mask, "profile": denial.profile},
        Message="" if rule is not None else "denied by the baseline of Hauberk's profiles, which no policy asked for",
        EventID=f"{node}:{boot}:audit:{denial.serial}", KubeArmorVersion=made_by(), **whose,
    )  # fmt: skip


class DenialAlerts:
    """Denials to records. `scopes`: of the plan in force; `under`: profile -> uids of those under it; `find`: identity by cgroup id."""

    def __init__(self, node: str, boot: str, find: Callable[[int], Identity | None]) -> None:
        self.counts = AuditCounts()
        self._node, self._boot, self._find = node, boot, find
        self._second, self._sent = 0, 0
        self._untold = 0

    def records(
        self,
        denials: Iterable[AuditDenial],
        scopes: Iterable[ScopePlan],
        under: Mapping[str, Iterable[str]],
        lost: int = 0,
    ) -> list[Record]:
        """In the order of the stream; those of profiles that are not Hauberk's are passed over. `lost`: times the kernel dropped some."""
        by_path = {one.cgroup_path: one for one in scopes}
        by_uid = {one.uid: one for one in by_path.values()}
        made: list[Record] = []
        self.counts.dropped += lost
        self._untold += lost
        for denial in denials:
            profile = denial.profile.partition("//")[0]
            if not profile.startswith("hauberk-"):
                continue
            scope = _nearest(by_path, denial.pid) or next(
                (by_uid[uid] for uid in under.get(profile, ()) if uid in by_uid), None
            )
            cls = class_of_denial(denial)
            rule = None if scope is None else rule_of_denial(scope, denial, cls)
            if told_by_sensor(denial, rule, cls, -1 if scope is None else scope.visibility):
                self.counts.elsewhere += 1
                continue
            if (second := int(denial.seconds)) != self._second:
                self._second, self._sent = second, 0
            self._sent += 1
            if self._sent > PER_SECOND:
                self.counts.silenced += 1
                self._untold += 1
                continue
            identity = None if scope is None else self._find(scope.cgroups[0])
            alert = alert_of_denial(denial, rule, cls, identity, self._node, self._boot, _executable(denial))
            workload = self._node if identity is None else identity.workload
            made.append(Record(workload.encode(), encode_alert(alert), cloudevents(alert, workload)))
            self.counts.told += 1
        if self._untold and (self._sent <= PER_SECOND or time.time() >= self._second + 1):
            made.append(self._loss())
        return made

    @property
    def untold(self) -> bool:
        """Whether a loss waits to be told; `records` does it, a second later at the latest."""
        return self._untold > 0

    def unpublished(self, records: int) -> None:
        """The bus did not take these."""
        self.counts.dropped += records
        self._untold += records

    def _loss(self) -> Record:
        now, many, self._untold = time.time_ns(), self._untold, 0
        alert = Alert(
            Timestamp=now // 1_000_000_000, UpdatedTime=updated_time(now), Type=NOTICE, Operation="EventsLost", HostName=self._node,
            Data=f"apparmor={many}", EventData={"apparmor": str(many)}, Result="Passed",
            Message=f"denials by AppArmor that are not told one by one: {many}, by the kernel's stream, their number or the bus",
            EventID=f"{self._node}:{self._boot}:audit-loss:{now}", KubeArmorVersion=made_by(),
        )  # fmt: skip
        return Record(self._node.encode(), encode_alert(alert), cloudevents(alert, self._node))


def _nearest(by_path: Mapping[str, ScopePlan], pid: int) -> ScopePlan | None:
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), "")
    while path not in ("", "/"):
        if path in by_path:
            return by_path[path]
        path = path.rpartition("/")[0]
    return None


def _executable(denial: AuditDenial) -> str:
    try:
        return os.readlink(f"/proc/{denial.pid}/exe")
    except OSError:
        return denial.comm
