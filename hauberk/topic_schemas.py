# SPDX-License-Identifier: Apache-2.0
"""What the values of the topics look like, for programs that read them: JSON Schema of each, AsyncAPI of all.

Made from the structs, so that there is no copy to keep. Called by `hauberk topic schema` and by `docs/generate.py`, whose
page docs/reference/topics.md holds a checksum of each schema: a change of the wire format is seen in a review.
What JSON Schema has no word for is said beside it: the names of an array's positions are their titles, the names of numbers
stand under `x-enum-varnames` and `x-flags`, tables in bytes under `x-record`.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Any, Final

import msgspec
from msgspec import inspect

from bus.contract import PATIENT
from schemas import alert
from schemas.alert import Alert
from schemas.claim import NodeClaim
from schemas.cluster import Fact
from schemas.enforcement import Plan, Receipt
from schemas.frame import FOLDED, Frame
from schemas.identity import Identity
from schemas.kernel import OCCURRENCE, RING_HEADER, STRIDE
from schemas.layout import Layout
from schemas.progress import Progress
from schemas.summary import Summary
from schemas.telemetry import TelemetryFrame
from schemas.topics import ALERTS, EVENTS_RAW, TOPICS, Topic

VALUES: Final[dict[str, Any]] = {
    "events.raw": Frame, "inventory": Identity, "telemetry": TelemetryFrame, "alerts": Alert, "summaries": Summary,
    "enforcement.desired": Plan, "enforcement.status": Receipt, "progress": Progress,
    "nodes": NodeClaim, "cluster": Fact,
}  # fmt: skip
"""Topic name -> the struct of its values; `policies` (documents as they were applied) and `dead` (any bytes) have none."""

_COMPONENTS: Final = "#/components/schemas/{name}"
_FORMAT: Final = "application/schema+json;version=2020-12"


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of the values of the topic `name`, a key of `VALUES`. Array-like structs are arrays."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"hauberk.{name}.v1"}
    found = msgspec.json.schema(VALUES[name])
    _say_names(found["$defs"], VALUES[name])
    return head | found


def asyncapi(topics: Iterable[Topic] = TOPICS) -> dict[str, Any]:
    """AsyncAPI 3.0 of `topics`, complete in itself: schemas stand under `components`."""
    chosen = tuple(topics)
    named = [topic.name for topic in chosen if topic.name in VALUES]
    kinds = [VALUES[name] for name in named]
    payloads, schemas = msgspec.json.schema_components(kinds, ref_template=_COMPONENTS)
    _say_names(schemas, *kinds)
    payload = dict(zip(named, payloads, strict=True))
    channels, messages, operations = {}, {}, {}
    for topic in chosen:
        ident = topic.name.replace(".", "_")
        messages[ident] = _message(topic, payload.get(topic.name))
        channels[ident] = _channel(topic, ident)
        operations[f"read_{ident}"] = {
            "action": "receive", "channel": {"$ref": f"#/channels/{ident}"},
            "summary": f"written by {', '.join(topic.writers)}; read by {', '.join(topic.readers)}",
        }  # fmt: skip
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Hauberk topics", "version": version("hauberk"), "license": {"name": "Apache-2.0"}},
        "defaultContentType": "application/json",
        "channels": channels, "operations": operations, "components": {"messages": messages, "schemas": schemas},
    }  # fmt: skip


def _message(topic: Topic, schema: dict[str, Any] | None) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": topic.name, "contentType": topic.content_type, "summary": topic.value,
        "bindings": {"kafka": {"key": {"type": "string", "description": topic.key}}},
    }  # fmt: skip
    if topic is EVENTS_RAW:
        why = "empty; there when the frame holds nothing that cannot wait for others"
        message["headers"] = {"type": "object", "properties": {PATIENT: {"type": "string", "description": why}}}
    if topic is ALERTS:
        fields = {name: {"type": "string", "description": text} for name, text in alert.HEADERS.items()}
        message["headers"] = {"type": "object", "properties": fields, "required": list(fields)}
    return message if schema is None else message | {"payload": {"schemaFormat": _FORMAT, "schema": schema}}


def _channel(topic: Topic, ident: str) -> dict[str, Any]:
    retention = topic.retention_hours * 3_600_000 if topic.retention_hours else -1
    configuration = {
        "cleanup.policy": topic.cleanup.value.split(","), "retention.ms": retention, "max.message.bytes": topic.record_bytes,
    }  # fmt: skip
    return {
        "address": topic.channel, "description": topic.value,
        "messages": {ident: {"$ref": f"#/components/messages/{ident}"}},
        "bindings": {"kafka": {"partitions": topic.partitions, "topicConfiguration": configuration}},
    }  # fmt: skip


def _say_names(schemas: dict[str, dict[str, Any]], *kinds: type) -> None:
    """Put into `schemas` (by name of a class) what msgspec leaves out, in place."""
    for kind in set(_classes(inspect.multi_type_info(kinds))):
        schema = schemas.get(kind.__name__)
        if schema is None:
            continue
        if issubclass(kind, enum.Flag):
            # As numbers to choose from, a combination would be none of them.
            del schema["enum"]
            schema |= {"type": "integer", "minimum": 0, "x-flags": {one.name: one.value for one in kind}}
        elif issubclass(kind, enum.IntEnum):
            schema["x-enum-varnames"] = [one.name for one in sorted(kind)]
        elif issubclass(kind, msgspec.Struct):
            fields = msgspec.structs.fields(kind)
            for field, item in zip(fields, schema.get("prefixItems", ()), strict=False):
                item["title"] = field.encode_name
                if record := _TABLES.get((kind, field.name)):
                    item["x-record"] = record


def _classes(nodes: Iterable[inspect.Type]) -> Iterator[type]:
    """Structs and enums in a description of types."""
    waiting, seen = list(nodes), set()
    while waiting:
        node = waiting.pop()
        cls = getattr(node, "cls", None)
        if cls is not None:
            if cls in seen:
                continue
            seen.add(cls)
            yield cls
        waiting.extend(field.type for field in getattr(node, "fields", ()))
        single = (getattr(node, name, None) for name in ("type", "item_type", "key_type", "value_type"))
        waiting.extend(one for one in single if isinstance(one, inspect.Type))
        waiting.extend(one for name in ("types", "item_types") for one in getattr(node, name, ()))


def _record(size: int, fields: Iterable[tuple[str, int, str]]) -> dict[str, Any]:
    """Rows of `size` bytes, little-endian on every machine there is: (name, offset, type) of each field."""
    return {"bytes": size, "fields": {name: {"offset": offset, "type": kind} for name, offset, kind in fields}}


def _row(layout: Layout) -> Iterator[tuple[str, int, str]]:
    for field in layout.fields:
        kind = field.ctype if field.count == 1 else f"{field.ctype}[{field.count}]"
        yield field.name, RING_HEADER + layout.offsets[field.name], kind


_ROWS: Final = _record(STRIDE, _row(OCCURRENCE))
_FOLDED: Final = _record(
    FOLDED.size,
    ((name, 8 * index, "u64") for index, name in enumerate(("id", "count", "first", "last", "sequence", "process"))),
)
_TABLES: Final[dict[tuple[type, str], dict[str, Any]]] = {
    (Frame, "occurrences"): _ROWS, (Frame, "folded"): _FOLDED,
    (TelemetryFrame, "rows"): _ROWS, (TelemetryFrame, "folded"): _FOLDED,
}  # fmt: skip
