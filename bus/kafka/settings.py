# SPDX-License-Identifier: Apache-2.0
"""What the Kafka bus is told. Neighbours: `bus` and `connection`, which give it on; `security` makes a TLS context of it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from bus.backoff import Backoff
from bus.kafka.topic_configs import TopicSettings
from bus.secret import Secret
from schemas.topics import PREFIX

Meta = msgspec.Meta
Seconds = Annotated[float, Meta(gt=0, le=315_360_000)]


class KafkaSasl(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who we are to the broker, by a name and a password."""

    mechanism: Annotated[
        Literal["SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN"],
        Meta(description="How the password is proven; PLAIN sends it.", examples=["SCRAM-SHA-512"]),
    ] = "SCRAM-SHA-512"
    username: Annotated[str, Meta(description="Principal without `User:`.", examples=["node-1"])] = ""
    password: Annotated[
        Secret, Meta(description="Its password.", examples=[{"file": "/etc/hauberk/kafka.password"}])
    ] = Secret()


class KafkaTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificates. The broker's is always verified, its name included."""

    ca_file: Annotated[
        str, Meta(description="CA that signed the brokers' certificates; the system's when empty.", examples=["ca.pem"])
    ] = ""
    cert_file: Annotated[
        str, Meta(description="Our certificate, for brokers that ask for one.", examples=["node-1.pem"])
    ] = ""
    key_file: Annotated[
        str, Meta(description="Key of `cert_file`; one that others may read is refused.", examples=["node-1.key"])
    ] = ""
    key_password: Annotated[
        Secret, Meta(description="Password of `key_file`.", examples=[{"file": "/etc/hauberk/kafka-key.password"}])
    ] = Secret()


class KafkaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="kafka"):
    """Apache Kafka 4.0 or newer. Times in seconds."""

    bootstrap: Annotated[
        str,
        Meta(
            min_length=1,
            description="Brokers to begin with, host:port, separated by commas.",
            examples=["kafka-1:9092,kafka-2:9092"],
        ),
    ] = "localhost:9092"
    prefix: Annotated[
        str,
        Meta(
            pattern="^[a-zA-Z0-9._-]+$",
            max_length=100,
            description="What the names of topics and groups begin with on the broker.",
            examples=["hauberk."],
        ),
    ] = PREFIX
    client_id: Annotated[str, Meta(description="Name in the brokers' logs and quotas.", examples=["hauberk"])] = (
        "hauberk"
    )
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"],
        Meta(description="How the listener at `bootstrap` is spoken to.", examples=["SASL_SSL"]),
    ] = "PLAINTEXT"
    sasl: Annotated[KafkaSasl, Meta(description="For the protocols with SASL.", examples=[{"username": "node-1"}])] = (
        KafkaSasl()
    )
    tls: Annotated[KafkaTls, Meta(description="For the protocols with SSL.", examples=[{"ca_file": "ca.pem"}])] = (
        KafkaTls()
    )
    compression: Annotated[
        Literal["zstd", "gzip", "lz4", "snappy", "none"],
        Meta(description="Of what is published; gzip costs twenty times zstd.", examples=["zstd"]),
    ] = "zstd"
    record_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1 << 30,
            description="Largest record, before compression; the topic's limit is for what it has become. Readers leave out a batch that unpacks to more than twice this.",
            examples=[4194304],
        ),
    ] = 4 << 20
    batch_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="Bytes that go out in one batch of a partition.", examples=[1000000])
    ] = 1_000_000
    queue_bytes: Annotated[
        int,
        Meta(
            ge=1 << 20,
            le=1 << 40,
            description="Bytes that wait to be written before publishing is refused.",
            examples=[1 << 25],
        ),
    ] = 32 << 20
    fetch_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="Compressed bytes asked for at a time.", examples=[4194304])
    ] = 4 << 20
    take_bytes: Annotated[
        int, Meta(ge=1024, le=1 << 30, description="Bytes after which a reader gets what there is.", examples=[8388608])
    ] = 8 << 20
    patience: Annotated[
        float,
        Meta(
            ge=0,
            le=10,
            description="Longest time that frames which hold nothing that cannot wait lie at a reader until more of them come.",
            examples=[0.25],
        ),
    ] = 0.25
    publish_seconds: Annotated[
        Seconds, Meta(description="Time for a publication; then it is given up for certain.", examples=[10.0])
    ] = 10.0
    call_seconds: Annotated[
        Seconds, Meta(description="Time for any other question to the brokers.", examples=[10.0])
    ] = 10.0
    away_seconds: Annotated[
        Seconds, Meta(description="Silence of every broker after which they count as away.", examples=[5.0])
    ] = 5.0
    retry: Annotated[Backoff, Meta(description="Between looks whether a broker is back.", examples=[{}])] = Backoff(
        first_seconds=0.5, max_seconds=10.0
    )
    session_seconds: Annotated[
        Seconds,
        Meta(
            description="Silence after which the brokers give a dead member's partitions to others; they take no less than 6 unless told.",
            examples=[6.0],
        ),
    ] = 6.0
    revoke_seconds: Annotated[
        Seconds,
        Meta(description="Time of a member to finish and release partitions that others are to get.", examples=[30.0]),
    ] = 30.0
    member_seconds: Annotated[
        Seconds, Meta(description="Time without asking for records after which a member leaves.", examples=[300.0])
    ] = 300.0
    topics: Annotated[
        TopicSettings, Meta(description="How `hauberk topic create` makes the topics.", examples=[{}])
    ] = TopicSettings()
