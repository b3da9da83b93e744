# SPDX-License-Identifier: Apache-2.0
"""A storm is cut, and every alert that was not told is counted in one that was."""

from __future__ import annotations

import asyncio

from hypothesis import given, settings
from hypothesis import strategies as st

from processors.engine import ProcessorSettings
from processors.throttle import ThrottleSettings
from schemas.operations import Operation

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
