# SPDX-License-Identifier: Apache-2.0
"""Alerts and logs as people and SIEMs read them: KubeArmor's JSON names and value formats (kubearmor.md section 4), a superset.

Ours in addition: `EventID` (node:boot:sequence, the same on every replay, so repeats can be dropped), `Count` (how many
occurrences this one line stands for), `Suppressed` (how many were throttled before it), `Rule` (position of the rule that
matched), `Mode` (`shadow` for what would have happened, `baseline` for drift from a baseline), `RemoteAddress`/`RemotePort`, and in a cluster `RemotePeer` (`pod/NAME`,
`svc/NAME`, `node/NAME`: who had that address then; `dns/NAME`: what the workload had asked for), `RemoteNamespace` and `RemoteOwner` (`Kind/name` of a pod's owner); and what a verdict hangs on, so that the
event can be judged again: `OID` (owner of the file or image; absent: it has none), `Script` (the `#!` file that was executed;
`ProcessName` is its interpreter), `SourceScript` (the `#!` file whose interpreter acted), `Resource2` (the second path of rename,
link, symlink and mount), `Cut` (`arguments`, `path`: what is not whole), `Links` (symlinks of the workload's root that lead to a path
of the event), `Judged` (the rest of it).
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Annotated, Final
from urllib.parse import quote

import msgspec

from schemas.decoding import Count as Number
from schemas.decoding import Seconds, decoder
from schemas.operations import Class

ACTIONS: Final = ("Audit", "Block", "Allow", "Audit (Block)", "Audit (Allow)")
"""Every `Action` of an alert."""
FIREWALL: Final = "NetworkFirewall"
"""`Operation` of what a rule of a network policy decided."""
OPERATIONS: Final = (*(member.label for member in Class), FIREWALL)
"""Every `Operation` of an alert about an event."""
HEADERS: Final = {
    "ce_specversion": "version of CloudEvents: 1.0",
    "ce_id": "`EventID`: with `ce_source` the same on every replay, so that repeats can be dropped",
    "ce_source": "/hauberk/nodes/NAME, the name percent-encoded: where it was seen",
    "ce_type": "io.hauberk.alert.v1",
    "ce_time": "`UpdatedTime`: when it happened (RFC 3339)",
    "ce_subject": "the workload, which is the key of the record",
    "content-type": "application/json: of the value, which is the data of the event",
}
"""Headers of each record of `alerts.v1`: CloudEvents 1.0 in binary mode, as its Kafka binding has it."""
NOTICE: Final = "SystemEvent"
"""`Type` of a notice of the pipeline about itself (`EventsLost`, `AlertThreshold`): no event of a workload."""


Signed = Annotated[int, msgspec.Meta(ge=-4095, le=0)]
"""0 or -errno."""


class OwnerRef(msgspec.Struct, frozen=True, rename="pascal", omit_defaults=True):
    """`Owner`: top-level owner of the pod."""

    ref: str = ""
    name: str = ""
    namespace: str = ""


class ExecEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """`ExecEvent`: the exec session an operation belongs to."""

    ExecID: str = ""
    ExecutableName: str = ""


class Judged(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a verdict hung on and the words of its alert do not say, so that the event can be judged again as it was: fields of
    `schemas.behaviour.Behaviour` and of `schemas.identity.Identity`, each only where the words leave it out or mean something
    else. `arguments`: argv."""

    operation: Number | None = None
    access: Number | None = None
    result: Signed | None = None
    enforcer: Number | None = None
    uid: Number | None = None
    owner: Number | None = None
    tty: bool | None = None
    executable: str | None = None
    parent: str | None = None
    resource: str | None = None
    resource2: str | None = None
    syscall_name: str | None = None
    flags: Number | None = None
    args: tuple[Number, Number] | None = None
    family: Number | None = None
    socket_type: Number | None = None
    protocol: Number | None = None
    address: str | None = None
    port: Number | None = None
    detail: str | None = None
    arguments: tuple[str, ...] | None = None
    container_name: str | None = None
    namespace: str | None = None
    orchestrated: bool | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    namespace_annotations: dict[str, str] | None = None
    node_labels: dict[str, str] | None = None


