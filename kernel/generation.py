# SPDX-License-Identifier: Apache-2.0
"""The number that tells the kernel programs that what they have looked up may no longer be so.

The programs remember, under this number, that a behaviour is announced and that a process is not excluded; both would else be
a map lookup by helper for every event. Whoever deletes from `behaviours` or adds to `excluded` calls `renew` strictly
afterwards. Two that do so at once may write the same number: each wrote its change before it read the old one, so whatever
the programs remember under the new one has seen both. Neighbours: `loading.exclude`, programs/event.c.
"""

from __future__ import annotations

import struct
from typing import Final

from kernel.maps import Map
from schemas.kernel import Config

FIRST: Final = 1
_KEY: Final = struct.pack("=I", Config.GENERATION)


def renew(config: Map) -> None:
    """Have the programs look again. `config`: the map of that name. About 3 us."""
    config.put(_KEY, struct.pack("=Q", (config.sum_u64(_KEY) + 1) & (1 << 64) - 1))
