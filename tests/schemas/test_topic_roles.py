# SPDX-License-Identifier: Apache-2.0
"""The roles of the topic table are those of the code: whatever file names a topic where it writes or reads has the grant for it.

What runs is checked against a broker that refuses in `tests/kafka`; this finds the call that no run happens to make.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from schemas import topics
from schemas.topics import ENFORCEMENT_DESIRED, EVENTS_RAW, TOPICS, Role, Topic

ROOT = Path(__file__).parents[2]
NAMES = {name: value for name, value in vars(topics).items() if isinstance(value, Topic)}

ROLES: dict[str, tuple[Role, ...]] = {
    "sensors/node": (Role.NODE,), "sensors/containers": (Role.NODE,), "sensors/recordings": (Role.NODE,),
    "sensors/kubernetes": (Role.CLUSTER,), "enforcers/agent.py": (Role.NODE,), "enforcers/planner.py": (Role.PLANNER,),
    "processors": (Role.PROCESSOR,), "sinks": (Role.SINK,), "bus/dead_letters.py": (Role.PROCESSOR, Role.SINK, Role.NODE),
    "hauberk/supervision.py": (Role.NODE, Role.PROCESSOR, Role.PLANNER, Role.SINK, Role.CLUSTER),
    "hauberk/disk.py": (Role.NODE, Role.PROCESSOR, Role.PLANNER, Role.SINK, Role.CLUSTER),
    "hauberk/verbs/apply.py": (Role.CLI,), "hauberk/verbs/get.py": (Role.CLI,), "hauberk/verbs/delete.py": (Role.CLI,),
    "hauberk/verbs/logs.py": (Role.CLI,), "hauberk/rollout.py": (Role.CLI,), "hauberk/cluster_view.py": (Role.CLI,),
    "hauberk/learner_process.py": (Role.SINK,),
}  # fmt: skip
"""Files, or whole rooms: the roles whose processes run them. A recorder reads frames from the bus, as `cli` (below)."""
AS_CLI = ("sensors/recordings/recorder.py",)

WRITES = {"publish", "_publish"}
READS = {"subscribe", "latest", "end", "whole", "Follower", "Pump", "StandingTables", "StandingCount"}


def used(file: Path) -> Iterator[tuple[Topic, bool]]:
    """(topic, whether it is written) of each call in `file` that names one."""
    for node in ast.walk(ast.parse(file.read_text())):
        if not isinstance(node, ast.Call):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in WRITES or called in READS:
            for argument in node.args:
                named = argument.elts if isinstance(argument, ast.Tuple | ast.List) else [argument]
                yield from (
                    (NAMES[one.id], called in WRITES) for one in named if isinstance(one, ast.Name) and one.id in NAMES
                )


@pytest.mark.parametrize("place", ROLES)
def test_what_the_code_writes_and_reads_is_granted(place: str) -> None:
    path = ROOT / place
    for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
        roles = (Role.CLI,) if str(file.relative_to(ROOT)) in AS_CLI else ROLES[place]
        for topic, written in used(file):
            granted = topic.writers if written else topic.readers
            assert set(roles) <= set(granted), f"{file}: {topic.name} is {'written' if written else 'read'} by {roles}"


def test_the_search_finds_what_it_is_for() -> None:
    assert (EVENTS_RAW, True) in used(ROOT / "sensors/node/agent.py")
    assert (EVENTS_RAW, False) in used(ROOT / "processors/engine.py")
    assert (ENFORCEMENT_DESIRED, True) in used(ROOT / "enforcers/planner.py")


def test_every_topic_has_a_writer_and_a_reader_and_a_plan_has_one_writer() -> None:
    for topic in TOPICS:
        assert topic.writers, topic.name
        assert topic.readers, topic.name
        assert Role.CLI in topic.readers, "`hauberk topic tail` reads all"
    assert ENFORCEMENT_DESIRED.writers == (Role.PLANNER,)
    # What a node that was taken over could write: nothing that another node obeys.
    assert {topic.name for topic in TOPICS if Role.NODE in topic.writers} == {
        "events.raw", "inventory", "alerts", "enforcement.status", "nodes", "dead",
    }  # fmt: skip
