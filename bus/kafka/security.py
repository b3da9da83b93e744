# SPDX-License-Identifier: Apache-2.0
"""Settings of a connection as aiokafka takes them. Neighbour: `probe`, which tells what is wrong with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bus.kafka.settings import KafkaSettings
from bus.openssl import take_in
from bus.tls import client_context
from schemas.errors import SettingsError

if TYPE_CHECKING:
    import ssl


def context(settings: KafkaSettings) -> ssl.SSLContext | None:
    """None for a protocol without TLS. SettingsError names the files that are wrong."""
    if settings.security_protocol not in ("SSL", "SASL_SSL"):
        return None
    tls = settings.tls
    return client_context("bus.tls", tls.ca_file, tls.cert_file, tls.key_file, tls.key_password)


def arguments(settings: KafkaSettings) -> dict[str, Any]:
    """For every client of aiokafka: where the brokers are and who we are. The password is read now, so it can be rotated."""
    found: dict[str, Any] = {
        "bootstrap_servers": addresses(settings),
        "client_id": settings.client_id,
        "security_protocol": settings.security_protocol,
        "ssl_context": context(settings),
    }
    if settings.security_protocol.startswith("SASL"):
        # SCRAM makes a key of the password with OpenSSL's `pbkdf2_hmac`.
        take_in()
        if not settings.sasl.username:
            raise SettingsError(
                f"bus.sasl.username: expected a name with `security_protocol` {settings.security_protocol}, got none"
            )
        found |= {
            "sasl_mechanism": settings.sasl.mechanism,
            "sasl_plain_username": settings.sasl.username,
            "sasl_plain_password": settings.sasl.password.reveal(),
        }
    return found


def addresses(settings: KafkaSettings) -> list[str]:
    """`bootstrap` as a list; SettingsError for what is no host:port."""
    found = []
    for one in settings.bootstrap.split(","):
        host, _, port = one.strip().rpartition(":")
        # Kafka's protocol has no URLs: of `http://host:9092` the name to look up would be `http://host`.
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise SettingsError(
                f"bus.bootstrap: expected host:port, separated by commas, got `{one.strip()}`; name a broker's listener"
            )
        found.append(one.strip())
    return found
