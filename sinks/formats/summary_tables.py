# SPDX-License-Identifier: Apache-2.0
"""The tables of `hauberk summary`: process data, file data, ingress and egress connections, bind points, names asked for.

Pure: store rows in, tables out. Column names are those of KubeArmor 0.7's `karmor summary`. Neighbours: `store` answers the
query, `table_text` prints, the CLI and the page call both.
"""

from __future__ import annotations

import errno
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from schemas import socket_names
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind
from schemas.operations import Class, Operation
from schemas.telemetry import FROM_DNS
from sinks.store.store import StoredRow

PROCESS_COLUMNS: Final = ("SRC PROCESS", "DESTINATION PROCESS PATH", "COUNT", "LAST UPDATED TIME", "STATUS")
FILE_COLUMNS: Final = ("SRC PROCESS", "DESTINATION FILE PATH", "COUNT", "LAST UPDATED TIME", "STATUS")
CONNECTION_COLUMNS: Final = (
    "PROTOCOL", "COMMAND", "POD/SVC/IP", "PORT", "NAMESPACE", "LABELS", "COUNT", "LAST UPDATED TIME",
)  # fmt: skip
NAME_COLUMNS: Final = ("SRC PROCESS", "NAME", "COUNT", "LAST UPDATED TIME", "STATUS")
BIND_COLUMNS: Final = ("PROTOCOL", "COMMAND", "BIND PORT", "BIND ADDRESS", "COUNT", "LAST UPDATED TIME")

FAILED: Final = "Failed"
"""Beside KubeArmor's Allow, Audit and Deny: the path search of a shell, a file that is not there, a port nobody listens on."""
_EINPROGRESS: Final = -errno.EINPROGRESS
_EINTR: Final = -errno.EINTR
_NETLINK: Final = 16
"""AF_NETLINK (include/linux/socket.h): talk with the kernel, not a connection."""

FOLD_AT: Final = 4
"""With `agg`, this many distinct paths in one directory become the directory. By feel: three are still read one by one."""


Placing = Callable[[list[StoredRow]], Callable[[StoredRow], str]]
"""Rows of files -> the place of each."""


class PathLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of process or file data, or of names asked for. `last`: Unix ns."""

    source: str
    destination: str
    count: int
    last: int
    status: str


class ConnectionLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of ingress, egress or bind points. `namespace` and `labels` are the peer's, "" when it is not known."""

    protocol: str
    command: str
    peer: str
    port: int
    namespace: str = ""
    labels: str = ""
    count: int
    last: int
    status: str


class PeerName(msgspec.Struct, frozen=True, kw_only=True):
    """What an address stands for: `pod/name` or `svc/name`, its namespace and labels."""

    name: str
    namespace: str = ""
    labels: str = ""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """Whose summary it is; "" where the rows are of several."""

    pod: str = ""
    namespace: str = ""
    cluster: str = ""
    container: str = ""
    labels: str = ""


class SummaryTables(msgspec.Struct, frozen=True, kw_only=True):
    """One workload's (or everybody's) tables. Lines are sorted by count, highest first."""

    header: Header
    process: tuple[PathLine, ...] = ()
    file: tuple[PathLine, ...] = ()
    ingress: tuple[ConnectionLine, ...] = ()
    egress: tuple[ConnectionLine, ...] = ()
    bind: tuple[ConnectionLine, ...] = ()
    dns: tuple[PathLine, ...] = ()


