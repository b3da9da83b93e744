# SPDX-License-Identifier: Apache-2.0
"""What `hauberk policy check` finds in a policy that is an object of a cluster, in the words of a status and of the webhook.

Neighbours: `hauberk.policies` (the same findings, shown with the lines of a file).
"""

from __future__ import annotations

from typing import Final

from cluster.policy_object import PolicyFindings
from policy.parse import parse
from policy.rules.normalise import mode_of
from schemas.verdict import Mode

MOST: Final = 50
"""Findings of one object that are told; by feel, nobody mends more at once."""
LONGEST: Final = 1024
"""Characters of one finding."""


def findings(document: bytes) -> PolicyFindings:
    """Of one policy as JSON. Paths of fields, no lines: the author's file is not here."""
    told: dict[str, list[str]] = {"error": [], "warning": []}
    parsed = parse(document, "policy")
    for one in parsed.diagnostics:
        words = f"{one.path}: {one.message}" if one.path else one.message
        words += "".join(f"; {more}" for more in (one.expected and f"expected {one.expected}", one.suggestion) if more)
        told.setdefault(one.level, []).append(words[:LONGEST])
    acts = ""
    for policy in parsed.policies:
        mode, enabled = mode_of(policy.policy.metadata.annotations)
        acts = "" if mode is Mode.ENFORCE else mode.value
        acts = acts if enabled else "disabled"
    return PolicyFindings(tuple(told["error"][:MOST]), tuple(told["warning"][:MOST]), acts)
