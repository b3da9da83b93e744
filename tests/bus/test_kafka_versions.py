# SPDX-License-Identifier: Apache-2.0
"""A broker that has no version of a request in common with the client is told as that. No real one of Kafka 4 is so: the library's
answer to such a broker is given in its place."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import IncompatibleBrokerVersion

from bus.kafka.client import QuietClient
from bus.kafka.failures import translated
from schemas.errors import Incompatible


async def test_no_version_in_common_is_an_error_of_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(*_: Any, **__: Any) -> None:
        raise NotImplementedError("Support for ProduceRequest v99 has not yet been added")

    monkeypatch.setattr(AIOKafkaClient, "send", send)
    client = QuietClient(bootstrap_servers="127.0.0.1:1")
    with pytest.raises(IncompatibleBrokerVersion, match="v99") as refused:
        await client.send(0, None)
    said = translated(refused.value, "write to", "hauberk.alerts.v1")
    assert isinstance(said, Incompatible)
    assert "upgrade the brokers, or Hauberk where they are newer" in str(said)
    await client.end()
