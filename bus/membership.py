# SPDX-License-Identifier: Apache-2.0
"""Which member of a group reads which partition: shared evenly per topic, taken from a live member only with notice.

Sticky and cooperative, as Kafka's incremental protocol is: whoever has a partition keeps it unless another member has two
fewer of that topic. Then the partition is *revoked*: its owner has `revoke_seconds` to finish and to release it. A member
that does not ask for records for `member_seconds` loses everything without notice and joins again when it asks. Pure: time
is an argument. Neighbours: `contract` (what a reader sees of it), `memory` (the user).
"""

from __future__ import annotations

from collections.abc import Mapping

from bus.contract import Partition


class Member:
    """One subscription. `owned`: partition -> the number of the grant; `revoking`: partition -> when it is lost; `idle_since`:
    when it stopped asking for records, None while it asks."""

    def __init__(self, topics: Mapping[str, int], now: float) -> None:
        self.topics = topics
        self.owned: dict[Partition, int] = {}
        self.revoking: dict[Partition, float] = {}
        self.idle_since: float | None = now


class Membership:
    """The members of one group. `settle` after anything changed and whenever `due` has come."""

    def __init__(self, revoke_seconds: float, member_seconds: float) -> None:
        self._revoke_seconds = revoke_seconds
        self._member_seconds = member_seconds
        self._members: list[Member] = []
        self._grants = 0

    def join(self, member: Member, now: float) -> bool:
        """Take `member` in, unless it is in already; whether any partition changed hands or is being revoked."""
        if member in self._members:
            return False
        self._members.append(member)
        return self.settle(now)

    def leave(self, member: Member, now: float) -> bool:
        """What it owned is free at once."""
        self._expel(member)
        return self.settle(now)

    def release(self, member: Member, now: float) -> bool:
        """`member` lets go of what is being revoked from it."""
        for partition in member.revoking:
            member.owned.pop(partition, None)
        member.revoking.clear()
        return self.settle(now)

    def settle(self, now: float) -> bool:
        """Expel who is late, take what was not released in time, hand out what is free, revoke what is too much."""
        changed = False
        for member in list(self._members):
            if member.idle_since is not None and now - member.idle_since > self._member_seconds:
                self._expel(member)
                changed = True
            for partition in [one for one, deadline in member.revoking.items() if now >= deadline]:
                del member.revoking[partition]
                del member.owned[partition]
                changed = True
        topics = {name: count for member in self._members for name, count in member.topics.items()}
        for name, count in topics.items():
            changed = self._share(name, count, now) or changed
        return changed

    def due(self) -> float | None:
        """When something happens without anybody's doing: a notice or a member's time runs out."""
        times = [deadline for member in self._members for deadline in member.revoking.values()]
        times += [one.idle_since + self._member_seconds for one in self._members if one.idle_since is not None]
        return min(times, default=None)

    def _expel(self, member: Member) -> None:
        if member in self._members:
            self._members.remove(member)
        member.owned.clear()
        member.revoking.clear()

    def _share(self, name: str, count: int, now: float) -> bool:
        able = [member for member in self._members if name in member.topics]
        kept = {
            member: [one for one in member.owned if one[0] == name and one not in member.revoking] for member in able
        }
        loads = {member: len(partitions) for member, partitions in kept.items()}
        taken = {partition for member in able for partition in member.owned}
        changed = False
        for number in range(count):
            if (name, number) not in taken:
                member = min(able, key=loads.__getitem__)
                self._grants += 1
                member.owned[name, number] = self._grants
                loads[member] += 1
                changed = True
        # What is on its way already counts for those who will get it.
        for member in able:
            for _ in [one for one in member.revoking if one[0] == name]:
                loads[min(able, key=loads.__getitem__)] += 1
        while True:
            most, least = max(able, key=loads.__getitem__), min(able, key=loads.__getitem__)
            if loads[most] - loads[least] < 2 or not kept[most]:
                return changed
            most.revoking[kept[most].pop()] = now + self._revoke_seconds
            loads[most] -= 1
            loads[least] += 1
            changed = True
