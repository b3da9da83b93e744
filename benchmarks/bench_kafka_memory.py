# SPDX-License-Identifier: Apache-2.0
"""What `hauberk node` weighs over Kafka: brokers that ask for nothing, and brokers that ask for TLS and an account.

The second has OpenSSL in it, which the first leaves out (`bus/openssl.py`). Weighed as bench_memory weighs the others.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from bench_memory import Result, weighed
from kafka_world import broker, world
from live import missing

from bus.kafka.settings import KafkaSettings


def run(scale: float) -> Result:
    """`scale` 1.0 takes a minute and a half."""
    if lacks := missing():
        print(f"bench_kafka_memory: {lacks}", file=sys.stderr)
        return {}
    # kafka_world puts it on the path.
    from kafka_jars import PASSWORD

    seconds = max(0.5, 20 * scale)
    with broker(secure=True) as (cluster, directory):
        settings = asyncio.run(_topics(cluster))
        plain = {"type": "kafka", "bootstrap": cluster.bootstrap, "prefix": settings.prefix}
        password = directory / "password"
        password.touch(0o600)
        password.write_text(PASSWORD)
        secured = plain | {
            "bootstrap": cluster.addresses("SCRAM"), "security_protocol": "SASL_SSL", "tls": {"ca_file": cluster.tls("admin")[0]},
            "sasl": {"username": "admin", "password": {"file": str(password)}},
        }  # fmt: skip
        found = weighed("node", "kafka_memory_node", seconds, " over Kafka", _sets(plain))
        return found | weighed(
            "node", "kafka_memory_tls_node", seconds, " over Kafka with TLS and an account", _sets(secured)
        )


async def _topics(cluster: Any) -> KafkaSettings:
    bus = await world(cluster)
    await bus.close()
    return bus.settings


def _sets(bus: dict[str, Any]) -> tuple[str, ...]:
    return (f"bus={json.dumps(bus)}",)
