# SPDX-License-Identifier: Apache-2.0
"""The AsyncAPI document and the schemas in it, against AsyncAPI's own schema and against values as they travel."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft7Validator, Draft202012Validator

from hauberk.topic_schemas import VALUES, asyncapi, json_schema
from processors.alert_record import record_of
from schemas import alert, telemetry
from schemas.alert import Alert
from schemas.behaviour import Behaviour
from schemas.frame import FrameHeader
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation
from schemas.telemetry import Enriched, ProcessContext, TelemetryFrame
from schemas.topics import TOPICS
from schemas.verdict import Action, RuleRef, Verdict

DOCUMENT = json.loads(Path(__file__).with_name("asyncapi-3.0.0.json").read_text())
ALERT = Alert(
    Timestamp=1, UpdatedTime="2026-01-01T00:00:00.000001Z", HostName="node 1/ü", EventID="n:b:7", Labels="app=web", Count=2,
    EventData={"syscall": "SYS_OPENAT"}, PolicyName="p", Severity="5", Action="Audit", ATags=["a"], Operation="File",
)  # fmt: skip
FRAME = TelemetryFrame(
    header=FrameHeader(node="n", boot="b", run="r", number=0, clock_offset_ns=5, events=1, lost=(0, 1)),
    identities=(Identity(kind=Kind.CONTAINER, node="n", uid="u", cgroups=(7,), labels={"a": "b"}),),
    behaviours=(
        Enriched(
            behaviour=Behaviour(id=2**63, operation=Operation.OPEN, access=Access.READ | Access.WRITE, result=-13),
            identity=0, verdict=Verdict(action=Action.AUDIT, policy="p", rule=RuleRef("p")),
        ),
    ),
    processes=(ProcessContext(process=3, arguments=("a", "b")),), rows=b"\0" * 64,
)  # fmt: skip


@pytest.mark.parametrize("topics", [TOPICS, TOPICS[:1], TOPICS[-1:]], ids=["all", "events.raw", "dead"])
def test_the_document_is_asyncapi(topics: Any) -> None:
    errors = [f"{list(error.absolute_path)}: {error.message}" for error in Draft7Validator(DOCUMENT).iter_errors(asyncapi(topics))]  # fmt: skip
    assert errors == []


def _without_address(document: Any) -> None:
    document["channels"]["alerts"]["address"] = 5


def _other_action(document: Any) -> None:
    document["operations"]["read_alerts"]["action"] = "read"


def _wrong_headers(document: Any) -> None:
    document["components"]["messages"]["alerts"]["headers"] = {"type": "objekt"}


@pytest.mark.parametrize("damage", [_without_address, _other_action, _wrong_headers])
def test_that_a_wrong_document_is_found(damage: Callable[[Any], None]) -> None:
    document = copy.deepcopy(asyncapi())
    damage(document)
    assert list(Draft7Validator(DOCUMENT).iter_errors(document))


def as_json(value: Any) -> Any:
    """msgpack's values as JSON would have them: bytes in base64."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return [as_json(one) for one in value] if isinstance(value, list | tuple) else value


def check(name: str, value: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(json_schema(name)).iter_errors(value)]


@pytest.mark.parametrize("name", VALUES)
def test_every_schema_is_one(name: str) -> None:
    Draft202012Validator.check_schema(json_schema(name))


def test_values_are_as_the_schemas_say() -> None:
    assert check("alerts", msgspec.json.decode(alert.encode_alert(ALERT))) == []
    assert check("alerts", {"Timestamp": "one"})
    travelling = msgspec.msgpack.decode(telemetry.encode(FRAME))
    assert check("telemetry", as_json(travelling)) == [], (
        "accesses are flags: READ and WRITE together are none of the list"
    )
    assert check("telemetry", as_json(travelling[:4])), "five positions are always there"


def test_positions_and_numbers_have_names() -> None:
    known = json_schema("telemetry")["$defs"]
    assert [one["title"] for one in known["TelemetryFrame"]["prefixItems"]] == list(TelemetryFrame.__struct_fields__)
    assert [one["title"] for one in known["Behaviour"]["prefixItems"]] == list(Behaviour.__struct_fields__)
    operations = dict(zip(known["Operation"]["x-enum-varnames"], known["Operation"]["enum"], strict=True))
    assert operations == {one.name: one.value for one in Operation}
    assert known["Access"]["x-flags"]["WRITE"] == 2
    rows = known["TelemetryFrame"]["prefixItems"][4]["x-record"]
    assert (rows["bytes"], rows["fields"]["pid"]) == (64, {"offset": 40, "type": "u32"})


def test_an_alert_is_a_cloud_event_in_binary_mode() -> None:
    record = record_of(ALERT, "demo/web")
    headers = dict(record.headers)
    assert list(headers) == list(alert.HEADERS)
    assert list(headers) == asyncapi()["components"]["messages"]["alerts"]["headers"]["required"]
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"] == b"n:b:7"
    assert headers["ce_source"] == b"/hauberk/nodes/node%201%2F%C3%BC", "a URI reference"
    assert headers["ce_type"] == b"io.hauberk.alert.v1"
    assert headers["ce_time"] == b"2026-01-01T00:00:00.000001Z"
    assert headers["ce_subject"] == record.key == b"demo/web"
    assert headers["content-type"] == b"application/json"
    assert record_of(ALERT, "demo/web") == record