def build(
    rows: Iterable[StoredRow], *, agg: bool = False, resolve: Callable[[str, int], PeerName | None] | None = None,
    placing: Placing | None = None,
) -> SummaryTables:  # fmt: skip
    """All rows in one set of tables. `agg`: many files of one directory as the directory. `resolve`: who an address was
    at a time (Unix ns): addresses are used again. `placing`: what stands for the path of each file, from all of them."""
    if placing is not None:
        rows = list(rows)
        place = placing([row for row in rows if row.behaviour.cls is Class.FILE])
    identities: dict[tuple[str, str], Identity] = {}
    paths: dict[Class, dict[tuple[str, str, str], list[int]]] = {Class.PROCESS: {}, Class.FILE: {}}
    names: dict[tuple[str, str, str], list[int]] = {}
    peers: dict[str, dict[tuple[str, str, PeerName, int, str], list[int]]] = {"ingress": {}, "egress": {}, "bind": {}}
    for row in rows:
        identities[row.identity.node, row.identity.uid] = row.identity
        behaviour = row.behaviour
        cls = behaviour.cls
        if behaviour.operation is Operation.EXEC or cls is Class.FILE:
            where = place(row) if placing is not None and cls is Class.FILE else behaviour.resource
            _sum(paths[cls], (behaviour.executable, where, _status(row)), row)
        elif behaviour.operation is Operation.DNS:
            asked = (behaviour.detail or behaviour.resource).rstrip(".").lower()
            _sum(names, (behaviour.executable, asked, _status(row)), row)
        elif cls is Class.NETWORK and behaviour.family != _NETLINK and (table := _side(row)):
            protocol = _protocol(behaviour)
            peer, port = behaviour.address or behaviour.resource, behaviour.port
            if behaviour.operation is Operation.SOCKET:
                peer, port = "", 0
            who = PeerName(name=peer) if table == "bind" else _who(peer, row, resolve)
            if who.name == peer and table == "egress" and behaviour.address and behaviour.detail:
                who = PeerName(name=FROM_DNS + behaviour.detail)
            _sum(peers[table], (protocol, behaviour.executable, who, port, _status(row)), row)
    if agg:
        # Files alone: which program was started is never too much to tell.
        paths[Class.FILE] = _fold(paths[Class.FILE])
    return SummaryTables(
        header=_header(list(identities.values())),
        process=_path_lines(paths[Class.PROCESS]),
        file=_path_lines(paths[Class.FILE]),
        ingress=_connection_lines(peers["ingress"]),
        egress=_connection_lines(peers["egress"]),
        bind=_connection_lines(peers["bind"]),
        dns=_path_lines(names),
    )


def build_each(
    rows: Iterable[StoredRow], *, agg: bool = False, by_workload: bool = False,
    resolve: Callable[[str, int], PeerName | None] | None = None, placing: Placing | None = None,
) -> list[SummaryTables]:  # fmt: skip
    """One set of tables per container, in order of namespace, pod, container; the host's cgroups are one set per node.
    `by_workload`: the same container of all pods of an owner is one set."""
    groups: dict[tuple[str, ...], list[StoredRow]] = {}
    for row in rows:
        groups.setdefault(_of_owner(row.identity) if by_workload else _whose(row.identity), []).append(row)
    return [build(groups[key], agg=agg, resolve=resolve, placing=placing) for key in sorted(groups)]


def build_by_workload(
    rows: Iterable[StoredRow], *, resolve: Callable[[str, int], PeerName | None] | None = None
) -> dict[str, SummaryTables]:
    """One set for each container of a workload, by `namespace/owner/container`, of a node by its name."""
    groups: dict[str, list[StoredRow]] = {}
    for row in rows:
        of = row.identity
        name = f"{of.workload}/{of.container_name}" if of.kind is Kind.CONTAINER else of.node
        groups.setdefault(name, []).append(row)
    return {name: build(groups[name], resolve=resolve) for name in sorted(groups)}


def _whose(of: Identity) -> tuple[str, ...]:
    """A container that was started again has another uid and is the same to its reader; one without a name is only its uid."""
    if of.kind is not Kind.CONTAINER:
        return "", "", "", of.cluster, of.node
    said = ",".join(f"{key}={value}" for key, value in sorted(of.labels.items()))
    return of.namespace, of.pod, of.container_name, of.cluster, of.node, said, "" if of.container_name else of.uid


def _of_owner(of: Identity) -> tuple[str, ...]:
    """A pod without an owner, and the host, are their own workload."""
    return (of.cluster, of.workload, of.container_name) if of.kind is Kind.CONTAINER else _whose(of)


def _protocol(behaviour: Behaviour) -> str:
    if behaviour.family in (socket_names.INET, socket_names.INET6):
        return socket_names.protocol(behaviour.protocol, behaviour.socket_type, behaviour.family)
    return socket_names.family(behaviour.family)


