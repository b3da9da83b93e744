# SPDX-License-Identifier: Apache-2.0
"""Whether a set of policies is the whole one: what a plan was made of is either still there or was deleted.

A damaged table, a record that cannot be read or a log that went back in time all look like policies that nobody wants any
more. They are told apart by what is left of them: a deletion leaves a tombstone, and the newest record of a whole set is
never older than the plans made of it. Pure. Neighbours: the planner (publishes no plan of such a set), the processors (tell
it), `bus.present` (gives the records).
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from schemas.enforcement import Plan


class PolicySet(msgspec.Struct, frozen=True):
    """What is known of the policies on the bus. `there`: keys that were read; `deleted`: keys with a tombstone; `unread`:
    keys whose record is no policy; `newest_ns`: Unix ns of the newest record of all."""

    there: Collection[bytes]
    deleted: Collection[bytes]
    unread: Collection[bytes]
    newest_ns: int


def lost(plan: Plan, known: PolicySet) -> str:
    """Why no plan may replace `plan` by what `known` says, as one sentence; "" when the set is whole for it."""
    gone = [name for name in plan.policies if (key := name.encode()) not in known.there and key not in known.deleted]
    if gone:
        unread = [name for name in gone if name.encode() in known.unread]
        why = "cannot be read" if len(unread) == len(gone) else "are not there, and nobody deleted them"
        shown = ", ".join(gone[:3]) + (f" and {len(gone) - 3} more" if len(gone) > 3 else "")
        return f"policies of the plan in force {why}: {shown}; it stays in force. Apply them again, or `hauberk delete` them"
    if known.newest_ns < plan.created_ns:
        return (
            "the policies on the bus are older than the plan in force, so records of them are lost; it stays in force. "
            "Apply all policies again"
        )
    return ""
