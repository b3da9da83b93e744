# SPDX-License-Identifier: Apache-2.0
"""What the values of the topics look like, for programs that read them: JSON Schema of each, AsyncAPI of all.

Made from the structs, so that there is no copy to keep. Called by `hauberk topic schema` and by `docs/generate.py`, whose
page docs/reference/topics.md holds a checksum of each schema: a change of the wire format is seen in a review.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any, Final

import msgspec

from schemas.alert import Alert
from schemas.enforcement import Plan, Receipt
from schemas.frame import Frame
from schemas.identity import Identity
from schemas.progress import Progress
from schemas.summary import Summary
from schemas.telemetry import TelemetryFrame
from schemas.topics import TOPICS, Topic

VALUES: Final[dict[str, type]] = {
    "events.raw": Frame, "inventory": Identity, "telemetry": TelemetryFrame, "alerts": Alert, "summaries": Summary,
    "enforcement.desired": Plan, "enforcement.status": Receipt, "progress": Progress,
}  # fmt: skip
"""Topic name -> the struct of its values; `policies` (documents as they were applied) and `dead` (any bytes) have none."""

_COMPONENTS: Final = "#/components/schemas/{name}"
_FORMAT: Final = "application/schema+json;version=2020-12"


def json_schema(name: str) -> dict[str, Any]:
    """JSON Schema (2020-12) of the values of the topic `name`, a key of `VALUES`. Array-like structs are arrays."""
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"hauberk.{name}.v1"}
    return head | msgspec.json.schema(VALUES[name])


def asyncapi(topics: Iterable[Topic] = TOPICS) -> dict[str, Any]:
    """AsyncAPI 3.0 of `topics`, complete in itself: schemas stand under `components`."""
    chosen = tuple(topics)
    named = [topic.name for topic in chosen if topic.name in VALUES]
    payloads, schemas = msgspec.json.schema_components([VALUES[name] for name in named], ref_template=_COMPONENTS)
    payload = dict(zip(named, payloads, strict=True))
    channels, messages, operations = {}, {}, {}
    for topic in chosen:
        ident = topic.name.replace(".", "_")
        messages[ident] = _message(topic, payload.get(topic.name))
        channels[ident] = _channel(topic, ident)
        operations[f"read_{ident}"] = {"action": "receive", "channel": {"$ref": f"#/channels/{ident}"}}
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "Hauberk topics", "version": version("hauberk"), "license": {"name": "Apache-2.0"}},
        "channels": channels, "operations": operations, "components": {"messages": messages, "schemas": schemas},
    }  # fmt: skip


def _message(topic: Topic, schema: dict[str, Any] | None) -> dict[str, Any]:
    message: dict[str, Any] = {
        "name": topic.name, "contentType": topic.content_type, "summary": topic.value,
        "bindings": {"kafka": {"key": {"type": "string", "description": topic.key}}},
    }  # fmt: skip
    return message if schema is None else message | {"payload": {"schemaFormat": _FORMAT, "schema": schema}}


def _channel(topic: Topic, ident: str) -> dict[str, Any]:
    retention = topic.retention_hours * 3_600_000 if topic.retention_hours else -1
    configuration = {"cleanup.policy": topic.cleanup.value.split(","), "retention.ms": retention}
    return {
        "address": topic.channel, "description": topic.value,
        "messages": {ident: {"$ref": f"#/components/messages/{ident}"}},
        "bindings": {"kafka": {"partitions": topic.partitions, "topicConfiguration": configuration}},
    }  # fmt: skip
