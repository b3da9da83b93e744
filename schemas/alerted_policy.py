# SPDX-License-Identifier: Apache-2.0
"""Which policy an alert is about, and whether it acted. Alerts carry no kind, as KubeArmor's do not: the type of the alert and its
namespace tell. What counts alerts per policy reads this part of them: `hauberk.rule_hits`, `sinks.kubernetes.policy_hits`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from schemas.decoding import Count as Number
from schemas.decoding import decoder

KINDS: Final = {
    "MatchedHostPolicy": ("KubeArmorHostPolicy",),
    "MatchedNetworkPolicy": ("KubeArmorNetworkPolicy",),
    "MatchedPolicy": ("KubeArmorPolicy", "KubeArmorClusterPolicy"),
    "SystemEvent": ("KubeArmorPolicy", "KubeArmorClusterPolicy", "KubeArmorHostPolicy", "KubeArmorNetworkPolicy"),
}
"""`Type` of an alert: kinds of the policies it may be about, the likeliest first."""

Named = Mapping[tuple[str, str], Sequence[tuple[str, str]]]
"""(kind, name) -> (namespace, key) of each policy that is so called."""


class AlertedPolicy(msgspec.Struct):
    """The fields of an alert by which it is counted."""

    PolicyName: str = ""
    NamespaceName: str = ""
    PodName: str = ""
    HostName: str = ""
    ProcessName: str = ""
    Operation: str = ""
    Resource: str = ""
    Type: str = ""
    Rule: str = ""
    Mode: str = ""
    Action: str = ""
    UpdatedTime: str = ""
    Count: Number = 1
    Suppressed: Number = 0

    @property
    def beside(self) -> bool:
        """Whether it tells what a policy in the mode `shadow` or `baseline` would have said."""
        return self.Mode in ("shadow", "baseline")

    @property
    def silence(self) -> bool:
        """Whether it is the end of a silence: it says how many were throttled, not by which rule or action."""
        return self.Type == "SystemEvent"

    def whose(self, named: Named) -> str:
        """The key of the policy that it is of; "" when it is none of `named`."""
        own = [one for kind in KINDS.get(self.Type, ()) for one in named.get((kind, self.PolicyName), ())]
        # A policy of another namespace that has the same name comes after one of the whole cluster.
        return next((key for there, key in own if there in (self.NamespaceName, "")), own[0][1] if own else "")


decode: Final = decoder(AlertedPolicy, "an alert", msgspec.json)


def named(keys: Iterable[str]) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """What `whose` asks, of policies by their keys (`kind/namespace/name`)."""
    found: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for key in keys:
        kind, namespace, name = key.split("/", 2)
        found.setdefault((kind, name), []).append((namespace, key))
    return found
