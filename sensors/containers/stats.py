# SPDX-License-Identifier: Apache-2.0
"""What the inventory counts. Neighbour: `inventory`."""

from __future__ import annotations

import msgspec

from schemas.stats import Gauge


class InventoryStats(msgspec.Struct, kw_only=True):
    """Who is known on this node. `identities`: containers and cgroups, ended ones that are not yet forgotten included;
    `runtimes_away`: container runtimes that cannot be read; `links_late`: roots whose symbolic links were not found within the
    time for it, and are looked up again; `misread`: containers with an annotation that is not understood."""

    identities: Gauge = 0
    runtimes_away: Gauge = 0
    links_late: int = 0
    misread: Gauge = 0
