# SPDX-License-Identifier: Apache-2.0
"""`hauberk logs`: alerts and telemetry as they come, with karmor's filters (kubearmor.md section 6.3)."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from hauberk.client import labels, with_bus
from hauberk.client import parser as verb_parser
from schemas.errors import DecodeError, SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus, Delivery
    from schemas.alert import Log

FIELDS: Final = {
    "namespace": ("NamespaceName", re.IGNORECASE),
    "operation": ("Operation", re.IGNORECASE),
    "log_type": ("Type", re.IGNORECASE),
    "container": ("ContainerName", re.IGNORECASE),
    "pod": ("PodName", re.IGNORECASE),
    "resource": ("Resource", 0),
    "source": ("Source", 0),
    "policy": ("PolicyName", re.IGNORECASE),
    "action": ("Action", re.IGNORECASE),
}
"""Option -> field and regular expression flags: case counts only for source and resource, as in karmor."""


def parser() -> argparse.ArgumentParser:
    """Filters and forms."""
    made = verb_parser("logs", "Follow alerts and telemetry. Filters are regular expressions, searched for.")
    made.add_argument("--log-filter", "--logFilter", choices=("policy", "system", "all"), default="policy",
                      help="policy: alerts; system: telemetry; all: both")  # fmt: skip
    made.add_argument("-n", "--namespace", metavar="REGEX", help="NamespaceName")
    made.add_argument("--operation", metavar="REGEX", help="Process, File, Network, ...")
    made.add_argument("--log-type", "--logType", metavar="REGEX", help="MatchedPolicy, ContainerLog, HostLog, ...")
    made.add_argument("--container", metavar="REGEX", help="ContainerName")
    made.add_argument("--pod", metavar="REGEX", help="PodName")
    made.add_argument("--resource", metavar="REGEX", help="Resource (case counts)")
    made.add_argument("--source", metavar="REGEX", help="Source (case counts)")
    made.add_argument("--policy", metavar="REGEX", help="PolicyName")
    made.add_argument("--action", metavar="REGEX", help="Audit, Block, Allow")
    made.add_argument("-l", "--labels", "--selector", metavar="K=V,...", default="", help="all of these labels")
    made.add_argument("--limit", type=int, metavar="N", help="end after N lines")
    made.add_argument("--from", dest="start", choices=("latest", "earliest"), default="latest", help="where to begin")
    made.add_argument("--no-follow", action="store_true", help="end at the newest record")
    made.add_argument(
        "-o", "--output", choices=("line", "text", "json", "pretty-json"), default="line", help="form of a line"
    )
    made.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")
    return made


def matcher(given: argparse.Namespace) -> Callable[[Log], bool]:
    """One test for all filters; SettingsError for an expression that does not compile."""
    tests: list[tuple[str, re.Pattern[str]]] = []
    for option, (field, flags) in FIELDS.items():
        text = getattr(given, option)
        if text is None:
            continue
        try:
            tests.append((field, re.compile(text, flags)))
        except re.error as error:
            raise SettingsError(
                f"expected a regular expression for --{option.replace('_', '-')}, got `{text}`: {error}"
            ) from error
    wanted = labels(given.labels)

    def passes(item: Log) -> bool:
        for field, pattern in tests:
            if not pattern.search(str(getattr(item, field, ""))):
                return False
        return all(f",{key}={value}," in f",{item.Labels}," for key, value in wanted.items())

    return passes


def _items(delivery: Delivery) -> Iterator[Log]:
    from schemas import expand, telemetry
    from schemas.alert import decode_alert

    value = delivery.record.value
    if value is None:
        return
    if delivery.topic.name == "alerts":
        yield decode_alert(value)
    else:
        yield from expand.logs(telemetry.decode(value))


def printer(form: str) -> Callable[[Log], str]:
    """How one item is written."""
    from hauberk.output import colourful

    if form in ("json", "pretty-json"):
        import msgspec

        indent = 2 if form == "pretty-json" else 0
        encode = msgspec.json.Encoder().encode
        return lambda item: (
            (msgspec.json.format(encode(item), indent=indent) if indent else encode(item)).decode() + "\n"
        )
    from sinks.formats.line_text import block, line

    if form == "text":
        return lambda item: block(item) + "\n"
    colour = colourful()
    return lambda item: line(item, colour=colour)


async def _follow(bus: Bus, given: argparse.Namespace, passes: Callable[[Log], bool]) -> int:
    from bus.end_as_of_now import EndAsOfNow
    from schemas.topics import ALERTS, TELEMETRY

    topics = {"policy": [ALERTS], "system": [TELEMETRY], "all": [ALERTS, TELEMETRY]}[given.log_filter]
    write = printer(given.output)
    left = given.limit
    read = written = 0
    end = await EndAsOfNow.of(bus, topics)
    async with bus.subscribe(topics, None, given.start) as subscription:
        if sys.stderr.isatty():
            print(f"following {', '.join(topic.name for topic in topics)}; Ctrl-C ends it", file=sys.stderr)
        while True:
            if given.no_follow and end.reached(subscription.position):
                if read and not written:
                    print(f"hauberk logs: none of {read:,} records match the filters", file=sys.stderr)
                return 0
            for delivery in await subscription.take(500, 0.5):
                read += 1
                try:
                    items = [item for item in _items(delivery) if passes(item)]
                except DecodeError as error:
                    print(f"hauberk logs: {delivery.topic.name} offset {delivery.offset}: {error}", file=sys.stderr)
                    continue
                written += len(items)
                for item in items:
                    sys.stdout.write(write(item))
                    if left is not None and (left := left - 1) <= 0:
                        return 0
            sys.stdout.flush()


def main(argv: Sequence[str]) -> int:
    """Follow until Ctrl-C, --limit or the end."""
    given = parser().parse_args(argv)
    passes = matcher(given)
    return with_bus(given, lambda bus: _follow(bus, given, passes))
