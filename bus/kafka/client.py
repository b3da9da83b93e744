# SPDX-License-Identifier: Apache-2.0
"""aiokafka's client with its rough edges off: no topic is made by asking for it, the cluster's identity is known, it is silent.

The library writes 115 lines a second while no broker answers; `connection` writes one. Its own metadata request makes topics
on brokers that allow it, with one partition and no retention of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Collection
from typing import Any

from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import CloseReason, create_conn
from aiokafka.errors import IncompatibleBrokerVersion, KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

if (library := logging.getLogger("aiokafka")).level == logging.NOTSET:
    # Above every line of the library; a level that somebody set stays.
    library.setLevel(logging.CRITICAL + 1)


class QuietClient(AIOKafkaClient):  # type: ignore[misc]
    """`identity`: the cluster's, "" before the first answer. `changed`: it answered with another one than before."""

    identity = ""
    changed = False
    _ended = False

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        own = ("bootstrap_servers", "metadata_max_age_ms")
        self._how = {name: value for name, value in arguments.items() if name not in own}

    async def bootstrap(self, seconds: float = 10.0) -> None:
        """As the library's, but cancelling it leaves no connection open, and a silent address leaves time for the next."""
        hosts = self.hosts
        for host, port, _ in hosts:
            place = ("bootstrap", ConnectionGroup.DEFAULT)
            try:
                async with asyncio.timeout(seconds / len(hosts)):
                    connection = self._conns[place] = await create_conn(host, port, **self._how)
                    answer = await connection.send(MetadataRequest([], allow_auto_topic_creation=False))
            except NotImplementedError as error:
                self._conns.pop(place).close()
                raise _no_version(error) from error
            except (OSError, KafkaError, TimeoutError):
                if place in self._conns:
                    self._conns.pop(place).close()
                continue
            self._conns.pop(place).close()
            self._heard(answer)
            self.cluster.update_metadata(answer)
            break
        else:
            raise KafkaConnectionError(f"no broker at {', '.join(f'{host}:{port}' for host, port, _ in hosts)}")
        self._sync_task: Any = asyncio.get_running_loop().create_task(self._md_synchronizer())

    async def send(self, node_id: Any, request: Any, **options: Any) -> Any:
        """As the library's; IncompatibleBrokerVersion where a broker speaks no version of `request` that the library does."""
        try:
            return await super().send(node_id, request, **options)
        except NotImplementedError as error:
            raise _no_version(error) from error

    async def _get_conn(self, node_id: Any, **options: Any) -> Any:
        connection = await super()._get_conn(node_id, **options)
        if self._ended and connection is not None:
            # Somebody was still waiting for it when the client ended.
            connection.close()
            return None
        return connection

    async def _metadata_update(self, cluster_metadata: ClusterMetadata, topics: Any) -> bool:
        answer = await self._metadata(topics or ())
        if answer is None:
            cluster_metadata.failed_update(None)
        elif answer.brokers:
            cluster_metadata.update_metadata(answer)
        return bool(answer is not None and answer.brokers)

    async def _metadata(self, topics: Collection[str]) -> Any:
        """The answer of any broker, None when none answers."""
        request = MetadataRequest(list(topics), allow_auto_topic_creation=False)
        nodes = [broker.nodeId for broker in self.cluster.brokers()]
        random.shuffle(nodes)
        for node in nodes:
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                answer = await connection.send(request)
            except (KafkaError, TimeoutError):
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
                continue
            if answer.brokers:
                self._heard(answer)
            return answer
        return None

    def _heard(self, answer: Any) -> None:
        identity = getattr(answer, "cluster_id", "") or ""
        self.changed = self.changed or bool(self.identity and identity != self.identity)
        self.identity = identity

    async def refresh(self) -> bool:
        """Ask anew now; whether a broker answered."""
        return bool(await self.force_metadata_update())

    async def answers(self) -> bool:
        """Whether a broker answers now, asked for no topic: what it says of them is unpacked number by number, some milliseconds for ours."""
        answer = await self._metadata(())
        return bool(answer is not None and answer.brokers)

    def cut(self, node: int) -> None:
        """Close the connections to `node` at once, with whatever is under way on them."""
        for (number, _), connection in list(self._conns.items()):
            if number == node:
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)

    async def end(self, seconds: float = 2.0) -> None:
        """Close everything; never raises and never takes longer than `seconds`."""
        self._ended = True
        with contextlib.suppress(TimeoutError, KafkaError, OSError):
            async with asyncio.timeout(seconds):
                await self.close()


def _no_version(error: NotImplementedError) -> IncompatibleBrokerVersion:
    """The library's name for "no version in common" (aiokafka/protocol/api.py, `Request.prepare`) is no error of Kafka's."""
    return IncompatibleBrokerVersion(str(error))
