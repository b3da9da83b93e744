# SPDX-License-Identifier: Apache-2.0
"""Metrics and health of a process over HTTP: `/metrics`, `/healthz` (it answers), `/readyz` (it works, or what of it does not).

Every role serves the same three, from the settings section `metrics` or from a `prometheus` sink. `/readyz` answers 200 or 503
with a JSON body that names what is not ready. On the loopback only its own names are answered, because a page in a browser of
this machine may have made another name ours. Neighbours: `sinks.formats.exposition` (the metrics' text), `http_get`, `listener`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Final

import msgspec

from schemas.errors import SettingsError
from sinks.formats.exposition import OPENMETRICS, TEXT, ExposedStats, Family, from_stats, render, wants_openmetrics
from sinks.http_get import GetProtocol, Request, Response
from sinks.listener import Listener, is_loopback, names_us, why
from sinks.reserved_ports import ReservedPorts

Collector = Callable[[], Iterable[ExposedStats]]
"""Called at each scrape, on the loop; must be quick and must not raise."""
Checks = Callable[[], Mapping[str, str]]
"""What is not ready, by name, and why; must be quick and must not raise."""
JSON: Final = "application/json"
PORT: Final = 9644


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Metrics and health of this process over HTTP."""

    enabled: Annotated[bool, msgspec.Meta(description="Serve them.", examples=[True])] = False
    host: Annotated[str, msgspec.Meta(description="Address to listen on.", examples=["127.0.0.1"])] = "127.0.0.1"
    port: Annotated[int, msgspec.Meta(ge=0, le=65535, description="TCP port; 0 takes a free one.", examples=[9644])] = (
        PORT
    )
    names: Annotated[
        tuple[str, ...],
        msgspec.Meta(
            description="Host names it answers to on the loopback, besides `localhost` and addresses.",
            examples=[["metrics.local"]],
        ),
    ] = ()


class Endpoint:
    """`await open()`, then `await close()`; `url` is known after `open`. `name`: of its listener; `setting`: where its port is
    set, for the error of a port in use."""

    def __init__(self, name: str, settings: MetricsSettings, setting: str = "`metrics.port`") -> None:
        self._name, self._setting = name, setting
        self._host, self._port = settings.host, settings.port
        self._names = {one.lower() for one in (*settings.names, settings.host)}
        self._collectors: list[Collector] = []
        self._families: list[Callable[[], Iterable[Family]]] = []
        self._checks: list[Checks] = []
        self._listener: Listener | None = None
        self.url = ""

    def collect(self, collector: Collector) -> None:
        """Show these stats at each scrape."""
        self._collectors.append(collector)

    def show(self, families: Callable[[], Iterable[Family]]) -> None:
        """Show these metrics at each scrape, before the stats."""
        self._families.append(families)

    def ready_when(self, checks: Checks) -> None:
        """`/readyz` answers 503 and names what is not ready while there is any."""
        self._checks.append(checks)

    def not_ready(self) -> dict[str, str]:
        """What is not ready, and why."""
        return {name: why for checks in self._checks for name, why in checks().items()}

    def families(self) -> list[Family]:
        """Everything a scrape shows, in order."""
        first = [family for families in self._families for family in families()]
        listening = [ExposedStats(part="listener", values=self._listener.stats)] if self._listener is not None else []
        return first + from_stats([*listening, *(stats for collector in self._collectors for stats in collector())])

    @property
    def listening(self) -> bool:
        """Whether it is open."""
        return self._listener is not None

    async def open(self) -> None:
        """Listen; twice is once. SettingsError when the port cannot be had."""
        if self._listener is not None:
            return
        listener = Listener(self._name, self._host, self._port)
        try:
            await listener.open_protocol(lambda: GetProtocol(self.answer, listener.answered))
        except OSError as error:
            raise self._refused(error) from error
        self._listener = listener
        # A free port that was found once is the one that is said, so it is taken again.
        self._port, self.url = listener.port, listener.url

    async def reserve(self, ports: ReservedPorts) -> None:
        """See that the port can be had, without answering anybody on it. SettingsError as of `open`."""
        try:
            await ports.reserve(self._host, self._port)
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> SettingsError:
        return SettingsError(
            f"{self._name}: expected to listen on `{self._host}:{self._port}`, but {why(error)}; set {self._setting} "
            "or stop who listens there"
        )

    async def close(self) -> None:
        """Let go of the port. Twice is once."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    def answer(self, request: Request) -> Response:
        """The response to one request. A port on another address than the loopback's is for others, by any name."""
        if is_loopback(self._host) and not names_us(request.headers.get("host", ""), self._names, request.transport):
            return Response(
                b"expected to be asked by an address of this port; add the name to its `names` if it is one\n",
                status=421,
            )
        match request.path:
            case "/metrics":
                openmetrics = wants_openmetrics(request.headers.get("accept", ""))
                return Response(render(self.families(), openmetrics=openmetrics), OPENMETRICS if openmetrics else TEXT)
            case "/healthz":
                return Response(b'{"live":true}\n', JSON)
            case "/readyz":
                missing = self.not_ready()
                body = msgspec.json.encode({"ready": not missing, "not_ready": missing})
                return Response(body + b"\n", JSON, 503 if missing else 200)
            case _:
                return Response(b"expected /metrics, /healthz or /readyz\n", status=404)
