# SPDX-License-Identifier: Apache-2.0
"""Asks brokers how topics forget, and says of which it is another way than the topic table's.

An account of a role need not be allowed to ask (DescribeConfigs is not among its grants): then nothing is said here, and
`hauberk doctor` and `hauberk topic check` say it with an account that may. Neighbour: `topic_configs` (what is wrong with it).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from aiokafka import errors
from aiokafka.protocol.admin import DescribeConfigsRequest

from bus.kafka.acls import Grant
from bus.kafka.connection import BrokerLink
from bus.kafka.failures import denied
from bus.kafka.topic_configs import forgets
from schemas.topics import Topic

_TOPIC: Final = 2
_DENIED: Final = errors.TopicAuthorizationFailedError.errno
_CONFIG: Final = "cleanup.policy"


async def otherwise_forgotten(link: BrokerLink, topics: Sequence[Topic]) -> dict[str, str]:
    """Name on the brokers -> what is wrong, in one sentence. Raises `Unavailable`, `NotGranted` where this account may ask of none."""
    named = {topic.named(link.settings.prefix): topic for topic in topics}
    request = DescribeConfigsRequest([(_TOPIC, name, [_CONFIG]) for name in named])
    answers = (await link.ask(request)).to_object()["resources"]
    if answers and all(one["error_code"] == _DENIED for one in answers):
        raise denied(Grant("topic", answers[0]["resource_name"], "DescribeConfigs"))
    found = {}
    for one in answers:
        # No such topic, among others: whoever reads or writes it is told.
        if one["error_code"]:
            continue
        configs = {entry["config_names"]: entry["config_value"] or "" for entry in one["config_entries"]}
        if why := forgets(named[one["resource_name"]], configs):
            found[one["resource_name"]] = why
    return found