def _status(row: StoredRow) -> str:
    """What became of it: a call that no policy speaks of and that failed by itself was not allowed by anybody."""
    failed = row.behaviour.result not in (0, _EINPROGRESS, _EINTR)
    return FAILED if failed and row.status == "Allow" else row.status


def _side(row: StoredRow) -> str:
    operation = row.behaviour.operation
    if operation is Operation.SOCKET:
        # Where the socket itself is denied there is no connect to tell of; one that is made is told by what it is used for.
        return "egress" if row.status == "Deny" else ""
    if operation is Operation.ACCEPT:
        return "ingress"
    if operation in (Operation.CONNECT, Operation.SEND):
        return "egress"
    return "bind" if operation in (Operation.BIND, Operation.LISTEN) else ""


def _sum(table: dict, key: tuple, row: StoredRow) -> None:  # type: ignore[type-arg]
    total = table.setdefault(key, [0, 0])
    total[0] += row.count
    total[1] = max(total[1], row.last)


def _fold(lines: dict[tuple[str, str, str], list[int]]) -> dict[tuple[str, str, str], list[int]]:
    """Directories in place of their many children, from the deepest up; never the root itself."""
    while True:
        children: dict[tuple[str, str, str], set[str]] = {}
        for source, path, status in lines:
            parent = _parent(path)
            if parent != "/":
                children.setdefault((source, parent, status), set()).add(path)
        full = {key for key, paths in children.items() if len(paths) >= FOLD_AT}
        if not full:
            return lines
        deepest = max(key[1].count("/") for key in full)
        full = {key for key in full if key[1].count("/") == deepest}
        folded: dict[tuple[str, str, str], list[int]] = {}
        for (source, path, status), (count, last) in lines.items():
            above = (source, _parent(path), status)
            key = above if above in full else (source, path, status)
            total = folded.setdefault(key, [0, 0])
            total[0] += count
            total[1] = max(total[1], last)
        lines = folded


def _parent(path: str) -> str:
    """`/a/b` and `/a/b/` are both in `/a/`."""
    return path.rstrip("/").rpartition("/")[0] + "/"


def _path_lines(table: dict[tuple[str, str, str], list[int]]) -> tuple[PathLine, ...]:
    lines = [
        PathLine(source=source, destination=path, count=count, last=last, status=status)
        for (source, path, status), (count, last) in table.items()
    ]
    return tuple(sorted(lines, key=lambda line: (-line.count, line.source, line.destination, line.status)))


def _who(address: str, row: StoredRow, resolve: Callable[[str, int], PeerName | None] | None) -> PeerName:
    """Of an address that changed hands between the first and the last event both are told: nobody counted which was whose."""
    plain = PeerName(name=address)
    if resolve is None or not _is_address(address):
        return plain
    before, after = resolve(address, row.first) or plain, resolve(address, row.last) or plain
    if before == after:
        return after
    return PeerName(name=f"{before.name}, then {after.name}", namespace=after.namespace, labels=after.labels)


def _connection_lines(table: dict[tuple[str, str, PeerName, int, str], list[int]]) -> tuple[ConnectionLine, ...]:
    lines = [
        ConnectionLine(
            protocol=protocol, command=command, peer=peer.name, port=port, namespace=peer.namespace, labels=peer.labels, count=count, last=last,
            status=status,
        )
        for (protocol, command, peer, port, status), (count, last) in table.items()
    ]  # fmt: skip
    return tuple(
        sorted(lines, key=lambda line: (-line.count, line.command, line.peer, line.port, line.status, line.protocol))
    )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _header(identities: Sequence[Identity]) -> Header:
    def one(values: Iterable[str]) -> str:
        distinct = set(values)
        return distinct.pop() if len(distinct) == 1 else ""

    return Header(
        pod=one(identity.pod for identity in identities),
        namespace=one(identity.namespace for identity in identities),
        cluster=one(identity.cluster for identity in identities),
        container=one(identity.container_name or identity.node for identity in identities),
        labels=one(",".join(f"{key}={value}" for key, value in sorted(each.labels.items())) for each in identities),
    )
