# SPDX-License-Identifier: Apache-2.0
"""Topics on a test's broker, made as the topic table says but with as many partitions as the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from schemas.topics import TOPICS, Topic


async def create_topics(
    bootstrap: str,
    prefix: str,
    partitions: int = 3,
    *,
    copies: int = 1,
    topics: tuple[Topic, ...] = TOPICS,
    configs: Mapping[str, str] | None = None,
    **security: object,
) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **security)
    await admin.start()
    try:
        answer = await admin.create_topics(
            [
                NewTopic(
                    topic.named(prefix), partitions, copies,
                    topic_configs={
                        "cleanup.policy": topic.cleanup.value,
                        "message.timestamp.type": "LogAppendTime" if topic.log_time else "CreateTime",
                    } | dict(configs or {}),
                )
                for topic in topics
            ]
        )  # fmt: skip
        assert all(not code for _, code, _ in answer.topic_errors), answer
        made = {topic.named(prefix) for topic in topics}
        while not made <= set(await admin.list_topics()):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    finally:
        await admin.close()


async def delete_topics(bootstrap: str, prefix: str, topics: tuple[Topic, ...] = TOPICS) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        await admin.delete_topics([topic.named(prefix) for topic in topics])
    finally:
        await admin.close()
