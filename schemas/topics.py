# SPDX-License-Identifier: Apache-2.0
"""The topic table: every channel of the bus, what travels on it, which role writes it and which reads it.

Said once, here: grants of a broker (`bus.kafka.acls`), its topics (`bus.kafka.topic_configs`), docs/reference/topics.md and the
AsyncAPI document are made from it.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

PREFIX = "hauberk."


class Cleanup(StrEnum):
    """How a topic forgets: by age and size, by key, or both (Kafka's `cleanup.policy`)."""

    DELETE = "delete"
    COMPACT = "compact"
    COMPACT_DELETE = "compact,delete"


class Role(StrEnum):
    """Who comes to the bus, as which account: the verbs that run for long, and two kinds of people.

    `cli` is who reads everything and applies policies; `admin` makes and alters topics and forgets nodes that left.
    """

    NODE = "node"
    PROCESSOR = "processor"
    PLANNER = "planner"
    SINK = "sink"
    CLUSTER = "cluster"
    CLI = "cli"
    ADMIN = "admin"


class Topic(msgspec.Struct, frozen=True, kw_only=True):
    """One channel. `name`: without prefix and version, as the CLI takes it. `retention_hours`: 0 keeps forever.

    `record_bytes`: the largest record that a broker is told to take. `writers`, `readers`: roles; nobody else may. `log_time`: a record's
    time is when the log took it, by the log's clock, whatever its writer's says: others judge by it whether the writer is there.
    """

    name: str
    version: int = 1
    key: str
    value: str
    content_type: str
    cleanup: Cleanup
    retention_hours: int
    partitions: int
    writers: tuple[Role, ...]
    readers: tuple[Role, ...]
    record_bytes: int = 1 << 20
    log_time: bool = False

    @property
    def channel(self) -> str:
        """The name on the broker, e.g. `hauberk.events.raw.v1`, unless the settings have another prefix."""
        return self.named(PREFIX)

    def named(self, prefix: str) -> str:
        """The name on a broker whose topics of Hauberk begin with `prefix`."""
        return f"{prefix}{self.name}.v{self.version}"

    @property
    def by_node(self) -> bool:
        """Whether the key begins with the node, so that a partition holds whole nodes."""
        return self.key.partition("/")[0] == "node"

    @property
    def compacted(self) -> bool:
        """Whether the last value of a key is kept."""
        return self.cleanup is not Cleanup.DELETE


MSGPACK = "application/vnd.hauberk+msgpack"
JSON = "application/json"
OCTETS = "application/octet-stream"

EVENTS_RAW = Topic(
    name="events.raw", key="node", value="frame: header, occurrences as they lay in the ring, definitions they use",
    content_type=MSGPACK, cleanup=Cleanup.DELETE, retention_hours=6, partitions=6,
    writers=(Role.NODE,), readers=(Role.PROCESSOR, Role.CLI),
    record_bytes=4 << 20,
)  # fmt: skip
INVENTORY = Topic(
    name="inventory", key="node/container or node uid", value="identity snapshot; tombstone when its events are over",
    content_type=MSGPACK, cleanup=Cleanup.COMPACT, retention_hours=0, partitions=3,
    writers=(Role.NODE, Role.ADMIN), readers=(Role.NODE, Role.PROCESSOR, Role.PLANNER, Role.SINK, Role.CLI, Role.ADMIN),
    log_time=True,
)  # fmt: skip
POLICIES = Topic(
    name="policies", key="kind/namespace/name", value="policy document, as JSON",
    content_type=JSON, cleanup=Cleanup.COMPACT, retention_hours=0, partitions=1,
    writers=(Role.CLI, Role.CLUSTER), readers=(Role.NODE, Role.PROCESSOR, Role.PLANNER, Role.SINK, Role.CLUSTER, Role.CLI),
)  # fmt: skip
CLUSTER = Topic(
    name="cluster", key="kind/uid or name", value="fact of a pod, namespace, node, service, its endpoints or a policy object; tombstone when it is gone",
    content_type=MSGPACK, cleanup=Cleanup.COMPACT, retention_hours=0, partitions=1,
    writers=(Role.CLUSTER,), readers=(Role.PROCESSOR, Role.PLANNER, Role.SINK, Role.CLUSTER, Role.CLI),
)  # fmt: skip
TELEMETRY = Topic(
    name="telemetry", key="node", value="enriched behaviours and the rows that index them",
    content_type=MSGPACK, cleanup=Cleanup.DELETE, retention_hours=24, partitions=6,
    writers=(Role.PROCESSOR,), readers=(Role.SINK, Role.CLI),
    record_bytes=4 << 20,
)  # fmt: skip
ALERTS = Topic(
    name="alerts", key="workload", value="one alert, KubeArmor field names",
    content_type=JSON, cleanup=Cleanup.DELETE, retention_hours=168, partitions=6,
    writers=(Role.PROCESSOR, Role.NODE, Role.PLANNER, Role.SINK, Role.CLUSTER), readers=(Role.SINK, Role.CLUSTER, Role.CLI),
)  # fmt: skip
SUMMARIES = Topic(
    name="summaries", key="workload and bucket", value="counts per behaviour in one time bucket",
    content_type=MSGPACK, cleanup=Cleanup.COMPACT_DELETE, retention_hours=720, partitions=6,
    writers=(Role.PROCESSOR,), readers=(Role.SINK, Role.CLI),
)  # fmt: skip
ENFORCEMENT_DESIRED = Topic(
    name="enforcement.desired", key="node", value="full plan with generation and content hash",
    content_type=MSGPACK, cleanup=Cleanup.COMPACT, retention_hours=0, partitions=3,
    writers=(Role.PLANNER,), readers=(Role.NODE, Role.PLANNER, Role.PROCESSOR, Role.CLUSTER, Role.CLI, Role.ADMIN),
    record_bytes=8 << 20,
)  # fmt: skip
ENFORCEMENT_STATUS = Topic(
    name="enforcement.status", key="node", value="receipt: generation applied, refused rules with reasons, backend",
    content_type=MSGPACK, cleanup=Cleanup.COMPACT, retention_hours=0, partitions=3,
    writers=(Role.NODE, Role.ADMIN), readers=(Role.SINK, Role.CLUSTER, Role.CLI, Role.ADMIN),
    record_bytes=8 << 20, log_time=True,
)  # fmt: skip
PROGRESS = Topic(
    name="progress", key="node/group", value="how far a processor group has read the node's frames",
    content_type=MSGPACK, cleanup=Cleanup.COMPACT, retention_hours=0, partitions=3,
    writers=(Role.PROCESSOR, Role.ADMIN), readers=(Role.NODE, Role.CLI, Role.ADMIN),
)  # fmt: skip
NODES = Topic(
    name="nodes", key="node", value="which process goes by the node's name, said at its start and to whoever claims it too",
    content_type=MSGPACK, cleanup=Cleanup.COMPACT, retention_hours=0, partitions=1,
    writers=(Role.NODE, Role.ADMIN), readers=(Role.NODE, Role.CLI, Role.ADMIN),
)  # fmt: skip
DEAD = Topic(
    name="dead", key="original key", value="original bytes; headers say topic, group, stage, reason, error",
    content_type=OCTETS, cleanup=Cleanup.DELETE, retention_hours=336, partitions=1,
    writers=(Role.PROCESSOR, Role.SINK, Role.NODE), readers=(Role.CLI,),
    record_bytes=8 << 20,
)  # fmt: skip

TOPICS: tuple[Topic, ...] = (
    EVENTS_RAW, INVENTORY, POLICIES, TELEMETRY, ALERTS, SUMMARIES, ENFORCEMENT_DESIRED, ENFORCEMENT_STATUS,
    PROGRESS, NODES, DEAD, CLUSTER,
)  # fmt: skip

BY_NAME: dict[str, Topic] = {topic.name: topic for topic in TOPICS}
