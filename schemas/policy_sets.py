# SPDX-License-Identifier: Apache-2.0
"""The sets of policies that the bus had, in the order in which this process saw them, and since which of them each policy is as it is.

A plan says by a mark of which set it was made (`policy_set_mark`), so whoever followed `policies` knows whether a plan has a document;
no time is compared. A set that was passed over (a compacted topic skips versions) counts as before all that were seen: a plan of it is
never taken for one that has the document. Pure. Neighbours: `sinks.kubernetes.answers`, `hauberk.rollout`.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from schemas.cluster import document_mark
from schemas.policy_set_mark import PolicySetMark

_MOST_SETS: Final = 4096
"""Sets that are remembered: a plan of one before them counts as made of none."""


class AppliedDocument(msgspec.Struct, frozen=True):
    """The document of a policy on the bus: its mark, and the number of the first set that has it."""

    mark: str
    since: int


class PolicySets:
    """`take` each record of `policies.v1`, in order; from the start after a whole read. `documents`: by key of the policy."""

    def __init__(self) -> None:
        self.documents: dict[str, AppliedDocument] = {}
        self._set = PolicySetMark()
        self._sets: OrderedDict[str, int] = OrderedDict()
        self._number = 0

    def take(self, key: str, value: bytes | None) -> None:
        """The newest record of `key`; None: it is deleted."""
        self._set.take(key, value)
        self._number += 1
        self._sets.pop(self._set.text, None)
        self._sets[self._set.text] = self._number
        if len(self._sets) > _MOST_SETS:
            self._sets.popitem(last=False)
        if value is None:
            self.documents.pop(key, None)
            return
        mark, known = document_mark(value), self.documents.get(key)
        since = known.since if known is not None and known.mark == mark else self._number
        self.documents[key] = AppliedDocument(mark, since)

    def number(self, mark: str) -> int:
        """When the set of this mark was seen last, counted from 1; 0: never, or too long ago. It has every document whose `since` is no greater."""
        return self._sets.get(mark, 0)
