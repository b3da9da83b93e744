# SPDX-License-Identifier: Apache-2.0
"""What a small machine and a large one spend on rings and maps, and how much of a machine a container is."""

from __future__ import annotations

import msgspec
import pytest

from kernel.loading import LoadSettings
from kernel.machine import Machine, machine
from kernel.map_sizes import map_sizes

GIB = 1 << 30


@pytest.mark.parametrize(
    ("memory", "processors", "events", "definitions", "behaviours"),
    [
        (GIB // 4, 1, 2, 0.5, 8192), (GIB // 2, 4, 2, 0.5, 8192), (GIB, 2, 4, 1, 16384), (2 * GIB, 2, 8, 2, 32768),
        (4 * GIB, 2, 16, 4, 65536), (4 * GIB, 64, 16, 4, 65536), (8 * GIB, 4, 32, 8, 65536), (64 * GIB, 64, 128, 32, 65536),
    ],
)  # fmt: skip
def test_sizes_follow_memory_and_processors(memory, processors, events, definitions, behaviours):
    found = map_sizes(Machine(memory=memory, processors=processors))
    assert found["occurrence_pages"] * 4096 == events << 20
    assert found["definition_pages"] * 4096 == definitions * (1 << 20)
    assert found["behaviours"] == found["strings"] == found["processes"] == behaviours
    # The settings take each of them, a ring's power of two included.
    msgspec.structs.replace(LoadSettings(), **found)


def test_a_machine_with_room_gets_what_the_settings_say_by_themselves():
    settings = LoadSettings()
    assert map_sizes(Machine(memory=16 * GIB, processors=2)) == {
        name: getattr(settings, name) for name in map_sizes(Machine(memory=1, processors=1))
    }


def put(root, path, text):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("groups", "files", "memory"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/kubepods/pod/agent\n", {"sys/fs/cgroup/kubepods/memory.max": "max\n"}, 8 * GIB),
        ("0::/kubepods/pod/agent\n", {"sys/fs/cgroup/kubepods/pod/agent/memory.max": "536870912\n"}, GIB // 2),
        ("0::/kubepods/pod/agent\n", {"sys/fs/cgroup/kubepods/pod/memory.max": "536870912\n"}, GIB // 2),
        ("0::/\n", {"sys/fs/cgroup/memory.max": "536870912\n"}, GIB // 2),
        ("0::/../elsewhere\n", {"sys/fs/cgroup/memory.max": "536870912\n"}, GIB // 2),
        ("0::/a\n", {"sys/fs/cgroup/unified/a/memory.max": "536870912\n"}, GIB // 2),
        ("4:cpu,memory:/a\n0::/\n", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "536870912\n"}, GIB // 2),
        ("4:memory:/a\n", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n"}, 8 * GIB),
    ],
)
def test_a_containers_limit_counts(tmp_path, groups, files, memory):
    put(tmp_path, "proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n")
    put(tmp_path, "proc/self/cgroup", groups)
    for path, text in files.items():
        put(tmp_path, path, text)
    assert machine(str(tmp_path)).memory == memory


def test_this_machine_has_memory_and_processors():
    here = machine()
    assert 1 << 26 < here.memory < 1 << 50
    assert here.processors >= 1
