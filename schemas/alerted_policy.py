# SPDX-License-Identifier: Apache-2.0
"""Which policy an alert is about. Alerts carry no kind, as KubeArmor's do not: the type of the alert and its namespace tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

KINDS: Final = {
    "MatchedHostPolicy": ("KubeArmorHostPolicy",),
    "MatchedNetworkPolicy": ("KubeArmorNetworkPolicy",),
    "MatchedPolicy": ("KubeArmorPolicy", "KubeArmorClusterPolicy"),
    "SystemEvent": ("KubeArmorPolicy", "KubeArmorClusterPolicy", "KubeArmorHostPolicy", "KubeArmorNetworkPolicy"),
}
"""`Type` of an alert: kinds of the policies it may be about, the likeliest first."""

Named = Mapping[tuple[str, str], Sequence[tuple[str, str]]]
"""(kind, name) -> (namespace, key) of each policy that is so called."""


def whose(kind: str, policy: str, namespace: str, named: Named) -> str:
    """The key of the policy that an alert of `Type` `kind` names; "" when it is none of `named`."""
    for one in KINDS.get(kind, ()):
        if own := named.get((one, policy)):
            return next((key for there, key in own if there == namespace), own[0][1])
    return ""
