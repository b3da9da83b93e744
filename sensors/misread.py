# SPDX-License-Identifier: Apache-2.0
"""Annotations that are not understood, told where they are first read: each once, at a pace, and counted while they are there.

Neighbours: `schemas.workload_annotations` (which they are), `sensors.kubernetes.facts_watch` and `sensors.containers.changes` (where they are read).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from bus.paced_log import PacedLog
from schemas.workload_annotations import misread

log = logging.getLogger(__name__)


class Misread:
    """`len`: objects that have such an annotation now. Who may make objects may make many of them: the log is paced."""

    def __init__(self) -> None:
        self._told: dict[bytes, tuple[str, ...]] = {}
        self._log = PacedLog(log)

    def __len__(self) -> int:
        return len(self._told)

    def look(self, key: bytes, name: str, annotations: Mapping[str, str] | None) -> None:
        """The object `key` has `annotations` now; None: it is gone. `name`: as people call it."""
        said = misread(annotations) if annotations else ()
        before = self._told.pop(key, ())
        if not said:
            return
        self._told[key] = said
        for sentence in said:
            if sentence not in before:
                self._log.say(
                    logging.WARNING,
                    f"annotations of {name}: {sentence}; it changes nothing, what is in force without it stays",
                )

    def only(self, prefix: bytes, there: Iterable[bytes]) -> None:
        """Of the keys that begin with `prefix` those in `there` are all that is left."""
        left = set(there)
        for key in [key for key in self._told if key.startswith(prefix) and key not in left]:
            del self._told[key]
