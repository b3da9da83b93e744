# SPDX-License-Identifier: Apache-2.0
"""What `hauberk policy check` finds in a policy that is an object of a cluster, in the words of a status and of the webhook.

Neighbours: `hauberk.policies` (the same findings, shown with the lines of a file).
"""

from __future__ import annotations

from typing import Final

from cluster.policy_object import PolicyFindings
from policy.parse import parse

MOST: Final = 50
"""Findings of one object that are told; by feel, nobody mends more at once."""
LONGEST: Final = 1024
"""Characters of one finding."""


def findings(document: bytes) -> PolicyFindings:
    """Of one policy as JSON. Paths of fields, no lines: the author's file is not here."""
    told: dict[str, list[str]] = {"error": [], "warning": []}
    for one in parse(document, "policy").diagnostics:
        words = f"{one.path}: {one.message}" if one.path else one.message
        words += "".join(f"; {more}" for more in (one.expected and f"expected {one.expected}", one.suggestion) if more)
        told.setdefault(one.level, []).append(words[:LONGEST])
    return PolicyFindings(tuple(told["error"][:MOST]), tuple(told["warning"][:MOST]))
