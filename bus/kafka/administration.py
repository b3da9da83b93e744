# SPDX-License-Identifier: Apache-2.0
"""Asks a cluster what its topics are, makes and alters them: one request each.

Configs are altered one by one (IncrementalAlterConfigs, KIP-339): the older request, which aiokafka has, sets all others of
the topic back to their defaults. What was altered is to be asked for again by the caller, who then says what is so.
Neighbours: `bus.kafka.topic_configs` (what should be), `bus.kafka.connection` (deadlines, and why nobody answers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from aiokafka import errors
from aiokafka.protocol.admin import CreatePartitionsRequest, CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Schema, String

from bus.kafka.acls import Grant
from bus.kafka.connection import BrokerLink
from bus.kafka.failures import denied
from bus.kafka.settings import KafkaSettings
from bus.kafka.topic_configs import TopicState, WantedTopic
from schemas.errors import HauberkError, Refused, Unavailable

_TOPIC: Final = 2
_SET: Final = 0
_UNKNOWN: Final = errors.UnknownTopicOrPartitionError.errno


class _AlteredConfigs(Response):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("responses", Array(
            ("error_code", Int16), ("error_message", String("utf-8")),
            ("resource_type", Int8), ("resource_name", String("utf-8")),
        )),
    )  # fmt: skip


class _AlterConfigs(RequestStruct):  # type: ignore[misc]
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE: ClassVar[type[Response]] = _AlteredConfigs
    SCHEMA = Schema(
        ("resources", Array(
            ("resource_type", Int8), ("resource_name", String("utf-8")),
            ("configs", Array(("name", String("utf-8")), ("operation", Int8), ("value", String("utf-8")))),
        )),
        ("validate_only", Boolean),
    )  # fmt: skip


class IncrementalAlterConfigs(Request[_AlterConfigs]):  # type: ignore[misc]
    """Set single configs of topics (Kafka 2.3, KIP-339)."""

    API_KEY = 44

    def __init__(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        self._resources = [
            (_TOPIC, name, [(key, _SET, value) for key, value in values.items()]) for name, values in configs.items()
        ]

    def build(self, request_struct_class: type[_AlterConfigs]) -> _AlterConfigs:
        return request_struct_class(self._resources, False)


class Administration:
    """Questions and orders about topics. Whoever made it closes it.

    Every method raises `Unavailable` within the settings' `call_seconds`, `Refused` for what the cluster will not do; both say
    which grant is missing when that is why.
    """

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._link = BrokerLink(settings, aloud=False)

    async def close(self) -> None:
        """Twice is once."""
        await self._link.close()

    async def brokers(self) -> int:
        """How many there are."""
        return len((await self._link.client()).cluster.brokers())

    async def states(self, names: Sequence[str]) -> dict[str, TopicState | None]:
        """What each of these topics is; None when it is not there. Asking makes none."""
        # A broker with `auto.create.topics.enable` would make what is asked for, with its own defaults.
        answer = (await self._link.ask(MetadataRequest(list(names), False))).to_object()
        shapes: dict[str, tuple[int, int]] = {}
        for topic in answer["topics"]:
            name = topic["topic"]
            if topic["error_code"] != _UNKNOWN:
                _check(topic["error_code"], "", "Describe", name)
                copies = min((len(part["replicas"]) for part in topic["partitions"]), default=0)
                shapes[name] = len(topic["partitions"]), copies
        configs = await self._configs(list(shapes))
        return {name: TopicState(*shapes[name], configs[name]) if name in shapes else None for name in names}

    async def _configs(self, names: list[str]) -> dict[str, dict[str, str]]:
        if not names:
            return {}
        answer = (await self._link.ask(DescribeConfigsRequest([(_TOPIC, name, None) for name in names]))).to_object()
        found = {}
        for topic in answer["resources"]:
            name = topic["resource_name"]
            _check(topic["error_code"], topic["error_message"], "DescribeConfigs", name)
            found[name] = {one["config_names"]: one["config_value"] or "" for one in topic["config_entries"]}
        return found

    async def create(self, topics: Sequence[WantedTopic]) -> None:
        """Make these; one that is there meanwhile is no error."""
        made: list[tuple[Any, ...]] = [
            (one.name, one.partitions, one.replication, [], list(one.configs.items())) for one in topics
        ]
        answer = (await self._link.ask(CreateTopicsRequest(made, self._milliseconds, False))).to_object()
        for topic in answer["topic_errors"]:
            if topic["error_code"] == errors.InvalidReplicationFactorError.errno:
                raise Refused(
                    f"expected brokers for {topics[0].replication} copies of `{topic['topic']}`, there are {await self.brokers()}; "
                    "set `bus.topics.replication` to at most that"
                )
            if topic["error_code"] != errors.TopicAlreadyExistsError.errno:
                _check(topic["error_code"], topic["error_message"], "Create", topic["topic"])

    async def alter(self, configs: Mapping[str, Mapping[str, str]]) -> None:
        """Topic -> config -> value to set. Everything else stays as it is."""
        answer = (await self._link.ask(IncrementalAlterConfigs(configs))).to_object()
        for topic in answer["responses"]:
            _check(topic["error_code"], topic["error_message"], "AlterConfigs", topic["resource_name"])

    async def grow(self, name: str, partitions: int) -> None:
        """Give a topic more partitions. What was written stays where it is: keys may move."""
        request = CreatePartitionsRequest([(name, (partitions, None))], self._milliseconds, False)
        for topic in (await self._link.ask(request)).to_object()["topic_errors"]:
            _check(topic["error_code"], topic["error_message"], "Alter", name)

    @property
    def _milliseconds(self) -> int:
        return int(self._settings.call_seconds * 1000)


def _check(code: int, message: str | None, operation: str, name: str) -> None:
    """Raise what `code` is for a request that needs `operation` on the topic `name`."""
    if code:
        raise _error(code, message or "", operation, name)


def _error(code: int, message: str, operation: str, name: str) -> HauberkError:
    kind = errors.for_code(code)
    if kind is errors.TopicAuthorizationFailedError or kind is errors.ClusterAuthorizationFailedError:
        return denied(Grant("topic", name, operation))
    if kind.retriable:
        return Unavailable(f"expected topic `{name}` to be usable, got {kind.__name__}; try again")
    return Refused(
        f"expected topic `{name}` to take that, the brokers refused: {message or kind.__name__}; see their log"
    )
