# SPDX-License-Identifier: Apache-2.0
"""How complete a learnt policy is likely to be: Good and Turing's estimate of what was not seen yet, and how long nothing was new. Pure.

Of `n` instances, those rules that only one of them needed say how many rules the next one will need that nobody needed before: their
number divided by `n` (I. J. Good, "The population frequencies of species", 1953). That it needs none has the chance exp of minus that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import StrEnum
from typing import Final

import msgspec

from policy.learn.evidence import Evidence

STABLE_CHANCE: Final = 0.9
STABILIZING_CHANCE: Final = 0.5
STABLE_INSTANCES: Final = 5
"""Below, one odd instance changes the estimate too much."""
QUIET: Final = 24 * 3600 * 1_000_000_000


class State(StrEnum):
    """Calico's words."""

    LEARNING = "Learning"
    STABILIZING = "Stabilizing"
    STABLE = "Stable"


class Completeness(msgspec.Struct, frozen=True, kw_only=True):
    """`instances`: containers seen. `once`: rules that only one of them needed. `clean`: chance that the next one needs no new rule.
    `unseen`: share of events that are of rules seen once only. `quiet_ns`: since the newest rule. `watched_ns`: from first to last."""

    instances: int
    once: int
    clean: float
    unseen: float
    quiet_ns: int
    watched_ns: int
    state: State

    def sentence(self) -> str:
        """One line for people."""
        return (
            f"{self.state.value}: {self.instances} instance{'s' * (self.instances != 1)}, the next one needs nothing new with {self.clean:.0%} "
            f"chance, nothing new for {self.quiet_ns / 3.6e12:.1f} of {self.watched_ns / 3.6e12:.1f} hours"
        )


def completeness(rules: Iterable[Evidence]) -> Completeness:
    """The estimate from the evidence of every rule."""
    found = list(rules)
    instances = len(frozenset().union(*(one.instances for one in found))) if found else 0
    once = sum(len(one.instances) == 1 for one in found)
    total = sum(one.count for one in found)
    single = sum(one.count == 1 for one in found)
    # One instance says nothing about the next: every rule of it was needed once.
    clean = math.exp(-once / instances) if instances > 1 else 0.0
    start = min((one.first for one in found), default=0)
    end = max((one.last for one in found), default=0)
    newest = max((one.first for one in found), default=0)
    quiet, watched = end - newest, end - start
    if (instances >= STABLE_INSTANCES and clean >= STABLE_CHANCE) or (quiet >= QUIET and 2 * quiet >= watched):
        state = State.STABLE
    elif (instances > 1 and clean >= STABILIZING_CHANCE) or 4 * quiet >= QUIET:
        state = State.STABILIZING
    else:
        state = State.LEARNING
    return Completeness(
        instances=instances, once=once, clean=clean, unseen=single / total if total else 1.0, quiet_ns=quiet, watched_ns=watched,
        state=state,
    )  # fmt: skip
