# SPDX-License-Identifier: Apache-2.0
"""runc, crun and podman, run for real and read by their state files."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from sensors.containers import cgroups
from sensors.containers.cgroups import Place
from sensors.containers.podman import Podman, PodmanSettings

pytestmark = pytest.mark.containers


@pytest.mark.parametrize("kind", ["runc", "crun"])
async def test_a_plain_container_is_found_by_its_cgroup(oci: Any, kind: str) -> None:
    name = f"hauberk-{kind}-{os.getpid()}"
    oci.run(kind, name, annotations={"team": "red"})
    runtime = Podman(PodmanSettings(roots=(oci.root(kind),)))
    found = await runtime.describe(Place("", f"/{name}"))
    assert found is not None
    assert (found.id, found.name, found.runtime, found.cgroup_path) == (name, name, kind, f"/{name}")
    assert found.annotations["team"] == "red"
    assert cgroups.of_pid(found.root_pid) == f"/{name}"
    assert await runtime.describe(Place("", f"/{name}/inner")) == found
    assert await runtime.describe(Place("", f"/{name}-not")) is None
    assert await runtime.list() == [found]


async def test_podman_gives_its_name(podman_cli: Any) -> None:
    id_ = podman_cli.run("hauberk-podman")
    runtime = Podman()
    found = await runtime.describe(Place(id_, f"/libpod_parent/libpod-{id_}", "podman"))
    assert found is not None
    assert (found.name, found.runtime) == ("hauberk-podman", "podman")
    assert found.cgroup_path == cgroups.of_pid(found.root_pid)
    assert cgroups.parse(found.cgroup_path) == Place(id_, found.cgroup_path, "podman")


async def test_changes_are_told(oci: Any, until: Any) -> None:
    told: list[tuple[str, bool]] = []
    runtime = Podman(PodmanSettings(roots=(oci.root("runc"),), poll_seconds=0.02))
    watching = asyncio.create_task(runtime.watch(lambda id_, ended: told.append((id_, ended))))
    name = f"hauberk-watched-{os.getpid()}"
    await asyncio.to_thread(oci.run, "runc", name)
    await until(lambda: (name, False) in told)
    await asyncio.to_thread(oci.remove, name)
    await until(lambda: (name, True) in told)
    watching.cancel()


async def test_half_written_state_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "box").mkdir()
    (tmp_path / "box/state.json").write_text('{"id": "bo')
    runtime = Podman(PodmanSettings(roots=(str(tmp_path),)))
    assert await runtime.describe(Place("box", "/box")) is None
    assert await runtime.list() == []
    assert runtime.status == ""
