# SPDX-License-Identifier: Apache-2.0
"""What is said of an answer of `discover` and `recommend` that would not do what was asked: ids that accept nothing, policies that select
nothing. Neighbours: `hauberk.discovery`, `hauberk.network_discovery`, `hauberk.recommending`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from schemas.errors import SettingsError

if TYPE_CHECKING:
    from policy.learn.review import ReviewItem
    from policy.ruleset import PostureSettings


def expect_accepted(asked: Iterable[str], met: set[str], apart: Iterable[ReviewItem]) -> None:
    """SettingsError for an id of --accept that nothing has, or that no acceptance helps: a slip of the pen must not end as a denial."""
    left = sorted(set(asked) - met)
    if not left:
        return
    reasons = {item.ident: item.reason for item in apart}
    for ident in left:
        if ident in reasons:
            raise SettingsError(
                f"expected ids that can be accepted with --accept, got `{ident}`, which never is: {reasons[ident]}"
            )
    raise SettingsError(
        f"expected ids of --review with --accept, got `{left[0][:80]}`, which nothing in this selection and time has"
    )


def untracked(namespaces: Iterable[str], settings: PostureSettings) -> str:
    """A sentence on policies for Kubernetes namespaces whose containers no policy is for; "" where there is none."""
    found = Counter(one for one in namespaces if one in settings.untracked_namespaces)
    if not found:
        return ""
    number = found.total()
    policies = "1 policy is" if number == 1 else f"{number} policies are"
    return (
        f"{policies} for {', '.join(sorted(found))} and will select nothing: containers there are neither logged nor subject to policies "
        "(`postures.untracked_namespaces`)"
    )
