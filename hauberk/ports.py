# SPDX-License-Identifier: Apache-2.0
"""Ports that a role will listen on, looked at before its state directory is begun. Neighbours: `sinks.listener` and who opens one on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from hauberk.sections import Configuration
    from hauberk.settings import LoadedSettings
    from sinks.endpoint import Endpoint, MetricsSettings
    from sinks.registry import SinkSettings
    from sinks.web.page import PageSettings


def beside_another(settings: Configuration, loaded: LoadedSettings) -> Configuration:
    """For a replay, which is looked at beside a running `up` as often as not: nobody asked for the ports, so no metrics unless the
    settings have sinks, and the page on any free port unless they have one."""
    from sinks.prometheus import PrometheusSettings

    if "sinks" not in loaded.origins:
        left = [sink for sink in settings.sinks if not isinstance(sink, PrometheusSettings)]
        settings = msgspec.structs.replace(settings, sinks=left)
    if any(key == "page" or key.startswith("page.") for key in loaded.origins):
        return settings
    return msgspec.structs.replace(settings, page=msgspec.structs.replace(settings.page, port=0))


async def look(
    state: Path, metrics: MetricsSettings, sinks: Sequence[SinkSettings] = (), page: PageSettings | None = None
) -> None:
    """SettingsError when a port cannot be had and nothing lies in `state` yet, so that a start that comes to nothing leaves nothing.
    Where something does, whoever opens the port says it: a second `up` on one state is to be told of the first."""
    if _begun(state):
        return
    from sinks.reserved_ports import ReservedPorts

    # All at once: two of one number are found too.
    with ReservedPorts() as ports:
        for endpoint in (*_of_sinks(sinks), *_of_metrics(metrics)):
            await endpoint.reserve(ports)
        if page is not None and page.enabled and any(one.__struct_config__.tag == "store" for one in sinks):
            from sinks.web.page import refused

            try:
                await ports.reserve(page.host, page.port)
            except OSError as error:
                raise refused(page, error) from error


def _begun(state: Path) -> bool:
    try:
        return next(state.iterdir(), None) is not None
    except OSError:
        # Not there, or not ours: who makes it says so.
        return False


def _of_sinks(sinks: Sequence[SinkSettings]) -> list[Endpoint]:
    # Imported where there are sinks: a node has none, and little room.
    if not sinks:
        return []
    from sinks.prometheus import PrometheusSettings, PrometheusSink

    return [PrometheusSink(one).endpoint for one in sinks if isinstance(one, PrometheusSettings)]


def _of_metrics(metrics: MetricsSettings) -> list[Endpoint]:
    if not metrics.enabled:
        return []
    from sinks.endpoint import Endpoint

    return [Endpoint("metrics", metrics)]
