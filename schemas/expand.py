# SPDX-License-Identifier: Apache-2.0
"""Hot: a telemetry frame to log lines: one JSON object, or one `Log`, per event.

The constant text of a line is made once per (behaviour, process) and the numbers of a row are put into it. `log_fields` is
where an event's fields are decided, for logs and for alerts. Must never invent a row: what is not in the table of
behaviours was not asked to be logged. Neighbours: `schemas.wording` (the forms), sinks (readers), `processors.alerts`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Final

from schemas import wording
from schemas.alert import ExecEvent, Log, OwnerRef, encode_log
from schemas.behaviour import NO_OWNER, Behaviour
from schemas.errno_text import result_text
from schemas.frame import FOLDED
from schemas.identity import Identity, Kind
from schemas.kernel import OCCURRENCE
from schemas.operations import Access, Class, Operation
from schemas.telemetry import Enriched, ProcessContext, RemotePeer, TelemetryFrame

ROW: Final = struct.Struct("=II" + OCCURRENCE.struct.format[1:])
"""A row with its ring header: length, page, id, time, sequence, process, pid, ppid, ns_pid, ns_ppid, ret, aux."""

_ACCEPT: Final = Operation.ACCEPT
PEERS: Final = (Operation.CONNECT, Operation.SEND, Operation.DNS, _ACCEPT)
"""Operations whose address is the other side's; bind and listen have their own, a socket has none."""

NO_PROCESS: Final = ProcessContext(process=0)

# Numbers that stand for a row's own in a template; a line whose text happens to hold one is encoded without a template.
_TIME, _PPID, _PID, _NS_PPID, _NS_PID, _SEQUENCE = range(7_040_216_000_000_000_001, 7_040_216_000_000_000_007)
_TEXT: Final = "7040216-updated-time"
_SLOTS: Final = (
    (b"%d" % _TIME, b"%d"), (_TEXT.encode(), b"%b"), (b"%d" % _PPID, b"%d"), (b"%d" % _PID, b"%d"),
    (b"%d" % _NS_PPID, b"%d"), (b"%d" % _NS_PID, b"%d"), (b"%d" % _SEQUENCE, b"%d"),
)  # fmt: skip


def identity_fields(identity: Identity) -> dict[str, Any]:
    """Fields of `Log` that say whose event it is."""
    fields: dict[str, Any] = {
        "ClusterName": identity.cluster, "HostName": identity.node, "NodeID": identity.node_id,
    }  # fmt: skip
    if identity.kind is Kind.CONTAINER:
        owner = identity.owner
        image = identity.image
        if identity.image_digest and "@" not in image:
            image = f"{image}@{identity.image_digest}"
        fields |= {
            "NamespaceName": identity.namespace,
            "Owner": OwnerRef(owner.ref, owner.name, owner.namespace) if owner.name else None,
            # Outside Kubernetes KubeArmor gives the container's name as that of its pod.
            "PodName": identity.pod if identity.orchestrated else identity.pod or identity.container_name,
            "Labels": wording.labels(identity.labels),
            "ContainerID": identity.uid,
            "ContainerName": identity.container_name,
            "ContainerImage": image,
        }
    return fields


def peer_fields(peer: RemotePeer) -> dict[str, Any]:
    """Fields of `Log` that say who the other side was."""
    return {"RemotePeer": peer.name, "RemoteNamespace": peer.namespace, "RemoteOwner": peer.owner}


def log_fields(behaviour: Behaviour, process: ProcessContext, aux: int, architecture: str) -> dict[str, Any]:
    """Fields of `Log` that say what was done. For exec, `process` is the new image, otherwise the acting one."""
    data = wording.data(behaviour, aux, architecture)
    resource = wording.resource(behaviour, process)
    cls = behaviour.cls
    script = second = cut = ""
    if behaviour.operation is Operation.EXEC:
        # A script is named first, and its interpreter is the image.
        name = behaviour.resource2 or behaviour.resource
        script = behaviour.resource if behaviour.resource2 else ""
        source = parent = behaviour.parent or behaviour.executable
        if process.cut:
            cut = "arguments"
            data += " arguments=cut"
    else:
        name, parent = behaviour.executable, behaviour.parent
        source = wording.command(name, process) if process.executable in (name, "") else name
        second = behaviour.resource2
    if behaviour.access & Access.PARTIAL:
        cut = f"{cut},path" if cut else "path"
    cwd = process.cwd
    return {
        "UID": behaviour.uid,
        "ParentProcessName": parent,
        "ProcessName": name,
        "Source": source,
        "Operation": cls.label,
        "Resource": resource,
        "Data": data,
        "EventData": wording.event_data(data, resource if cls is Class.NETWORK else "") or None,
        "Result": result_text(behaviour.result),
        "Cwd": cwd if not cwd or cwd.endswith("/") else cwd + "/",
        "TTY": process.tty,
        "ExecEvent": exec_event(name),
        "OID": behaviour.owner if behaviour.owner != NO_OWNER else None,
        "Script": script,
        "SourceScript": behaviour.script,
        "Resource2": second,
        "Cut": cut,
        "RemoteAddress": behaviour.address if behaviour.operation in PEERS else "",
        "RemotePort": behaviour.port if behaviour.operation in PEERS and behaviour.operation is not _ACCEPT else 0,
    }


@lru_cache(4096)
def exec_event(executable: str) -> ExecEvent:
    """Session 0, which is none (nothing here tells sessions of `kubectl exec` apart), and the kernel's short name of the image."""
    return ExecEvent("0", executable.rpartition("/")[2].encode()[:15].decode("utf-8", "ignore"))


