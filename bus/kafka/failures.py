# SPDX-License-Identifier: Apache-2.0
"""What an error of the brokers is in our tree, in one sentence that names what to change. Pure.

A grant that lacks, a topic that is not there, a name that is not known: somebody can mend each without us, and a record that
met it must not become a dead letter. So all are `Unavailable`; `Refused` is only what no broker will ever take. Where a broker answered
about the topic it is `Unserved`, so that other topics go on; where none answered, or could say who leads the cluster, it is not.
"""

from __future__ import annotations

from typing import Final

from aiokafka import errors
from aiokafka.errors import KafkaError

from bus.kafka.acls import Grant
from schemas.errors import HauberkError, Incompatible, NotGranted, Refused, Unavailable, Unserved

SLOW_SECONDS: Final = 5.0
"""Before the next try when somebody has to change something first."""


def missing(channel: str) -> Unserved:
    return Unserved(
        f"expected topic `{channel}` on the brokers, it is not there; make it with `hauberk topic create`", SLOW_SECONDS
    )


def denied(grant: Grant) -> NotGranted:
    beside = ", or Read, Write or Alter, which bring it" if grant.operation == "Describe" else ""
    return NotGranted(
        f"expected to have the grant {grant}, the brokers say that this account has not; grant it{beside} "
        "(`hauberk topic acls` lists what each role needs)",
        SLOW_SECONDS,
    )


_OPERATIONS: Final = {"write to": "Write", "look at": "Describe", "forget": "Delete"}
"""What is done: the grant for it. Reading, and committing what was read, are Read."""


_OF_ALL: Final = (
    errors.GroupCoordinatorNotAvailableError, errors.GroupLoadInProgressError, errors.NotControllerError,
    errors.SaslAuthenticationFailed, errors.UnsupportedSaslMechanismError, errors.IllegalSaslStateError,
)  # fmt: skip
"""Answers that are about the cluster, whatever topic was asked for: the first two also when a producer asks who it is."""


def translated(error: BaseException, doing: str, channel: str = "", group: str = "") -> HauberkError:
    """`doing`: "write to", "read", "look at" or "forget"; of `channel` or, for offsets, of `group`."""
    what = f"topic `{channel}`" if channel else f"group `{group}`"
    operation = _OPERATIONS.get(doing, "Read")
    match error:
        case HauberkError():
            return error
        case errors.TopicAuthorizationFailedError() if channel:
            return denied(Grant("topic", channel, operation))
        case errors.GroupAuthorizationFailedError():
            return denied(Grant("group", group, operation))
        case errors.TopicAuthorizationFailedError():
            return NotGranted(
                f"expected to commit for {what}, the brokers refuse that; grant Read on its topics", SLOW_SECONDS
            )
        case errors.ClusterAuthorizationFailedError():
            return denied(Grant("topic", channel, operation))
        case errors.UnknownTopicOrPartitionError():
            return missing(channel)
        case errors.MessageSizeTooLargeError() | errors.RecordListTooLargeError():
            return Refused(
                f"`{channel}`: the broker takes no record of this size; raise `max.message.bytes` of the topic or send less"
            )
        case errors.InvalidTopicError():
            return Refused(f"`{channel}`: the brokers do not take this name; change `bus.prefix`")
        case errors.UnsupportedVersionError() | errors.IncompatibleBrokerVersion():
            return Incompatible(
                f"expected brokers of Kafka 4 to {doing} {what}, got {said(error)}; upgrade the brokers, or Hauberk where they are newer"
            )
        case errors.InconsistentGroupProtocolError():
            return Unavailable(
                f"expected the members of {what} to share its partitions by the assignor `sticky`, the brokers say that those who are in "
                "it now do not: another program, or another version of Hauberk, goes by this name; stop it or choose another group",
                SLOW_SECONDS,
            )
        case errors.BrokerResponseError() if channel and not isinstance(error, _OF_ALL):
            return Unserved(f"expected to {doing} {what}, got {said(error)}")
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