class Log(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One telemetry line. `Type` is `ContainerLog` or `HostLog`. `Result` is `Passed` or the errno's text."""

    Timestamp: Seconds
    UpdatedTime: str
    ClusterName: str = ""
    HostName: str = ""
    NamespaceName: str = ""
    Owner: OwnerRef | None = None
    PodName: str = ""
    Labels: str = ""
    ContainerID: str = ""
    ContainerName: str = ""
    ContainerImage: str = ""
    HostPPID: Number = 0
    HostPID: Number = 0
    PPID: Number = 0
    PID: Number = 0
    UID: int | None = None
    ParentProcessName: str = ""
    ProcessName: str = ""
    Type: str = ""
    Source: str = ""
    Operation: str = ""
    Resource: str = ""
    Data: str = ""
    EventData: dict[str, str] | None = None
    Result: str = ""
    Cwd: str = ""
    TTY: str = ""
    ExecEvent: ExecEvent | None = None
    NodeID: str = ""
    UserName: str = ""
    EventID: str = ""
    Count: Number = 1
    RemoteAddress: str = ""
    RemotePort: int = 0
    RemotePeer: str = ""
    RemoteNamespace: str = ""
    RemoteOwner: str = ""
    OID: Number | None = None
    Script: str = ""
    SourceScript: str = ""
    Resource2: str = ""
    Cut: str = ""


class Alert(Log, kw_only=True, omit_defaults=True):
    """One alert. `Type` is `MatchedPolicy`, `MatchedHostPolicy`, `MatchedNetworkPolicy` or `SystemEvent`.
    `Action`: `Audit`, `Block`, `Allow`, `Audit (Block)`, `Audit (Allow)`."""

    PolicyName: str = ""
    Severity: str = ""
    Tags: str = ""
    ATags: list[str] | None = None
    Message: str = ""
    Enforcer: str = ""
    Action: str = ""
    MaxAlertsPerSec: int = 0
    DroppingAlertsInterval: int = 0
    KubeArmorVersion: str = ""
    Rule: str = ""
    Mode: str = ""
    Suppressed: Number = 0
    Links: dict[str, str] | None = None
    ProcessHash: str | None = None
    ParentHash: str | None = None
    ResourceHash: str | None = None
    HashAlgo: str | None = None
    """Hashes of executables: "" in alerts of events where nobody asked for them (`sensor.hashes`) or they could not be had."""
    Judged: Judged | None = None


@cache
def made_by() -> str:
    """`KubeArmorVersion` of an alert: which program told it, and it is not KubeArmor."""
    # 0.8 MB that a node which tells nothing does without.
    from importlib.metadata import version

    return f"hauberk-{version('hauberk')}"


def cloudevents(alert: Alert, workload: str) -> tuple[tuple[str, bytes], ...]:
    """The record's headers, see `HEADERS`."""
    return (
        ("ce_specversion", b"1.0"),
        ("ce_id", alert.EventID.encode()),
        ("ce_source", _source(alert.HostName)),
        ("ce_type", b"io.hauberk.alert.v1"),
        ("ce_time", alert.UpdatedTime.encode()),
        ("ce_subject", workload.encode()),
        ("content-type", b"application/json"),
    )


@lru_cache(1024)
def _source(node: str) -> bytes:
    """`ce_source` is a URI reference; a node's name may hold what none may."""
    return f"/hauberk/nodes/{quote(node, safe='')}".encode()


encode_alert = msgspec.json.Encoder().encode
decode_alert = decoder(Alert, "an alert", msgspec.json)
encode_log = msgspec.json.Encoder().encode
decode_log = decoder(Log, "a log line", msgspec.json)
