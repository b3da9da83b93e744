# SPDX-License-Identifier: Apache-2.0
"""What an error of the brokers is in our tree, in one sentence that names what to change. Pure.

A grant that lacks, a topic that is not there, a name that is not known: somebody can mend each without us, and a record that
met it must not become a dead letter. So all are `Unavailable`; `Refused` is only what no broker will ever take.
"""

from __future__ import annotations

from typing import Final

from aiokafka import errors
from aiokafka.errors import KafkaError

from schemas.errors import HauberkError, Incompatible, Refused, Unavailable

SLOW_SECONDS: Final = 5.0
"""Before the next try when somebody has to change something first."""


def missing(channel: str) -> Unavailable:
    return Unavailable(
        f"expected topic `{channel}` on the brokers, it is not there; make it with `hauberk topic create`", SLOW_SECONDS
    )


def translated(error: BaseException, doing: str, channel: str = "", group: str = "") -> HauberkError:
    """`doing`: "write to", "read"; of `channel` or, for offsets, of `group`."""
    what = f"topic `{channel}`" if channel else f"group `{group}`"
    match error:
        case HauberkError():
            return error
        case errors.TopicAuthorizationFailedError():
            grant = "Write" if doing == "write to" else "Read"
            return Unavailable(
                f"expected to {doing} {what}, the brokers refuse it to this principal; grant {grant} on it "
                "(`hauberk topic acls` lists what each role needs)",
                SLOW_SECONDS,
            )
        case errors.GroupAuthorizationFailedError():
            return Unavailable(
                f"expected to read as group `{group}`, the brokers refuse it to this principal; grant Read on the group "
                "(`hauberk topic acls` lists what each role needs)",
                SLOW_SECONDS,
            )
        case errors.ClusterAuthorizationFailedError():
            return Unavailable(
                f"expected to {doing} {what}, the brokers refuse it; grant IdempotentWrite on the cluster or Write on the topic",
                SLOW_SECONDS,
            )
        case errors.UnknownTopicOrPartitionError():
            return missing(channel)
        case errors.MessageSizeTooLargeError() | errors.RecordListTooLargeError():
            return Refused(
                f"`{channel}`: the broker takes no record of this size; raise `max.message.bytes` of the topic or send less"
            )
        case errors.InvalidTopicError():
            return Refused(f"`{channel}`: the brokers do not take this name; change `bus.prefix`")
        case errors.UnsupportedVersionError() | errors.IncompatibleBrokerVersion() | NotImplementedError():
            return Incompatible(
                f"expected brokers of Kafka 4.0 or newer to {doing} {what}, got {said(error)}; upgrade them"
            )
        case KafkaError() | OSError() | TimeoutError():
            return Unavailable(f"expected to {doing} {what}, got {said(error)}")
    raise error


def said(error: BaseException) -> str:
    """In one line."""
    words = " ".join(str(error).split())
    name = type(error).__name__
    if isinstance(error, TimeoutError) and not words:
        return "no answer in time"
    return words if words.startswith(name) else f"{name}: {words}" if words else name
