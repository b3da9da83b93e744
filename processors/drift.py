# SPDX-License-Identifier: Apache-2.0
"""What was told as drift: each behaviour outside a baseline once, for each policy and workload.

In memory, bounded: after a restart of the processor, or when a node's events pass to another one, what drifts is told once more. When it is
full all is forgotten, which is counted, and told once more as well. Neighbours: `processors.alerts` (asks), `policy.ruleset` (`Mode.BASELINE`).
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

from schemas.behaviour import Behaviour
from schemas.identity import Identity
from schemas.verdict import Verdict

_MOST: Final = 1 << 16
"""Behaviours remembered as told, of all workloads: 6 MB."""


class DriftTold:
    """`forgotten`: behaviours that will be told again because there was no room for more."""

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        # Keyed: a workload that names its own files cannot make one that passes for another's.
        self._key = secrets.token_bytes(16)
        self._told: set[bytes] = set()
        self.forgotten = 0

    def __contains__(self, key: bytes) -> bool:
        return key in self._told

    def add(self, key: bytes) -> None:
        """It is told."""
        if len(self._told) >= self._most:
            self.forgotten += len(self._told)
            self._told.clear()
        self._told.add(key)

    def key(self, identity: Identity, behaviour: Behaviour, verdict: Verdict) -> bytes:
        """What is told once: what was done to what by which program, in which container of which workload, against which policy. Not who,
        when or with which flags."""
        rule = verdict.rule
        said = (
            verdict.policy, rule.kind if rule is not None else "", rule.namespace if rule is not None else "",
            identity.workload, identity.container_name, int(behaviour.operation), behaviour.executable, behaviour.parent, behaviour.script,
            behaviour.resource, behaviour.resource2, behaviour.address, behaviour.port, behaviour.protocol, behaviour.detail,
        )  # fmt: skip
        text = "\0".join(map(str, said)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=16, key=self._key).digest()
