# SPDX-License-Identifier: Apache-2.0
"""Who reads what: each partition has one owner, loads differ by one at most, nobody loses anything without notice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.membership import Member, Membership

STEPS = st.lists(st.tuples(st.sampled_from(["join", "leave", "release", "late"]), st.integers(0, 4)), max_size=40)


@given(STEPS, st.integers(1, 7))
def test_each_partition_has_one_owner_and_notice_is_given(steps, count):
    now = 0.0
    membership = Membership(10.0, 1e9)
    topics = {"a": count, "b": 2}
    members = [Member(topics if number % 2 else {"a": count}, now) for number in range(5)]
    inside: list[Member] = []
    for step, number in steps:
        member = members[number]
        before = {one: dict(one.owned) for one in inside}
        due = {one: set(one.revoking) for one in inside}
        if step == "join":
            membership.join(member, now)
            inside += [] if member in inside else [member]
        elif step == "leave":
            membership.leave(member, now)
            inside = [one for one in inside if one is not member]
        elif step == "release":
            membership.release(member, now)
        else:
            now += 11.0
            membership.settle(now)
        for one in inside:
            if one in before:
                gone = {partition for partition, grant in before[one].items() if one.owned.get(partition) != grant}
                assert gone <= due[one] | ({*one.owned} & due[one])
            assert one.revoking.keys() <= one.owned.keys()
        owned = [partition for one in inside for partition in one.owned]
        assert len(owned) == len(set(owned))
        if inside:
            assert {partition for partition in owned if partition[0] == "a"} == {("a", n) for n in range(count)}
    for _ in range(20):
        for one in inside:
            membership.release(one, now)
    loads = [sum(partition[0] == "a" for partition in one.owned) for one in inside]
    assert not loads or max(loads) - min(loads) <= 1


def test_a_member_that_does_not_ask_is_out_and_one_that_waits_is_not():
    membership = Membership(10.0, 60.0)
    slow, waiting = Member({"a": 2}, 0.0), Member({"a": 2}, 0.0)
    membership.join(slow, 0.0)
    membership.join(waiting, 0.0)
    waiting.idle_since = None
    assert membership.due() == 10.0
    membership.release(slow, 1.0)
    assert (len(slow.owned), len(waiting.owned), membership.due()) == (1, 1, 60.0)
    assert membership.settle(60.5)
    assert (len(slow.owned), len(waiting.owned), membership.due()) == (0, 2, None)
    slow.idle_since = None
    assert membership.join(slow, 61.0)
    assert len(waiting.revoking) == 1
