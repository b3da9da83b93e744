# SPDX-License-Identifier: Apache-2.0
"""Alerts and logs to a syslog server: RFC 5424 over TCP, TLS, UDP or a unix socket, as CEF or JSON.

What it does: one message per item, counted octets (RFC 6587) by default. Delivery guarantee: syslog acknowledges nothing, so
a message counts as accepted when the kernel has it; the last `resend_bytes` sent in the last `resend_seconds` are kept and
sent again after a reconnect, which covers what the server had not read when it died. Repeats carry the same `eventId`.
Limit: a crash of this process and of the server at the same moment may lose what was under way; UDP may lose anything.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec

from schemas.alert import Log
from schemas.errors import Refused, SettingsError, Unavailable
from schemas.topics import Topic
from sinks.delivery.stats import SyslogStats
from sinks.formats import syslog_message
from sinks.settings import Common, Content, topics_of
from sinks.sink import BatchLimits, Item, RefusedItem, SendResult
from sinks.syslog_wire import SyslogConnection, Tls, Transport, connect, host_and_port


class SyslogSettings(Common, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="syslog", tag_field="type"):
    """Send to a syslog server."""

    address: Annotated[
        str, msgspec.Meta(description="`host:port`, or the path of a unix socket.", examples=["siem.example.org:6514"])
    ]
    transport: Annotated[Transport, msgspec.Meta(description="Protocol to the server.", examples=["tls"])] = "tcp"
    framing: Annotated[
        Literal["octets", "newline"],
        msgspec.Meta(
            description="On streams: counted octets (RFC 6587, TLS needs it) or a newline each.", examples=["octets"]
        ),
    ] = "octets"
    payload: Annotated[
        Literal["cef", "json"], msgspec.Meta(description="CEF, or KubeArmor's JSON.", examples=["cef"])
    ] = "json"
    content: Annotated[Content, msgspec.Meta(description="What to send.", examples=["alerts"])] = "alerts"
    facility: Annotated[
        Literal[
            "kern", "user", "daemon", "auth", "authpriv", "audit", "alert",
            "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
        ],
        msgspec.Meta(description="Facility.", examples=["audit"]),
    ] = "audit"  # fmt: skip
    app: Annotated[str, msgspec.Meta(description="APP-NAME of the messages.", examples=["hauberk"])] = "hauberk"
    max_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=0, le=1 << 50, description="Longest message, bytes, 480 or more; 0: 8192, UDP 2048.", examples=[8192]
        ),
    ] = 0
    resend_bytes: Annotated[
        int,
        msgspec.Meta(
            ge=0,
            le=1 << 50,
            description="Sent messages kept to send again after a reconnect, bytes.",
            examples=[1 << 20],
        ),
    ] = 1 << 20
    resend_seconds: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=315_360_000, description="How long sent messages are kept for that, seconds.", examples=[60.0]
        ),
    ] = 60.0
    tls: Annotated[Tls, msgspec.Meta(description="For `transport: tls`.", examples=[{"ca_file": "ca.pem"}])] = Tls()


class SyslogSink:
    """See `sink.Sink`."""

    live = False
    takes_json = False
    limits = BatchLimits(items=1000, age_seconds=0.0, send_seconds=30.0)

    def __init__(self, settings: SyslogSettings) -> None:
        self.name = settings.name or "syslog"
        self.topics: tuple[Topic, ...] = topics_of(settings.content)
        self.stats = SyslogStats(sink=self.name)
        self._settings = settings
        self._limit = settings.max_bytes or (2048 if settings.transport == "udp" else 8192)
        self._facility = syslog_message.FACILITIES[settings.facility]
        self._wire: SyslogConnection | None = None
        self._window: deque[tuple[bytes, float]] = deque()
        self._window_bytes = 0
        self._connected_before = False

    @property
    def unsettled(self) -> bool:
        """Whether a server that dies now may not have read what it was sent last: `idle` is to come soon."""
        return bool(self._window) and self._window[-1][1] >= time.monotonic() - self._settings.resend_seconds

    async def check(self) -> None:
        settings = self._settings
        if settings.transport == "tls" and settings.framing != "octets":
            raise SettingsError("syslog: expected `framing: octets` with `transport: tls` (RFC 5425), got `newline`")
        if 0 < settings.max_bytes < 480:
            # RFC 5424 6.1: every receiver must take 480.
            raise SettingsError(f"syslog: expected `max_bytes` of 480 or more, got {settings.max_bytes}")
        if settings.transport != "unix":
            host_and_port(settings.address)
        await (await self._connect()).close()

    async def open(self) -> None:
        await self._connected()

    async def send(self, items: Sequence[Item]) -> SendResult:
        refused = []
        messages = []
        for index, item in enumerate(items):
            if isinstance(item, Log):
                try:
                    messages.append(syslog_message.fitted(item, self._limit, self._message))
                except Refused as error:
                    refused.append(RefusedItem(index, str(error)))
        wire = await self._connected()
        await self._write(wire, messages)
        self._remember(messages)
        return SendResult(refused=tuple(refused))

    async def idle(self) -> None:
        # What the server had not read when it died waits in the window: it must not wait for the next alert.
        if self._wire is not None and self._wire.lost:
            await self._connected()

    async def close(self) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()

    def _message(self, item: Log) -> bytes:
        return syslog_message.message(
            item, facility=self._facility, app=self._settings.app, payload=self._settings.payload
        )

    async def _connect(self) -> SyslogConnection:
        return await connect(self._settings.transport, self._settings.address, self._settings.tls)

    async def _connected(self) -> SyslogConnection:
        if self._wire is not None and not self._wire.lost:
            return self._wire
        if self._wire is not None:
            self._wire.abort()
            self._wire = None
        try:
            wire = await self._connect()
        except SettingsError as error:
            # It worked at the check, so this may pass (a certificate being renewed): wait, do not give up.
            raise Unavailable(str(error)) from error
        if self._connected_before:
            self.stats.reconnects += 1
            oldest = time.monotonic() - self._settings.resend_seconds
            again = [data for data, sent in self._window if sent >= oldest]
            await self._write(wire, again)
            self.stats.resent += len(again)
        self._connected_before = True
        self._wire = wire
        return wire

    async def _write(self, wire: SyslogConnection, messages: Sequence[bytes]) -> None:
        try:
            if wire.stream:
                framing = self._settings.framing
                wire.write(b"".join(syslog_message.framed(data, framing) for data in messages))
            else:
                for data in messages:
                    wire.write(data)
            await wire.drain()
        except BaseException:
            # Half a message may be out: this connection cannot be written to again.
            wire.abort()
            raise

    def _remember(self, messages: Sequence[bytes]) -> None:
        now = time.monotonic()
        for data in messages:
            self._window.append((data, now))
            self._window_bytes += len(data)
        oldest = now - self._settings.resend_seconds
        while self._window and (self._window_bytes > self._settings.resend_bytes or self._window[0][1] < oldest):
            self._window_bytes -= len(self._window.popleft()[0])
