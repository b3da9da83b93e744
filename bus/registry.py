# SPDX-License-Identifier: Apache-2.0
"""Every bus there is, on one screen. Neighbours: the settings structs stand above their buses."""

from __future__ import annotations

from typing import assert_never

from bus.contract import Bus
from bus.embedded.settings import EmbeddedSettings
from bus.kafka.settings import KafkaSettings
from bus.memory import MemoryBus, MemorySettings

BusSettings = EmbeddedSettings | MemorySettings | KafkaSettings


def elsewhere(settings: BusSettings) -> bool:
    """Whether the far side of this bus can be away while its readers and writers are there."""
    return not isinstance(settings, EmbeddedSettings | MemorySettings)


async def open_bus(settings: BusSettings, *, aloud: bool = True) -> Bus:
    """Open the bus that `settings` names, on the running loop. The caller closes it. `aloud`: a far side that comes and goes is told
    in the log; False for who ends with the error, which says the same."""
    match settings:
        case EmbeddedSettings():
            # What each bus is made of, and its memory, is for who is on it.
            from bus.embedded.bus import EmbeddedBus

            return await EmbeddedBus.open(settings)
        case MemorySettings():
            return MemoryBus(settings)
        case KafkaSettings():
            # 6 MB of memory and 0.1 s that only who speaks to Kafka pays.
            from bus.kafka.bus import KafkaBus

            return await KafkaBus.open(settings, aloud=aloud)
        case _:
            assert_never(settings)
