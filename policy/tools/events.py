# SPDX-License-Identifier: Apache-2.0
"""Events as people have them -> what the judge asks about: one line of KubeArmor's log -> identity, behaviour, arguments.

The language-independent contract of `hauberk policy test`. Takes the names of the gRPC feed and those of the
agent's log file, logs and alerts, extra keys `OID` (owner of the file; missing means unknown), `Annotations`,
`NamespaceAnnotations`, `NodeLabels`, `Links`, `Judged` (objects). Missing fields are tolerated, a line that is no event is reported with
its number.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from policy.judge.devices import pack
from policy.rules.select import UNORCHESTRATED
from policy.text.values import class_number
from policy.tools import event_words as word
from policy.tools.event import Event
from policy.tools.rejudge import judged
from schemas.alert import Alert, ExecEvent
from schemas.behaviour import NO_OWNER, Behaviour
from schemas.errors import DecodeError
from schemas.identity import Identity, Kind, Owner
from schemas.links import MULTI_CALL
from schemas.operations import Access, Backend, Class, Operation, class_of
from schemas.telemetry import CUT
from schemas.watched import CALLS as WATCHED
from schemas.watched import texts, words
from schemas.wording import CUT_MARK

_HOST_TYPES: Final = frozenset({"HostLog", "MatchedHostPolicy", "MatchedNetworkPolicy"})
_CONTAINER_KEYS: Final = ("ContainerName", "ContainerID", "PodName", "NamespaceName", "ContainerImage")


_NAMES: Final[frozenset[str]] = frozenset(
    {*Alert.__struct_fields__, "Annotations", "NamespaceAnnotations", "NodeLabels", *ExecEvent.__struct_fields__}
)
_KEYS: Final[dict[str, str]] = {name.lower(): name for name in _NAMES}
"""The names of fields by their small letters."""


class BadLine(msgspec.Struct, frozen=True):
    """A line that is no event, and why."""

    line: int
    reason: str


class Notice(msgspec.Struct, frozen=True):
    """A line in which the agent speaks of itself (lost events, throttled alerts): its `Operation`."""

    line: int
    operation: str


def reread(alert: Alert) -> Event:
    """What the reader makes of an alert of ours."""
    return _event(msgspec.to_builtins(alert))


def read_events(lines: Iterable[str | bytes]) -> Iterator[Event | BadLine | Notice]:
    """Every event of a JSON Lines text, in order, and the notices between them; empty lines are passed over."""
    for number, line in enumerate(lines, 1):
        text = line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line
        if not text.strip():
            continue
        try:
            fields = _fields(text)
            notice = _notice(fields)
            yield Notice(number, notice) if notice else msgspec.structs.replace(_event(fields), line=number)
        except DecodeError as error:
            yield BadLine(number, str(error))


def parse_event(data: bytes) -> Event:
    """The event in one JSON object; DecodeError says what is missing or wrong."""
    fields = _fields(data)
    if notice := _notice(fields):
        raise DecodeError(f"expected an event: there is nothing to judge in a notice of the pipeline, got `{notice}`")
    return _event(fields)


def _fields(data: bytes) -> dict[str, Any]:
    try:
        decoded = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"expected one JSON object with KubeArmor's log fields, got {error}") from error
    if not isinstance(decoded, dict):
        raise DecodeError(f"expected one JSON object with KubeArmor's log fields, got {type(decoded).__name__}")
    # The agent's own log file has the same names in another case: `uid`, `hostPID`, `atags`.
    found = {_KEYS.get(str(key).lower(), str(key)): value for key, value in decoded.items() if key not in _NAMES}
    return found | {key: value for key, value in decoded.items() if key in _NAMES}


def _notice(fields: dict[str, Any]) -> str:
    """What a SystemEvent is about, "" for everything else."""
    return (_text(fields, "Operation") or "SystemEvent") if fields.get("Type") == "SystemEvent" else ""


def _event(fields: dict[str, Any]) -> Event:
    behaviour, arguments = _behaviour(fields)
    event = Event(identity=_identity(fields), behaviour=behaviour, arguments=arguments)
    return event if fields.get("Judged") is None else judged(event, fields["Judged"])


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key)
    if value is None:
        return ""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    raise DecodeError(f"expected text in `{key}`, got {type(value).__name__}")


def _number(fields: dict[str, Any], key: str, default: int = 0) -> int:
    value = fields.get(key, default)
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise DecodeError(f"expected a number in `{key}`, got {type(value).__name__}")
    return value & 0xFFFFFFFF


def _member(value: Any, key: str) -> str:
    """A text inside of an object, whatever the case of its key."""
    found = {name.lower(): text for name, text in value.items()} if isinstance(value, dict) else {}
    return _text({key: found.get(key.lower())}, key)


def _mapping(fields: dict[str, Any], key: str) -> dict[str, str]:
    value = fields.get(key) or {}
    if isinstance(value, str):
        # `k=v,k=v`; the value may hold anything but a comma.
        items = (part.partition("=") for part in value.split(",") if part.strip())
        return {name.strip(): text.strip() for name, _, text in items}
    if isinstance(value, dict):
        return {str(name): str(text) for name, text in value.items()}
    raise DecodeError(f"expected `k=v,k=v` or an object in `{key}`, got {type(value).__name__}")


def _identity(fields: dict[str, Any]) -> Identity:
    node = _text(fields, "HostName")
    labels = _mapping(fields, "Labels")
    annotations = _mapping(fields, "Annotations")
    host = _text(fields, "Type") in _HOST_TYPES or not any(fields.get(key) for key in _CONTAINER_KEYS)
    if host:
        return Identity(
            kind=Kind.NODE,
            node=node,
            uid=node,
            node_labels=_mapping(fields, "NodeLabels") | labels,
            annotations=annotations,
            links=_mapping(fields, "Links"),
        )
    namespace = _text(fields, "NamespaceName") or UNORCHESTRATED
    owner = fields.get("Owner")
    orchestrated = namespace != UNORCHESTRATED
    # Outside Kubernetes the container's name stands there as well.
    pod = _text(fields, "PodName")
    pod = "" if not orchestrated and pod == _text(fields, "ContainerName") else pod
    return Identity(
        kind=Kind.CONTAINER,
        node=node,
        uid=_text(fields, "ContainerID") or f"{namespace}/{_text(fields, 'PodName')}/{_text(fields, 'ContainerName')}",
        container_name=_text(fields, "ContainerName"),
        image=_text(fields, "ContainerImage"),
        namespace=namespace,
        pod=pod,
        owner=Owner(_member(owner, "Ref"), _member(owner, "Name"), _member(owner, "Namespace")),
        labels=labels,
        annotations=annotations,
        namespace_annotations=_mapping(fields, "NamespaceAnnotations"),
        node_labels=_mapping(fields, "NodeLabels"),
        links=_mapping(fields, "Links"),
        orchestrated=orchestrated,
        cluster=_text(fields, "ClusterName") or "default",
    )


def _behaviour(fields: dict[str, Any]) -> tuple[Behaviour, tuple[str, ...] | None]:
    class_ = _text(fields, "Operation")
    data = word.pairs(_text(fields, "Data"))
    for key, value in (fields.get("EventData") or {}).items() if isinstance(fields.get("EventData"), dict) else ():
        data.setdefault(str(key).lower(), str(value))
    source = _text(fields, "Source").partition(" ")[0]
    result = word.result(fields.get("Result"))
    common: dict[str, Any] = {
        "result": result,
        "enforcer": _enforcer(fields, data, result),
        "uid": _number(fields, "UID"),
        "owner": _number(fields, "OID", NO_OWNER),
        "tty": _text(fields, "TTY") not in ("", "?", "none"),
        "executable": _text(fields, "ProcessName") or source,
        "parent": _text(fields, "ParentProcessName"),
        "script": _text(fields, "SourceScript"),
        "syscall_name": data.get("syscall", "").lower().removeprefix("sys_"),
    }
    match class_:
        case "Process":
            if word.CALLS.get(common["syscall_name"]) is Operation.PTRACE:
                # The agent counts tracing among processes.
                return _syscall(fields, data, common), None
            return _process(fields, data, common, source)
        case "File":
            return _file(fields, data, common), None
        case "Network" | "NetworkFirewall":
            return _network(fields, data, common), None
        case "Capabilities" | "Capability":
            name = _text(fields, "Resource") or _text(fields, "Data").rpartition(" ")[2]
            return Behaviour(operation=Operation.CAPABLE, detail=name, resource=name, **common), None
        case "Syscall":
            return _syscall(fields, data, common), None
        case "Device":
            return _device(fields, data, common), None
        case _:
            known = "Process, File, Network, NetworkFirewall, Capabilities, Syscall or Device"
            raise DecodeError(f"expected {known} in `Operation`, got `{class_}`")


def _enforcer(fields: dict[str, Any], data: dict[str, str], result: int) -> Backend:
    name = _text(fields, "Enforcer").lower()
    if name.startswith("preset-"):
        return Backend.BPF_LSM
    found = word.ENFORCERS.get(name, Backend.OBSERVER)
    if found is Backend.OBSERVER and not name and "lsm" in data:
        found = Backend.BPF_LSM
    # Enforcers sign what they let pass too; only a denial was theirs. A kill is a denial of a call that passed.
    denied = result == 0 if found is Backend.SIGNAL else result in (-1, -13)
    return found if denied else Backend.OBSERVER


def _operation(data: dict[str, str], default: Operation) -> Operation:
    for key in ("lsm", "kprobe", "kfunc"):
        if data.get(key, "").upper() in word.HOOKS:
            return word.HOOKS[data[key].upper()]
    found = word.CALLS.get(data.get("syscall", "").lower().removeprefix("sys_"), default)
    if found is Operation.UNLINK and "AT_REMOVEDIR" in data.get("flags", ""):
        return Operation.RMDIR
    return found


def _absolute(path: str, fields: dict[str, Any]) -> str:
    cwd = _text(fields, "Cwd")
    if path.startswith(("/", "memfd:")) or not path or not cwd.startswith("/"):
        return path
    return posixpath.normpath(posixpath.join(cwd, path))


def _process(
    fields: dict[str, Any], data: dict[str, str], common: dict[str, Any], source: str
) -> tuple[Behaviour, tuple[str, ...] | None]:
    text = _text(fields, "Resource").strip()
    image, script = _text(fields, "ProcessName"), _text(fields, "Script")
    # A path may hold blanks; ProcessName is the new image, so it says where the arguments begin. So does the script it runs.
    told = script or image
    if told and (text == told or text.startswith(told + " ")):
        path, rest = told, text[len(told) :].split()
        name = path
    else:
        name, *rest = text.split() or [image]
        path = image if image.rpartition("/")[2] in MULTI_CALL else name
    if rest[-1:] == [CUT_MARK]:
        rest[-1] = CUT
    operation = _operation(data, Operation.EXEC)
    session = fields.get("ExecEvent")
    from_outside = _member(session, "ExecID") not in ("", "0")
    common |= {"executable": source or common["parent"], "parent": common["parent"] or source}
    behaviour = Behaviour(
        operation=operation if operation is Operation.MMAP else Operation.EXEC,
        access=Access.EXEC,
        resource=_absolute(path, fields),
        resource2=image if script else "",
        detail="setns" if from_outside else "",
        args=(4, 0x20) if operation is Operation.MMAP else (0, 0),
        **common,
    )
    return behaviour, (name, *rest)


def _file(fields: dict[str, Any], data: dict[str, str], common: dict[str, Any]) -> Behaviour:
    text = _text(fields, "Resource").strip()
    operation = _operation(data, Operation.OPEN)
    second = _text(fields, "Resource2")
    if not second and operation in (Operation.RENAME, Operation.LINK) and " " in text:
        text, _, second = text.partition(" ")
    path = _absolute(text, fields)
    flags = "O_RDWR" if data.get("lsm", "").upper() == "FILE_PERMISSION" else data.get("flags", "")
    own = path.startswith((f"/proc/{_text(fields, 'PID') or '-'}/", "/proc/self/"))
    return Behaviour(
        operation=operation,
        access=word.access(operation, flags) | (Access.OWN if own else 0),
        resource=path,
        resource2=_absolute(second, fields),
        **common,
    )


def _network(fields: dict[str, Any], data: dict[str, str], common: dict[str, Any]) -> Behaviour:
    text = _text(fields, "Resource").strip()
    found = word.pairs(text)
    names = [value for value in (data.get("domain", ""), found.get("domain", "")) if value]
    family = next((name for name in names if name.upper().startswith("AF_")), found.get("sa_family", ""))
    asked = next((name for name in names if not name.upper().startswith("AF_")), "")
    operation = _operation(data, Operation.SOCKET if "sa_family" not in found else Operation.CONNECT)
    if asked or operation is Operation.DNS:
        return Behaviour(operation=Operation.DNS, detail=asked or text, resource=text, **common)
    direction = text.upper()
    if direction in ("INGRESS", "EGRESS") or "destinationip" in data:
        ingress = direction == "INGRESS"
        operation = Operation.ACCEPT if ingress else Operation.CONNECT
        found = {
            "remoteip": data.get("sourceip" if ingress else "destinationip", ""),
            "port": data.get("destinationport", ""),
            "protocol": data.get("protocol", ""),
        }
    elif "remoteip" in found and operation is Operation.SOCKET:
        operation = Operation.CONNECT
    address = found.get("remoteip") or found.get("sin_addr") or found.get("sin6_addr") or found.get("sun_path", "")
    hook = (data.get("kprobe") or data.get("kfunc") or "").lower()
    protocol = word.number(found.get("protocol") or data.get("protocol") or hook.partition("_")[0], word.PROTOCOLS)
    kind = word.number(found.get("type") or data.get("type") or "", word.TYPES)
    number = word.number(family, word.FAMILIES)
    if not number and address:
        number = 10 if ":" in address else 1 if "sun_path" in found else 2
    return Behaviour(
        operation=operation,
        family=number,
        socket_type=kind or {6: 1, 17: 2}.get(protocol, 0),
        protocol=protocol,
        address=address,
        port=word.port(found.get("port") or found.get("sin_port") or found.get("sin6_port") or ""),
        resource=found.get("sun_path", ""),
        **common,
    )


def _syscall(fields: dict[str, Any], data: dict[str, str], common: dict[str, Any]) -> Behaviour:
    natural = word.CALLS.get(common["syscall_name"], Operation.CALL)
    # KubeArmor sends the call beside the file event of the same thing: only system call rules are asked about it here.
    operation = natural if class_of(natural) is Class.SYSCALL else Operation.CALL
    path = data.get("target") or _text(fields, "Resource").partition(" ")[0]
    said: dict[str, Any] = {
        "resource": _absolute(path, fields),
        "resource2": _text(fields, "Resource2") or data.get("source", ""),
    }
    row = WATCHED.get(common["syscall_name"])
    if row is not None and row.words:
        given = {member: data[name] for member, name in words(row) if name in data}
        said["resource2"] = given.get("resource2") or said["resource2"]
        if texts(row):
            said |= {"resource": "", "detail": given.get("resource", "")}
        elif "resource" in given:
            said["resource"] = _absolute(given["resource"], fields)
        said["flags"] = _small(given.get("flags", ""))
        said["args"] = (_small(given.get("arg0", "")), _small(given.get("arg1", "")))
    return Behaviour(operation=operation, **said, **common)


def _device(fields: dict[str, Any], data: dict[str, str], common: dict[str, Any]) -> Behaviour:
    text = _text(fields, "Resource").strip()
    name = data.get("class") or text.removeprefix("USB").strip()
    numbers = [_small(data.get(key, "")) for key in ("subclass", "protocol", "level")]
    return Behaviour(
        operation=Operation.DEVICE,
        resource=text,
        flags=pack(class_number(name) or 0, numbers[0], numbers[1]),
        args=(numbers[2], 0),
        **common,
    )


def _small(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        return 0
