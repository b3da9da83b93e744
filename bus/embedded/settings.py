# SPDX-License-Identifier: Apache-2.0
"""What the embedded bus is told and what it counts. No part of it is imported: whoever is on another bus reads these too.

Neighbour: `bus`, which gives both on.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from schemas.errors import SettingsError
from schemas.stats import Gauge
from schemas.topics import BY_NAME, TOPICS

Meta = msgspec.Meta

HOUSEKEEPING_SECONDS: Final = 2.0
_SEGMENTED: Final = sum(not topic.compacted for topic in TOPICS)


class EmbeddedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="embedded"):
    """The log in a directory of this machine."""

    directory: Annotated[
        str,
        Meta(description="Directory of the log; created when missing, mode 0700.", examples=["/var/lib/hauberk/bus"]),
    ] = "/var/lib/hauberk/bus"
    segment_bytes: Annotated[
        int, Meta(ge=65536, le=1 << 50, description="Bytes after which a segment is sealed.", examples=[67108864])
    ] = 64 << 20
    segment_age: Annotated[
        float, Meta(gt=0, le=315_360_000, description="Seconds after which a segment is sealed.", examples=[3600.0])
    ] = 3600.0
    retention_bytes: Annotated[
        int, Meta(ge=0, le=1 << 50, description="Bytes kept per topic, read or not.", examples=[1073741824])
    ] = 256 << 20
    total_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Bytes of all topics together; over it the oldest goes, alerts and dead letters last, read or not. "
            "Never more than half of the disk, which is also what 0 means.",
            examples=[4294967296],
        ),
    ] = 1 << 30
    retention_bytes_of: Annotated[
        dict[str, Annotated[int, Meta(ge=0, le=1 << 50)]],
        Meta(description="Bytes kept, by topic name.", examples=[{"telemetry": 4294967296}]),
    ] = {}
    retention_hours_of: Annotated[
        dict[str, Annotated[float, Meta(ge=0, le=876_000)]],
        Meta(description="Hours kept, by topic name; 0 is for ever.", examples=[{"alerts": 720}]),
    ] = {}
    keep_read: Annotated[
        tuple[str, ...],
        Meta(description="Topics kept until retention although every group has read them.", examples=[["alerts"]]),
    ] = ("alerts", "dead")
    tombstone_age: Annotated[
        float,
        Meta(gt=0, le=315_360_000, description="Seconds a tombstone stays visible to readers.", examples=[86400.0]),
    ] = 86400.0
    durable_topics: Annotated[
        tuple[str, ...],
        Meta(description="Topics whose records outlive a power cut: one fsync per commit.", examples=[["alerts"]]),
    ] = ("policies", "enforcement.desired", "enforcement.status", "alerts", "dead")
    queue_bytes: Annotated[
        int,
        Meta(
            ge=1,
            le=1 << 50,
            description="Bytes that may wait to be written; publishing past it is refused.",
            examples=[33554432],
        ),
    ] = 32 << 20
    record_bytes: Annotated[
        int, Meta(ge=1, le=1 << 50, description="Largest record accepted, in bytes.", examples=[16777216])
    ] = 16 << 20
    hand_over_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Bytes of raw frames that `hauberk up` holds in memory between sensor and processor; what is over goes to the log. 0: all do, and telemetry is written whether anybody reads it or not.",
            examples=[16777216, 0],
        ),
    ] = 16 << 20
    memory_bytes: Annotated[
        int,
        Meta(
            ge=0,
            le=1 << 50,
            description="Bytes of newest records held per topic for readers here. By default a share of `memory.budget_bytes`.",
            examples=[4194304],
        ),
    ] = 1 << 20
    take_bytes: Annotated[
        int, Meta(ge=1, le=1 << 50, description="Bytes after which one take ends early.", examples=[4194304])
    ] = 1 << 20
    member_seconds: Annotated[
        float,
        Meta(
            gt=0,
            le=315_360_000,
            description="Seconds without asking for records after which a member of a group is taken for hung and another one that waits gets its topics.",
            examples=[60.0],
        ),
    ] = 300.0
    housekeeping: Annotated[
        float,
        Meta(
            gt=0, le=315_360_000, description="Seconds between checks for segments to seal and to drop.", examples=[2.0]
        ),
    ] = HOUSEKEEPING_SECONDS


def check_cap(total_bytes: int, segment_bytes: int) -> None:
    """SettingsError for a cap that the newest segments alone, which never go, may reach."""
    least = _SEGMENTED * segment_bytes
    if 0 < total_bytes < least:
        raise SettingsError(
            f"`bus.total_bytes`: expected 0 or at least {_SEGMENTED} times `segment_bytes` ({least}), got {total_bytes}; "
            "raise it, or lower `segment_bytes`: the newest segment of a topic never goes"
        )


def check_names(settings: EmbeddedSettings) -> None:
    """SettingsError for a name that is no topic, or a cap under one segment."""
    for key in ("retention_bytes_of", "retention_hours_of", "durable_topics", "keep_read"):
        for name in getattr(settings, key):
            if name not in BY_NAME:
                raise SettingsError(f"`bus.{key}`: expected topic names of {', '.join(BY_NAME)}, got `{name}`")
    check_cap(settings.total_bytes, settings.segment_bytes)


class EmbeddedStats(msgspec.Struct):
    """Plain counts since open. `dropped`: records retention took before a group read them. `quarantined`: files.
    `capped_bytes`: dropped because of `total_bytes` or of a full disk; `shed`: those of a full disk, by topic; `full`: writes that
    met one; `disk_free_bytes`: of the file system; `disk_bytes`: of all topics, at the last look."""

    records: int = 0
    bytes: int = 0
    refused: int = 0
    queue_bytes: Gauge = 0
    commits: int = 0
    dropped: int = 0
    quarantined: int = 0
    capped_bytes: int = 0
    disk_bytes: Gauge = 0
    disk_free_bytes: Gauge = 0
    full: int = 0
    shed: dict[str, int] = {}
