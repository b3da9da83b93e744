# SPDX-License-Identifier: Apache-2.0
"""aiokafka's client with three changes: no topic is made by asking for it, the cluster's identity is known, and it is silent.

The library writes 115 lines a second while no broker answers; `connection` writes one. Its own metadata request makes topics
on brokers that allow it, with one partition and no retention of ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

if (library := logging.getLogger("aiokafka")).level == logging.NOTSET:
    # Above every line of the library; a level that somebody set stays.
    library.setLevel(logging.CRITICAL + 1)


class QuietClient(AIOKafkaClient):  # type: ignore[misc]
    """`identity`: the cluster's, "" before the first answer. `changed`: it answered with another one than before."""

    identity = ""
    changed = False

    async def _metadata_update(self, cluster_metadata: ClusterMetadata, topics: Any) -> bool:
        request = MetadataRequest(list(topics) if topics else [], allow_auto_topic_creation=False)
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
            if not answer.brokers:
                return False
            identity = getattr(answer, "cluster_id", "") or ""
            self.changed = self.changed or bool(self.identity and identity != self.identity)
            self.identity = identity
            cluster_metadata.update_metadata(answer)
            return True
        cluster_metadata.failed_update(None)
        return False

    async def refresh(self) -> bool:
        """Ask anew now; whether a broker answered."""
        return bool(await self.force_metadata_update())

    def cut(self, node: int) -> None:
        """Close the connections to `node` at once, with whatever is under way on them."""
        for (number, _), connection in list(self._conns.items()):
            if number == node:
                connection.close(reason=CloseReason.CONNECTION_TIMEOUT)

    async def end(self, seconds: float = 2.0) -> None:
        """Close everything; never raises and never takes longer than `seconds`."""
        with contextlib.suppress(TimeoutError, KafkaError, OSError):
            async with asyncio.timeout(seconds):
                await self.close()
