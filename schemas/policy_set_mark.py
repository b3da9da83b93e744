# SPDX-License-Identifier: Apache-2.0
"""What tells one set of policies on the bus from another: the planner puts it into plans, and who tells a policy's status compares it.

Times do not do for that: two records may have one millisecond, and clocks of who wrote them differ. The order in which records
were read does not matter; equal records give equal marks. Pure.
"""

from __future__ import annotations

import hashlib


class PolicySetMark:
    """`take` each record of `policies.v1`, in order; `text` is the mark of what the bus has now, 32 hexadecimal digits."""

    def __init__(self) -> None:
        self._records: dict[str, int] = {}
        self._sum = 0

    def take(self, key: str, value: bytes | None) -> None:
        """The newest record of `key`; None: it is deleted."""
        self._sum ^= self._records.pop(key, 0)
        if value is not None:
            name = key.encode("utf-8", "replace")
            made = hashlib.sha256(len(name).to_bytes(4, "big") + name + value).digest()
            self._records[key] = one = int.from_bytes(made[:16], "big")
            self._sum ^= one

    @property
    def text(self) -> str:
        return f"{self._sum:032x}"