def process_of(
    behaviour: Behaviour, processes: dict[int, ProcessContext], process: int, sequence: int
) -> ProcessContext:
    """The image a row is about: for exec the one it made (its id is the exec's sequence), otherwise the acting one."""
    if behaviour.operation is Operation.EXEC:
        made = processes.get(sequence) or processes.get(process)
        # A refused exec has made no image, unless an LSM refused it after its arguments were read.
        fits = made is not None and (behaviour.result == 0 or made.executable == behaviour.resource)
        return made if made is not None and fits else NO_PROCESS
    return processes.get(process, NO_PROCESS)


def json_lines(frame: TelemetryFrame) -> Iterator[bytes]:
    """One JSON object (no newline) per row in the order of the ring, then one per folded row with its `Count`."""
    header = frame.header
    table = {entry.behaviour.id: entry for entry in frame.behaviours}
    processes = {process.process: process for process in frame.processes}
    aux_shown = {ident for ident, entry in table.items() if wording.shows_aux(entry.behaviour)}
    execs = {ident for ident, entry in table.items() if entry.behaviour.operation is Operation.EXEC}
    templates: dict[tuple[int, int, int], bytes | None] = {}
    offset, second, text = header.clock_offset_ns, -1, b""
    known, get, missing = table.keys(), templates.get, object()
    for _, _, ident, at, sequence, process, pid, ppid, ns_pid, ns_ppid, _, aux in ROW.iter_unpack(frame.rows):
        if ident not in known:
            continue
        key = (ident, sequence if ident in execs else process, aux if ident in aux_shown else 0)
        template: Any = get(key, missing)
        if template is missing:
            template = templates[key] = _template(frame, table[ident], processes, process, sequence, aux)
        seconds, rest = divmod(at + offset, 1_000_000_000)
        if seconds != second:
            second, text = seconds, wording.updated_time(seconds * 1_000_000_000)[:20].encode()
        if template is None:
            row = (at, sequence, process, pid, ppid, ns_pid, ns_ppid, aux)
            yield encode_log(_log(frame, table[ident], processes, row))
        else:
            yield template % (seconds, b"%b%06dZ" % (text, rest // 1000), ppid, pid, ns_ppid, ns_pid, sequence)
    for log in _folded(frame, table, processes):
        yield encode_log(log)


def logs(frame: TelemetryFrame) -> Iterator[Log]:
    """The same events as structs."""
    table = {entry.behaviour.id: entry for entry in frame.behaviours}
    processes = {process.process: process for process in frame.processes}
    for _, _, ident, at, sequence, process, pid, ppid, ns_pid, ns_ppid, _, aux in ROW.iter_unpack(frame.rows):
        entry = table.get(ident)
        if entry is not None:
            yield _log(frame, entry, processes, (at, sequence, process, pid, ppid, ns_pid, ns_ppid, aux))
    yield from _folded(frame, table, processes)


def event_id(node: str, boot: str, sequence: int) -> str:
    """`node:boot:sequence`: the same on every replay."""
    return f"{node}:{boot}:{sequence}"


def _log(
    frame: TelemetryFrame,
    entry: Enriched,
    processes: dict[int, ProcessContext],
    row: tuple[int, int, int, int, int, int, int, int],
    count: int = 1,
) -> Log:
    at, sequence, process, pid, ppid, ns_pid, ns_ppid, aux = row
    header, identity = frame.header, frame.identities[entry.identity]
    made = process_of(entry.behaviour, processes, process, sequence)
    unix = at + header.clock_offset_ns
    return Log(
        Timestamp=unix // 1_000_000_000,
        UpdatedTime=wording.updated_time(unix),
        HostPPID=ppid,
        HostPID=pid,
        PPID=ns_ppid,
        PID=ns_pid,
        Type="ContainerLog" if identity.kind is Kind.CONTAINER else "HostLog",
        EventID=event_id(header.node, header.boot, sequence),
        Count=count,
        UserName=entry.user,
        **identity_fields(identity),
        **peer_fields(entry.peer),
        **log_fields(entry.behaviour, made, aux, header.architecture),
    )


def _folded(frame: TelemetryFrame, table: dict[int, Enriched], processes: dict[int, ProcessContext]) -> Iterator[Log]:
    for ident, count, first, _, sequence, process in FOLDED.iter_unpack(frame.folded):
        entry = table.get(ident)
        if entry is not None:
            made = processes.get(process, NO_PROCESS)
            row = (first, sequence, process, made.pid, made.ppid, 0, 0, 0)
            yield _log(frame, entry, processes, row, count)


def _template(
    frame: TelemetryFrame,
    entry: Enriched,
    processes: dict[int, ProcessContext],
    process: int,
    sequence: int,
    aux: int,
) -> bytes | None:
    """The line with slots for a row's numbers; None when its text holds one of the stand-ins."""
    header, identity = frame.header, frame.identities[entry.identity]
    line = encode_log(
        Log(
            Timestamp=_TIME,
            UpdatedTime=_TEXT,
            HostPPID=_PPID,
            HostPID=_PID,
            PPID=_NS_PPID,
            PID=_NS_PID,
            Type="ContainerLog" if identity.kind is Kind.CONTAINER else "HostLog",
            EventID=event_id(header.node, header.boot, _SEQUENCE),
            UserName=entry.user,
            **identity_fields(identity),
            **peer_fields(entry.peer),
            **log_fields(
                entry.behaviour, process_of(entry.behaviour, processes, process, sequence), aux, header.architecture
            ),
        )
    ).replace(b"%", b"%%")
    for stand_in, slot in _SLOTS:
        if line.count(stand_in) != 1:
            return None
        line = line.replace(stand_in, slot)
    return line
