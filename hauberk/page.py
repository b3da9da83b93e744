# SPDX-License-Identifier: Apache-2.0
"""Wires the web page into `up` and `sink`: over the first `store` sink, with a learner beside it, closed with the rest. Neighbours: `sinks.web.page`,
`hauberk.learner_process`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from bus.contract import Bus
    from hauberk.sections import Configuration
    from sinks.web.page import WebPage


async def open_page(settings: Configuration, bus: Bus, opened: contextlib.AsyncExitStack) -> WebPage | None:
    """Serve the page until `opened` is closed; None when there is no store to show or it is switched off."""
    from sinks.store.sink import StoreSettings

    store = next((sink for sink in settings.sinks if isinstance(sink, StoreSettings)), None)
    if store is None or not settings.page.enabled:
        return None
    from sinks.store.queries import SqliteReader
    from sinks.web.page import WebPage

    path = store.path
    learner = None
    if settings.page.learn_bytes:
        from hauberk.learner_process import LearnerProcess, bounded
        from kernel.machine import machine

        learner = LearnerProcess(path, bus, settings.postures, bounded(settings.page.learn_bytes, machine()))
    page = WebPage(settings.page, lambda: SqliteReader(path), learner)
    await page.open()
    opened.push_async_callback(page.close)
    return page


def listening(page: WebPage) -> Callable[[], Iterable[tuple[str, msgspec.Struct]]]:
    """For `Exposure.collect`: who is connected to it."""
    return lambda: [("listener", page.stats)] if page.stats is not None else []
