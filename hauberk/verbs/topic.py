# SPDX-License-Identifier: Apache-2.0
"""`hauberk topic list|tail|groups`: the bus as a consumer of Kafka topics would see it; `schema`: what its values look like.

`create|check|alter` and `acls` are for a Kafka cluster (`cluster_topics`, `topic_grants`).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from hauberk.client import add_output, sub_parser, with_bus
from hauberk.client import parser as verb_parser
from hauberk.output import as_json, plain, show

if TYPE_CHECKING:
    from bus.contract import Bus, Delivery


def parser() -> argparse.ArgumentParser:
    """Eight sub-verbs."""
    from schemas.topics import BY_NAME, Role

    made = verb_parser("topic", "List the topics of the bus, or print their records as they come.")
    below = made.add_subparsers(dest="what", required=True, metavar="list|tail|groups|schema|create|check|alter|acls")
    add_output(sub_parser(below, "list", "the topic table, with how many records each has"))
    add_output(sub_parser(below, "groups", "consumer groups, their offsets and their lag"))
    tail = sub_parser(below, "tail", "print records, one JSON object a line")
    tail.add_argument("topic", choices=sorted(BY_NAME), help="name without prefix and version")
    tail.add_argument("--from", dest="start", choices=("latest", "earliest"), default="latest", help="where to begin")
    tail.add_argument("--limit", type=int, metavar="N", help="end after N records")
    tail.add_argument("--until-quiet", type=float, metavar="SECONDS", help="end when nothing came for so long")
    schema = sub_parser(below, "schema", "print the JSON Schema of a topic's values, or AsyncAPI of the topics")
    schema.add_argument(
        "topic", nargs="?", choices=sorted(BY_NAME), help="name without prefix and version; default all"
    )
    schema.add_argument(
        "-f", "--format", choices=("json", "asyncapi"), default="json", help="JSON Schema or AsyncAPI 3.0"
    )
    for name, text in _CLUSTER.items():
        made_of = sub_parser(below, name, text)
        add_output(made_of)
        if name == "create":
            made_of.add_argument("--alter", action="store_true", help="set what differs as well, as `alter` does")
    acls = sub_parser(below, "acls", "what each role's account must be granted on the Kafka cluster")
    acls.add_argument(
        "--role", action="append", choices=[role.value for role in Role], help="only this role; repeatable"
    )
    acls.add_argument("--principal", metavar="TYPE:NAME", help="the account; default User:PREFIX-ROLE")
    add_output(acls, "commands")
    return made


_CLUSTER: Final = {
    "create": "make the topics that a Kafka cluster lacks",
    "check": "compare the topics of a Kafka cluster with the topic table; 1 when something differs",
    "alter": "set what differs, as far as nothing is lost by it",
}


def decoded(delivery: Delivery) -> Any:
    """A record's value in words: JSON as it is, msgpack through its struct, anything else as text."""
    import msgspec

    from schemas import enforcement, frame, identity, progress, summary, telemetry

    value = delivery.record.value
    name = delivery.topic.name
    if value is None:
        return None
    match name:
        case "alerts" | "policies":
            return msgspec.json.decode(value)
        case "events.raw":
            found = frame.decode(value)
            return {
                "header": plain(found.header),
                "occurrences": len(found.occurrences) // 64,
                "definitions": len(frame.definitions(found.definitions)),
                "folded": len(found.folded) // frame.FOLDED.size,
            }
        case "inventory":
            return plain(identity.decode(value))
        case "telemetry":
            return plain(telemetry.decode(value)) | {"rows": len(telemetry.decode(value).rows) // 64}
        case "summaries":
            return plain(summary.decode(value))
        case "enforcement.desired":
            return plain(enforcement.decode_plan(value))
        case "enforcement.status":
            return plain(enforcement.decode_receipt(value))
        case "progress":
            return plain(progress.decode(value))
    return value.decode("utf-8", "backslashreplace")


def _shown(delivery: Delivery) -> Any:
    """`decoded`, or what is wrong with it: who looks for a bad record must not be stopped by it."""
    import msgspec

    from schemas.errors import HauberkError

    try:
        return decoded(delivery)
    except (HauberkError, msgspec.MsgspecError, ValueError, RecursionError) as error:
        return {"unreadable": str(error), "bytes": len(delivery.record.value or b"")}


async def _tail(bus: Bus, given: argparse.Namespace) -> int:
    import orjson

    from bus.end_as_of_now import EndAsOfNow
    from schemas.topics import BY_NAME

    end = await EndAsOfNow.of(bus, (BY_NAME[given.topic],))
    left = given.limit if given.limit is not None else -1
    async with bus.subscribe([BY_NAME[given.topic]], None, given.start) as subscription:
        waited = 0.0
        while left:
            batch = await subscription.take(left if left > 0 else 500, 0.5)
            waited = 0.0 if batch else waited + 0.5
            for delivery in batch:
                line = {
                    "topic": delivery.topic.channel,
                    "partition": delivery.partition,
                    "offset": delivery.offset,
                    "timestamp": delivery.record.timestamp_ms,
                    "key": delivery.record.key.decode("utf-8", "backslashreplace"),
                    "headers": {
                        name: value.decode("utf-8", "backslashreplace") for name, value in delivery.record.headers
                    },
                    "value": _shown(delivery),
                }
                sys.stdout.write(orjson.dumps(line, option=orjson.OPT_NON_STR_KEYS).decode() + "\n")
                left -= 1
            sys.stdout.flush()
            # Before the end as of the start it is the bus that is slow, and quiet says nothing.
            if given.until_quiet is not None and end.reached(subscription.position) and waited >= given.until_quiet:
                return 0
    return 0


async def _list(bus: Bus, given: argparse.Namespace) -> str:
    from schemas.topics import PREFIX, TOPICS

    prefix = getattr(getattr(bus, "settings", None), "prefix", PREFIX)
    counts, behind = await asyncio.gather(asyncio.gather(*(bus.count(topic) for topic in TOPICS)), _behind(bus))
    ends = await asyncio.gather(*(bus.end(topic) for topic in TOPICS))
    counted = list(zip(TOPICS, counts, ends, strict=True))
    rows = [
        (topic.name, topic.key, count, topic.cleanup.value, _lags(behind.get(topic.name, {})), topic.named(prefix),
         ",".join(topic.writers), ",".join(topic.readers), topic.value)
        for topic, count, _ in counted
    ]  # fmt: skip
    value = [
        plain(topic) | {"channel": topic.named(prefix), "records": count, "end": end, "lag": behind.get(topic.name, {})}
        for topic, count, end in counted
    ]
    return show(value, ("NAME", "KEY", "RECORDS", "CLEANUP", "LAG"), rows, given.output, wide=("CHANNEL", "WRITERS", "READERS", "VALUE"),
                names=[f"topic/{topic.name}" for topic in TOPICS], headings=not given.no_headers)  # fmt: skip


async def _behind(bus: Bus) -> dict[str, dict[str, int]]:
    """Topic -> group -> records that it has not committed."""
    found: dict[str, dict[str, int]] = {}
    for group in sorted(await bus.groups()):
        for topic, many in (await bus.lag(group)).items():
            found.setdefault(topic, {})[group] = many
    return found


def _lags(of: dict[str, int]) -> str:
    return " ".join(f"{group}={many}" for group, many in of.items())


async def _groups(bus: Bus, given: argparse.Namespace) -> str:
    rows: list[tuple[object, ...]] = []
    value = []
    for group, offsets in sorted((await bus.groups()).items()):
        behind = await bus.lag(group)
        for topic, offset in sorted(offsets.items()):
            rows.append((group, topic, offset, behind.get(topic, 0)))
            value.append({"group": group, "topic": topic, "offset": offset, "lag": behind.get(topic, 0)})
    return show(value, ("GROUP", "TOPIC", "OFFSET", "LAG"), rows, given.output, names=sorted({f"group/{row[0]}" for row in rows}),
                headings=not given.no_headers)  # fmt: skip


def _schema(name: str | None, form: str) -> Any:
    """One schema, or of all topics an object of name to schema; an AsyncAPI document."""
    from hauberk.topic_schemas import VALUES, asyncapi, json_schema
    from schemas.errors import SettingsError
    from schemas.topics import BY_NAME, TOPICS

    if form == "asyncapi":
        return asyncapi(TOPICS if name is None else (BY_NAME[name],))
    if name is None:
        return {one: json_schema(one) for one in VALUES}
    if name not in VALUES:
        raise SettingsError(
            f"expected a topic whose values have a schema ({', '.join(VALUES)}), got `{name}`: {BY_NAME[name].value}"
        )
    return json_schema(name)


def main(argv: Sequence[str]) -> int:
    """Run the sub-verb; `schema` and `acls` open no bus."""
    given = parser().parse_args(argv)
    if given.what in _CLUSTER:
        from hauberk import cluster_topics
        from hauberk.configuration import kafka_settings

        what = {given.what, "alter"} if getattr(given, "alter", False) else {given.what}
        code, text = asyncio.run(cluster_topics.run(kafka_settings(given), what, given))
        print(text)
        return code
    if given.what == "acls":
        from hauberk import topic_grants
        from hauberk.configuration import counting_groups, kafka_settings

        print(topic_grants.shown(kafka_settings(given), counting_groups(given)[0], given))
        return 0
    if given.what == "schema":
        print(as_json(_schema(given.topic, given.format)))
        return 0
    if given.what == "tail":
        return with_bus(given, lambda bus: _tail(bus, given))
    print(with_bus(given, lambda bus: _list(bus, given) if given.what == "list" else _groups(bus, given)))
    return 0
