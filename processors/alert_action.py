# SPDX-License-Identifier: Apache-2.0
"""What is told of a judged behaviour: whether an alert is due, its `Action`, and its status in summaries.

Pure truth table, one place. A denial is told as `Block` only if one of our backends made it: plain file permissions that
happen to refuse what a Block rule names are told as `Audit (Block)`, with the errno as `Result`.
Which results count as done at all is the policy's business (`policy.judge.judge`). Neighbours: `processors.judge`, `processors.alerts`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.behaviour import Behaviour
from schemas.operations import Backend
from schemas.verdict import Action, Mode, Verdict

ALLOW: Final = "Allow"
AUDIT: Final = "Audit"
DENY: Final = "Deny"


class AlertAction(msgspec.Struct, frozen=True, gc=False):
    """`due`: an alert has to be published. `action`: its `Action`. `status`: Allow, Audit or Deny for summaries."""

    due: bool
    action: str
    status: str


def outcome(behaviour: Behaviour, verdict: Verdict) -> AlertAction:
    """What to tell of `behaviour` under `verdict`."""
    if behaviour.enforcer is not Backend.OBSERVER:
        # Told whatever the verdict: a plan older than the policies may still be in force on the node.
        return AlertAction(True, "Block", DENY)
    if not verdict.tell:
        return SILENT
    if verdict.action is Action.BLOCK:
        return _NOT_ENFORCED
    if verdict.action is Action.ALLOW:
        return AlertAction(True, "Audit (Allow)" if verdict.mode is Mode.AUDITED else "Allow", ALLOW)
    return _AUDITED


SILENT: Final = AlertAction(False, "Allow", ALLOW)
_NOT_ENFORCED: Final = AlertAction(True, "Audit (Block)", AUDIT)
_AUDITED: Final = AlertAction(True, "Audit", AUDIT)
