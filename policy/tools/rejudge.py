# SPDX-License-Identifier: Apache-2.0
"""An alert judged again: what its words leave out of the event, and how that is put back. Pure.

KubeArmor's fields are written for people: arguments joined by blanks, a protocol without its family, no annotations. `unsaid` compares
what the reader makes of an alert with what was judged and gives the difference, which travels in the alert as `Judged`; `judged`
puts it back. So an alert gives the verdict it carries by construction, and mostly has no `Judged` at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from policy.tools.event import Event
from schemas.alert import Judged
from schemas.errors import DecodeError
from schemas.identity import Identity, Kind
from schemas.links import MULTI_CALL
from schemas.operations import Access, Backend, Operation

if TYPE_CHECKING:
    from schemas.behaviour import Behaviour

_BEHAVIOUR: Final = (
    "operation", "access", "result", "enforcer", "uid", "owner", "tty", "executable", "parent", "resource", "resource2", "flags",
    "syscall_name", "args", "family", "socket_type", "protocol", "address", "port", "detail",
)  # fmt: skip
_IDENTITY: Final = ("container_name", "namespace", "orchestrated", "labels", "annotations", "namespace_annotations")
_DECIDE: Final = frozenset({Operation.DEVICE})
"""Operations whose `flags` a policy can decide on; those of others are only reported."""
_READ: Final = frozenset(
    {"kubearmor-policy", "kubearmor-file-posture", "kubearmor-network-posture", "kubearmor-capabilities-posture"}
)
"""Annotations that a verdict depends on."""


def unsaid(event: Event, identity: Identity, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Judged | None:
    """What `event`, as it was read from an alert, lacks of what was judged; None when nothing."""
    found: dict[str, Any] = {}
    for name in _BEHAVIOUR:
        value = getattr(behaviour, name)
        if value != getattr(event.behaviour, name) and (name != "flags" or behaviour.operation in _DECIDE):
            found[name] = int(value) if isinstance(value, Operation | Access | Backend) else value
    if behaviour.operation is Operation.EXEC and arguments is not None:
        base = (behaviour.resource2 or behaviour.resource).rpartition("/")[2]
        if _argv(arguments, base) != _argv(event.arguments or (), base):
            found["arguments"] = arguments
    if identity.kind is Kind.CONTAINER:
        for name in _IDENTITY:
            value = _relevant(name, getattr(identity, name))
            if value != getattr(event.identity, name):
                found[name] = value
    elif (value := _relevant("annotations", identity.annotations)) != event.identity.annotations:
        found["annotations"] = value
    if identity.kind is not Kind.CONTAINER and identity.node_labels != event.identity.node_labels:
        found["node_labels"] = identity.node_labels
    return Judged(**found) if found else None


def judged(event: Event, value: object) -> Event:
    """`event` with what `Judged` of its line says. DecodeError when that is none."""
    try:
        said = msgspec.convert(value, Judged)
        given = {name: getattr(said, name) for name in said.__struct_fields__ if getattr(said, name) is not None}
        behaviour = {name: given[name] for name in _BEHAVIOUR if name in given}
        for name, kind in (("operation", Operation), ("access", Access), ("enforcer", Backend)):
            if name in behaviour:
                behaviour[name] = kind(behaviour[name])
    except (msgspec.ValidationError, ValueError) as error:
        raise DecodeError(
            f"expected what was judged in `Judged`, as an alert of Hauberk has it, got {error}"
        ) from error
    identity = {name: given[name] for name in (*_IDENTITY, "node_labels") if name in given}
    return msgspec.structs.replace(
        event,
        behaviour=msgspec.structs.replace(event.behaviour, **behaviour),
        identity=msgspec.structs.replace(event.identity, **identity),
        arguments=given.get("arguments", event.arguments),
    )


def _argv(arguments: tuple[str, ...], base: str) -> tuple[str, ...]:
    """What rules look at: the program's own name counts only where one image is many programs."""
    name = arguments[0].rpartition("/")[2] if arguments and base in MULTI_CALL else ""
    return (name, *arguments[1:])


def _relevant(name: str, value: Any) -> Any:
    return {key: text for key, text in value.items() if key in _READ} if "annotations" in name else value
