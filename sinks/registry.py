# SPDX-License-Identifier: Apache-2.0
"""Every sink there is, on one screen. To add one: its file, its line here, its test; see docs/sinks.md."""

from __future__ import annotations

from typing import TypeAlias, assert_never

from sinks.blackhole import BlackholeSettings, BlackholeSink
from sinks.console import ConsoleSettings, ConsoleSink
from sinks.file import FileSettings, FileSink
from sinks.prometheus import PrometheusSettings, PrometheusSink
from sinks.sink import Sink
from sinks.store.sink import StoreSettings, StoreSink
from sinks.syslog import SyslogSettings, SyslogSink

SinkSettings: TypeAlias = (
    BlackholeSettings | ConsoleSettings | FileSettings | PrometheusSettings | StoreSettings | SyslogSettings
)


def build(settings: SinkSettings) -> Sink:
    """The sink that `settings` describe, not yet open."""
    match settings:
        case BlackholeSettings():
            return BlackholeSink(settings)
        case ConsoleSettings():
            return ConsoleSink(settings)
        case FileSettings():
            return FileSink(settings)
        case PrometheusSettings():
            return PrometheusSink(settings)
        case StoreSettings():
            return StoreSink(settings)
        case SyslogSettings():
            return SyslogSink(settings)
        case _:
            assert_never(settings)
