# SPDX-License-Identifier: Apache-2.0
"""What runtimes said of containers that had no process yet: a container may end before anybody can be asked again.

Pure memory, bounded. Neighbours: `sensors.containers.inventory`, which hears it from `containers.contract` and uses it at birth and end.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.identity import Identity
from sensors.containers.contract import Found

MOST: Final = 1024
"""Containers made and not started yet that are remembered."""


class EarlyAnswers:
    """Answers by container id."""

    def __init__(self) -> None:
        self._said: dict[str, Found] = {}

    def hear(self, found: Found) -> None:
        """Remember `found`; the oldest is forgotten when there are too many."""
        self._said.pop(found.id, None)
        self._said[found.id] = found
        if len(self._said) > MOST:
            del self._said[next(iter(self._said))]

    def of(self, known: Identity) -> Identity:
        """`known`, of which only the cgroup was known, with what its runtime said of it, if it did."""
        said = self._said.get(known.uid)
        if said is None:
            return known
        return msgspec.structs.replace(
            known, container_name=said.name or known.container_name, image=said.image, image_digest=said.image_digest,
            namespace=said.namespace or known.namespace, pod=said.pod, pod_uid=said.pod_uid or known.pod_uid,
            labels=said.labels, annotations=said.annotations, runtime=said.runtime, orchestrated=said.orchestrated,
            privileged=said.privileged,
        )  # fmt: skip

    def forget(self, id_: str) -> bool:
        """Whether there was something to forget."""
        return self._said.pop(id_, None) is not None
