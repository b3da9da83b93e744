# SPDX-License-Identifier: Apache-2.0
"""Why no broker can be reached, found out step by step: the client library calls each of these a connection error.

::

    name ─► TCP ─► (TLS) ─► an answer to ApiVersions ─► (SASL: mechanism, then name and password)

Each step that fails has a sentence of its own. Neighbour: `connection`, which asks when a start has failed.
"""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, Final

from aiokafka import errors
from aiokafka.conn import create_conn

from bus.kafka.failures import said
from bus.kafka.security import addresses, arguments
from bus.kafka.settings import KafkaSettings

if TYPE_CHECKING:
    import ssl

_API_VERSIONS: Final = struct.pack(">ihhih", 10, 18, 0, 1, -1)
"""Length, key, version 0, correlation, no client id."""


async def why(settings: KafkaSettings, seconds: float) -> str:
    """One clause per address of `bootstrap`, within `seconds` each; SettingsError when the settings themselves are wrong."""
    found = await asyncio.gather(*(_one(settings, address, seconds) for address in addresses(settings)))
    return "; ".join(f"{address}: {clause}" for address, clause in zip(addresses(settings), found, strict=True))


async def _one(settings: KafkaSettings, address: str, seconds: float) -> str:
    stands: list[bool] = []
    try:
        async with asyncio.timeout(seconds):
            return await _steps(settings, address, stands)
    except TimeoutError:
        if stands:
            return "the connection stands and nothing answers; is it a broker, and does it still live?"
        secured = "" if settings.security_protocol in {"PLAINTEXT", "SASL_PLAINTEXT"} else " with TLS"
        return f"no connection{secured} within {seconds:g} s and no refusal either; does a firewall drop packets to it, or does it hang?"


async def _steps(settings: KafkaSettings, address: str, stands: list[bool]) -> str:
    """`stands`: is given an entry once there is a connection, with TLS if that is asked for."""
    host, _, port = address.rpartition(":")
    known = arguments(settings)
    context: ssl.SSLContext | None = known["ssl_context"]
    try:
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
    except ConnectionResetError:
        return (
            f"it closed the connection at once; is this listener for `security_protocol` {settings.security_protocol}?"
        )
    except OSError as error:
        if context is not None and (found := _insecure(error, settings)):
            return found
        return f"nobody there ({error.strerror or said(error)}); does the broker run, and is the address right?"
    stands.append(True)
    try:
        writer.write(_API_VERSIONS)
        answer = await reader.readexactly(8)
    except (OSError, asyncio.IncompleteReadError) as error:
        if context is not None and (reason := _reason(error)):
            # With TLS 1.3 the server's word on our certificate comes with the first bytes.
            return (
                f"our certificate is not accepted ({reason}); has `bus.tls.cert_file` expired, or do the brokers not "
                "trust who signed it?"
            )
        if context is not None and not settings.tls.cert_file:
            return "it closed the connection without a word; does this listener ask for a certificate (`bus.tls.cert_file`)?"
        return f"it closed the connection without a word; is this listener for `security_protocol` {settings.security_protocol}?"
    finally:
        writer.close()
    # What cannot be read as HTTP is answered as HTTP 0.9 was: with the page alone.
    if answer[:4] == b"HTTP" or answer[:1] == b"<":
        return "an HTTP server answers there; `bus.bootstrap` wants a Kafka listener"
    if struct.unpack_from(">i", answer, 4)[0] != 1:
        return "something answers that is no Kafka broker; check the address"
    if not settings.security_protocol.startswith("SASL"):
        return "the broker answers now"
    return await _login(settings, host, int(port))


def _insecure(error: OSError, settings: KafkaSettings) -> str:
    """What is wrong with TLS there; "" where `error` is none of TLS."""
    import ssl

    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted ({error.verify_message}); check `bus.tls.ca_file` and the name in `bus.bootstrap`"
    reason = _reason(error)
    return reason and f"no TLS there ({reason}); is this listener for `security_protocol` {settings.security_protocol}?"


def _reason(error: BaseException) -> str:
    """Of an error of TLS; "" of another."""
    import ssl

    return error.reason or said(error) if isinstance(error, ssl.SSLError) else ""


async def _login(settings: KafkaSettings, host: str, port: int) -> str:
    known = arguments(settings)
    del known["bootstrap_servers"]
    name, mechanism = settings.sasl.username, settings.sasl.mechanism
    try:
        connection = await create_conn(host, port, **known)
    except errors.UnsupportedSaslMechanismError:
        return f"the broker takes no {mechanism}; change `bus.sasl.mechanism`"
    except (errors.AuthenticationFailedError, errors.SaslAuthenticationFailed) as error:
        return f"name or password are wrong for `{name}` ({said(error)}); check `bus.sasl`"
    except (errors.KafkaError, OSError) as error:
        return f"the login as `{name}` failed ({said(error)})"
    await connection.close()
    return "the broker answers now"
