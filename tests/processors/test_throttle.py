# SPDX-License-Identifier: Apache-2.0
"""A storm is cut, and every alert that was not told is counted in one that was."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from processors.engine import ProcessorSettings
from processors.throttle import Throttle, ThrottleKey, ThrottleSettings
from schemas.operations import Backend, Class, Operation

AUDIT_ALL = {"file": {"matchDirectories": [{"dir": "/", "recursive": True}]}, "action": "Audit"}


async def test_ten_a_second_then_silence_then_what_was_silenced(node, stage, make_policy):
    stage.policies(make_policy(**AUDIT_ALL))
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    for _ in range(25):
        node.row(read)
    await stage.take(node.record())
    kinds = [alert.Operation for alert in stage.alerts]
    assert kinds == ["File"] * 10 + ["AlertThreshold"]
    notice = stage.alerts[-1]
    assert (notice.Type, notice.MaxAlertsPerSec, notice.DroppingAlertsInterval) == ("SystemEvent", 10, 30)
    assert (notice.ContainerName, notice.Result) == ("web", "Passed")
    assert stage.processor.stats().throttled == 15
    node.row(read, at=node.clock + 31_000_000_000)
    await stage.take(node.record())
    assert (stage.alerts[-1].Operation, stage.alerts[-1].Suppressed) == ("File", 15)


async def test_silence_that_ends_without_an_alert_is_told(node, stage, make_policy):
    stage.policies(make_policy(**AUDIT_ALL))
    for _ in range(12):
        node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await stage.take(node.record())
    await stage.pass_time(29)
    assert [alert.Suppressed for alert in stage.alerts if alert.Suppressed] == []
    await stage.pass_time(2)
    assert (stage.alerts[-1].Operation, stage.alerts[-1].Suppressed) == ("AlertThreshold", 2)


async def test_a_flood_is_not_walked(node, stage, make_policy):
    stage.policies(make_policy(**AUDIT_ALL))
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    for _ in range(5000):
        node.row(read, step=1000)
    node.fold(read, 1_000_000)
    await stage.take(node.record())
    assert len(stage.alerts) == 11
    assert stage.processor.stats().throttled == 4990 + 1_000_000
    await stage.finish()
    assert stage.counted() == 1_005_000


async def test_the_default_posture_cannot_silence_a_policy(node, stage, make_policy):
    stage.policies(
        make_policy(name="allow", file={"matchPaths": [{"path": "/ok"}]}, action="Allow"),
        make_policy(name="block", file={"matchPaths": [{"path": "/secret"}]}, action="Block"),
    )
    noise = node.behaviour(Operation.OPEN, "/noise", syscall=257)
    for _ in range(100):
        node.row(noise)
    node.row(node.behaviour(Operation.OPEN, "/secret", syscall=257))
    await stage.take(node.record())
    assert stage.alerts[-1].PolicyName == "block"


@settings(max_examples=80, deadline=None)
@given(
    frames=st.lists(
        st.tuples(st.integers(1, 200), st.sampled_from([1_000, 5_000_000, 400_000_000]), st.integers(0, 30)), max_size=6
    ),
    limit=st.sampled_from([0, 1, 10]),
)
def test_nothing_is_uncounted(frames, limit, make_stage, make_node, host, web, make_policy):
    async def run() -> None:
        stage = make_stage(ProcessorSettings(throttle=ThrottleSettings(max_alerts_per_second=limit)))
        stage.identity(host)
        stage.identity(web)
        stage.policies(make_policy(**AUDIT_ALL))
        node = make_node()
        read = node.behaviour(Operation.OPEN, "/a", syscall=257)
        for rows, step, folded in frames:
            for _ in range(rows):
                node.row(read, step=step)
            if folded:
                node.fold(read, folded)
            await stage.take(node.record())
        await stage.finish()
        told = sum(alert.Count for alert in stage.alerts if alert.Operation == "File")
        assert told + sum(alert.Suppressed for alert in stage.alerts) == node.sent
        if not limit:
            assert told == node.sent

    asyncio.run(run())


async def test_the_noise_of_one_rule_silences_no_other_and_no_block(node, stage, make_policy):
    stage.policies(
        make_policy(
            file={"matchPaths": [{"path": "/audited"}, {"path": "/other"}]},
            process={"matchPaths": [{"path": "/bin/nc", "action": "Block"}]},
            action="Audit",
        )
    )
    for _ in range(30):
        node.row(node.behaviour(Operation.OPEN, "/audited", syscall=257))
    node.row(node.behaviour(Operation.OPEN, "/other", syscall=257))
    node.row(node.behaviour(Operation.EXEC, "/bin/nc", syscall=59, enforcer=Backend.SIGNAL))
    node.row(node.behaviour(Operation.EXEC, "/bin/nc", syscall=59))
    await stage.take(node.record())
    told = [(alert.Resource, alert.Action) for alert in stage.alerts[11:]]
    assert told == [("/other", "Audit"), ("/bin/nc", "Block"), ("/bin/nc", "Audit (Block)")]


async def test_a_resource_not_told_before_is_told_in_a_silence_and_the_end_lists_each_rule(node, stage, make_policy):
    stage.policies(
        make_policy(
            file={"matchDirectories": [{"dir": "/a/"}, {"dir": "/b/"}]},
            action="Audit",
        )
    )
    for _ in range(20):
        node.row(node.behaviour(Operation.OPEN, "/a/noise", syscall=257))
    node.row(node.behaviour(Operation.OPEN, "/a/news", syscall=257))
    node.row(node.behaviour(Operation.OPEN, "/a/news", syscall=257))
    for _ in range(15):
        node.row(node.behaviour(Operation.OPEN, "/b/noise", syscall=257))
    await stage.take(node.record())
    assert [alert.Resource for alert in stage.alerts].count("/a/news") == 1
    await stage.pass_time(31)
    closing = stage.alerts[-1]
    assert (closing.Operation, closing.Suppressed, closing.PolicyName) == ("AlertThreshold", 16, "p")
    assert closing.EventData == {
        "spec.file.matchDirectories[0]:Audit:File": "11",
        "spec.file.matchDirectories[1]:Audit:File": "5",
    }
    assert closing.Data == "spec.file.matchDirectories[0]:Audit:File=11 spec.file.matchDirectories[1]:Audit:File=5"


async def test_new_resources_without_end_are_folded_and_counted(node, make_stage, host, web, make_policy):
    stage = make_stage(ProcessorSettings(throttle=ThrottleSettings(new_resources=5)))
    stage.identity(host)
    stage.identity(web)
    stage.policies(make_policy(**AUDIT_ALL))
    for number in range(1000):
        node.row(node.behaviour(Operation.OPEN, f"/new/{number}", syscall=257))
    await stage.take(node.record())
    assert sum(alert.Operation == "File" for alert in stage.alerts) == 15
    throttle = stage.processor.throttle
    assert throttle.suppressed == 985
    assert [len(bucket.seen) for bucket in throttle._buckets.values()] == [15]
    await stage.pass_time(31)
    assert stage.alerts[-1].Suppressed == 985


async def test_kinds_without_end_are_told_and_forgotten(node, make_stage, host, web, replace, make_policy):
    stage = make_stage(ProcessorSettings(throttle=ThrottleSettings(kinds=16)))
    stage.identity(host)
    stage.policies(make_policy(**AUDIT_ALL))
    for number in range(40):
        stage.identity(
            replace(web, uid=f"{number:064}", cgroups=(1000 + number,), cgroup_path=f"/c/{number}", mnt_ns=100 + number)
        )
        read = node.behaviour(Operation.OPEN, "/a", syscall=257, cgroup=1000 + number, mnt_ns=100 + number)
        for _ in range(12):
            node.row(read)
    await stage.take(node.record())
    assert len(stage.processor.throttle) == 16
    await stage.finish()
    told = sum(alert.Count for alert in stage.alerts if alert.Operation == "File")
    assert told + sum(alert.Suppressed for alert in stage.alerts) == 40 * 12
    assert told == 400


def kind_of(number: int) -> ThrottleKey:
    return ThrottleKey("node-1", "boot", f"uid{number}", "policy", "rule", "Audit", Class.FILE)


def test_a_kind_forgotten_while_it_is_in_hand_loses_no_count(node, web):
    throttle = Throttle(ThrottleSettings(kinds=16))
    frame = node.frame().header
    first = throttle.bucket(kind_of(0), web, frame)
    for number in range(1, 17):
        throttle.bucket(kind_of(number), web, frame)
    throttle.suppress(first, 5)
    throttle.suppress(first, 2)
    assert [(bucket.kind.uid, bucket.suppressed) for bucket in throttle.over(lambda _: 0)] == [("uid0", 7)]


def test_kinds_and_their_resources_stay_within_their_bytes(node, web):
    throttle = Throttle(ThrottleSettings(cached_bytes=65536, new_resources=1000))
    frame, silenced = node.frame().header, 0
    for number in range(300):
        bucket = throttle.bucket(kind_of(number % 90), web, frame)
        for resource in range(50):
            told, _ = throttle.admit(bucket, number + resource, f"/{number}/{resource}")
            silenced += not told
        assert throttle.held_bytes <= 65536 + 700 + 50 * 64
    assert 1 < len(throttle) < 90
    assert silenced == throttle.suppressed
    throttle.over(lambda _: 1 << 62, everything=True)
    assert throttle.held_bytes == 0


async def test_a_clock_that_is_set_back_lengthens_no_silence(node, stage, make_policy):
    stage.policies(make_policy(**AUDIT_ALL))
    read = node.behaviour(Operation.OPEN, "/a", syscall=257)
    for _ in range(20):
        node.row(read)
    await stage.take(node.record())
    hour = 3_600_000_000_000
    node.offset -= hour
    node.row(read, at=node.clock + 31_000_000_000)
    await stage.take(node.record())
    assert (stage.alerts[-1].Operation, stage.alerts[-1].Suppressed) == ("File", 10)
    # A snapshot that was restored: the time since boot itself goes back.
    for _ in range(20):
        node.row(read)
    await stage.take(node.record())
    count = len(stage.alerts)
    node.row(read, at=node.clock - 600_000_000_000 if node.clock > 600_000_000_000 else 1)
    await stage.take(node.record())
    assert [alert.Operation for alert in stage.alerts[count:]] == ["File"]


async def test_a_node_with_a_wrong_clock_moves_nobody_elses(node, make_node, stage, host, web, replace, make_policy):
    stage.policies(make_policy(**AUDIT_ALL))
    stage.identity(replace(host, node="node-2", uid="node-2"))
    stage.identity(replace(web, node="node-2", uid="b" * 64))
    for _ in range(12):
        node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await stage.take(node.record())
    wrong = make_node("node-2")
    wrong.offset += 10 * 365 * 86_400_000_000_000
    wrong.row(wrong.behaviour(Operation.OPEN, "/b", syscall=257), at=10**17)
    await stage.take(wrong.record())
    await stage.pass_time(5)
    # Ten years ahead over there: the silence here is not over, and a loss here is told at this node's time.
    assert [alert.Suppressed for alert in stage.alerts if alert.Suppressed] == []
    node.lost = (3,)
    await stage.take(node.record())
    await stage.pass_time(11)
    lost = next(alert for alert in stage.alerts if alert.Operation == "EventsLost")
    assert abs(lost.Timestamp - stage.alerts[0].Timestamp) < 60


async def test_the_end_of_the_stage_tells_what_is_silenced(node, stage, make_policy):
    stage.policies(make_policy(**AUDIT_ALL))
    for _ in range(25):
        node.row(node.behaviour(Operation.OPEN, "/a", syscall=257))
    await stage.take(node.record())
    stage.processor.pipeline.settle(closing=True)
    await stage.processor.send()
    assert (stage.alerts[-1].Operation, stage.alerts[-1].Suppressed) == ("AlertThreshold", 15)
