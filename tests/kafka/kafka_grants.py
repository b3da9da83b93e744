# SPDX-License-Identifier: Apache-2.0
"""Grants on a test's broker, from what `hauberk topic acls -o json` prints; the client library has requests for it, no methods."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest

# Numbers of Kafka's protocol: ResourceType, PatternType, AclOperation, AclPermissionType.
RESOURCES = {"topic": 2, "group": 3, "cluster": 4}
PATTERNS = {"literal": 3, "prefixed": 4}
OPERATIONS = {
    "Read": 3, "Write": 4, "Create": 5, "Delete": 6, "Alter": 7, "Describe": 8, "ClusterAction": 9, "DescribeConfigs": 10,
    "AlterConfigs": 11, "IdempotentWrite": 12,
}  # fmt: skip
ALLOW = 3
AUDIT = "-Dorg.slf4j.simpleLogger.log.kafka.authorizer.logger=debug"
"""Option of a broker that has its authorizer write down what it allowed, and by which grant."""
_ALLOWED = re.compile(
    r"Principal = (?P<principal>\S+) is Allowed operation = (?P<asked>\w+) from .* based on rule "
    r"MatchingAcl\(acl=StandardAcl\[resourceType=(?P<resource>\w+), resourceName=(?P<name>.*?), patternType=\w+, .*, "
    r"operation=(?P<granted>\w+), permissionType=ALLOW\]\)"
)
UsedGrant = tuple[str, str, str, str]
"""(principal, resource, its name in the grant, operation), in the words of `hauberk topic acls -o json`."""


def granted(entry: Mapping[str, Any]) -> UsedGrant:
    """An entry in the form of `used`."""
    return entry["principal"], entry["resource"]["type"], entry["resource"]["name"], entry["operation"]


def used(audit: str) -> set[UsedGrant]:
    """The grants that were needed for what they say, by the log of a broker with `AUDIT`. A topic is described by whoever may read or
    write it: that needs none of them."""
    words = {name.upper(): name for name in OPERATIONS} | {
        "DESCRIBE_CONFIGS": "DescribeConfigs",
        "ALTER_CONFIGS": "AlterConfigs",
    }
    found = (one.groupdict() for one in _ALLOWED.finditer(audit))
    return {
        (one["principal"], one["resource"].lower(), one["name"], words[one["granted"]])
        for one in found
        if one["asked"] == one["granted"]
    }


class Grants:
    """As a super user at `bootstrap`: `add` and `remove` entries. What was added and is left at the end is removed."""

    def __init__(self, bootstrap: str) -> None:
        self._client = AIOKafkaClient(bootstrap_servers=bootstrap)
        self._added: dict[tuple[Any, ...], Mapping[str, Any]] = {}

    async def __aenter__(self) -> Grants:
        await self._client.bootstrap()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for entry in list(self._added.values()):
                await self.remove(entry)
        finally:
            await self._client.close()

    async def add(self, entries: Iterable[Mapping[str, Any]]) -> None:
        for entry in entries:
            answer = await self._client.send(self._client.get_random_node(), CreateAclsRequest(*_fields(entry)))
            assert all(code == 0 for code, _ in answer.creation_responses), answer
            self._added[_fields(entry)] = entry

    async def remove(self, entry: Mapping[str, Any]) -> None:
        answer = await self._client.send(self._client.get_random_node(), DeleteAclsRequest(*_fields(entry)))
        [(code, _, matching)] = answer.filter_responses
        assert code == 0, answer
        assert len(matching) == 1, answer
        del self._added[_fields(entry)]


def _fields(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    resource = entry["resource"]
    assert entry["permission"] == "allow"
    return (
        RESOURCES[resource["type"]], resource["name"], PATTERNS[resource["pattern"]], entry["principal"], entry["host"],
        OPERATIONS[entry["operation"]], ALLOW,
    )  # fmt: skip
