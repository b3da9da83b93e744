# SPDX-License-Identifier: Apache-2.0
"""By which pods a rule's evidence is. Evidence counts container instances, by uid: a pod that was started again five times has six.

Neighbours: `policy.learn.evidence` (the instances), `discovery` and `network_discovery` (`--explain`), `learner_worker` (the page).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from schemas.identity import Identity

_SHOWN: Final = 5
"""Names in a cell of a table."""


class EvidencePods:
    """Who each instance was. Tell it every identity that is read."""

    def __init__(self, identities: Iterable[Identity] = ()) -> None:
        self._names: dict[str, str] = {}
        for one in identities:
            self.add(one)

    def add(self, one: Identity) -> None:
        """`one` may be among the instances."""
        self._names[one.uid] = one.pod or one.container_name or one.node or one.uid[:12]

    def of(self, instances: Iterable[str]) -> list[str]:
        """The pods of `instances`, in order, each once; of what is in no pod the container, of a host the node."""
        return sorted({self._names.get(uid, uid[:12]) for uid in instances})


def cell(pods: list[str]) -> str:
    """`pods` as a table shows them."""
    more = len(pods) - _SHOWN
    return ", ".join(pods[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
