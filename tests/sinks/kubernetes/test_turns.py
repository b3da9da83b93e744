# SPDX-License-Identifier: Apache-2.0
"""Who may write policies in one namespace holds up no other's status, and what a status says of hits is not believed blindly."""

from __future__ import annotations

from typing import Any

import pytest

from sinks.kubernetes.policy_status import Hits
from sinks.kubernetes.teller import _hits_of, in_turns


def test_a_flood_of_policies_in_one_namespace_holds_up_no_other() -> None:
    flood = [f"KubeArmorPolicy/attacker/p{number:05}" for number in range(5000)]
    turns = in_turns([*flood, "KubeArmorPolicy/shop/a", "KubeArmorPolicy/shop/b", "KubeArmorHostPolicy//host"])
    assert sorted(turns) == sorted(
        [*flood, "KubeArmorPolicy/shop/a", "KubeArmorPolicy/shop/b", "KubeArmorHostPolicy//host"]
    )
    assert max(turns.index(one) for one in turns if "attacker" not in one) < 6


@pytest.mark.parametrize(
    "hits",
    [None, 7, "many", [], {"blocked": 10**30}, {"blocked": -1}, {"blocked": "1"}, {"counted": 7}, {"blocked": 1.5}],
)
def test_counts_in_a_status_that_are_none_begin_at_none(hits: Any) -> None:
    assert _hits_of({"hits": hits}) == Hits()
