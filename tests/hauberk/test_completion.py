# SPDX-License-Identifier: Apache-2.0
"""What a shell is offered: words where words stand, names that are on the bus where names stand, nothing where files stand."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from hauberk.cli import VERBS
from hauberk.verbs.completion import SCRIPTS, candidates
from schemas.identity import Identity, Kind, encode
from schemas.topics import ENFORCEMENT_STATUS, INVENTORY, POLICIES

PROGRAM = str(Path(sys.executable).parent / "hauberk")


@pytest.fixture
async def state(tmp_path: Path) -> Path:
    bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(tmp_path / "bus")))
    keys = [
        "KubeArmorPolicy/shop/web",
        "KubeArmorPolicy/data/web",
        "KubeArmorHostPolicy//shadow",
        "KubeArmorPolicy/shop/$(id)",
    ]
    await bus.publish(POLICIES, [Record(key.encode(), b"{}") for key in keys])
    some = [
        Identity(kind=Kind.CONTAINER, node="n", uid="1", container_name="cart", namespace="shop"),
        Identity(kind=Kind.CONTAINER, node="n", uid="2", container_name="`id`", namespace="shop"),
        Identity(kind=Kind.HOST, node="n", uid="3", cgroup_path="/user.slice"),
    ]
    await bus.publish(INVENTORY, [Record(one.uid.encode(), encode(one)) for one in some])
    await bus.publish(INVENTORY, [Record(b"4", b"not an identity")])
    await bus.publish(ENFORCEMENT_STATUS, [Record(b"node-1", b"x")])
    await bus.close()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("get policies", ["shadow", "web"]),
        ("get policy web", ["shadow", "web"]),
        ("get ksp", ["web"]),
        ("get -n shop policies -o json", ["web"]),
        ("describe hsp", ["shadow"]),
        ("describe policy", ["shadow", "web"]),
        ("delete policy", ["shadow", "web"]),
        ("get workloads", ["cart"]),
        ("describe node", ["node-1"]),
        ("get nodes", ["node-1"]),
        ("get alerts", []),
    ],
)
def test_names_on_the_bus_are_offered(state: Path, line: str, names: list[str]) -> None:
    words = line.split()
    assert candidates([words[0], "--state", str(state), *words[1:], ""]) == names


def test_where_the_bus_lies_comes_from_the_settings(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HAUBERK_STATE", str(state))
    assert candidates(["get", "ksp", "w"]) == ["web"]
    monkeypatch.setenv("HAUBERK_STATE", "/proc/nowhere")
    assert candidates(["get", "ksp", ""]) == []
    assert candidates(["get", f"--set=bus.directory={state}/bus", "ksp", ""]) == ["web"]
    assert candidates(["get", "--set", 'bus={"type": "memory"}', "ksp", ""]) == []
    assert candidates(["get", "--config", "/none.toml", "ksp", ""]) == []


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("get ", {"policies", "workloads"}, {"--watch"}),
        ("get -", {"--watch", "-o"}, {"policies"}),
        ("get -o ", {"wide", "json"}, {"policies"}),
        ("get -w ", {"policies"}, set()),
        ("policy ", {"explain", "lint"}, set()),
        ("policy explain -", {"--event"}, {"explain"}),
        ("topic tail ", {"alerts", "policies"}, {"tail"}),
        ("summary ", {"--agg"}, set()),
        ("describe policy web ", {"-n"}, {"policy"}),
        ("get nodes --limit 3 -o ", {"json"}, set()),
    ],
)
def test_words_stand_where_they_belong(line: str, some: set[str], none: set[str]) -> None:
    words = line.split(" ")
    found = set(candidates(words))
    assert some <= found
    assert not none & found


@pytest.mark.parametrize(
    "line",
    ["policy explain -f ", "apply --filename ", "get --state ", "policy check ", "policy explain ", "logs --limit "],
)
def test_where_a_value_of_ones_own_stands_the_shell_offers_files(line: str) -> None:
    assert candidates(line.split(" ")) == []


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_can_be_completed(verb: str) -> None:
    assert any(word.startswith("-") for word in candidates([verb, "-"]))


def test_a_name_cannot_run_in_the_shell_that_completes(state: Path, tmp_path: Path) -> None:
    """bash expands what it completes with."""
    script = f'{SCRIPTS["bash"]}\nCOMP_WORDS=(hauberk get --state {state} policies "") COMP_CWORD=5\n_hauberk\necho "${{COMPREPLY[*]}}"'
    done = subprocess.run(
        ["bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{Path(PROGRAM).parent}:/usr/bin:/bin"},
    )
    assert done.stdout.split() == ["shadow", "web"]


def test_looking_names_up_is_cheap(state: Path) -> None:
    """The look alone, of 1000 policies; a shell start is not ours."""
    import asyncio

    async def fill() -> None:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(state / "bus")))
        await bus.publish(POLICIES, [Record(f"KubeArmorPolicy/shop/p{n}".encode(), b"{}" * 2000) for n in range(1000)])
        await bus.close()

    asyncio.run(fill())
    best = min(_timed(state) for _ in range(5))
    assert best < 0.1


def _timed(state: Path) -> float:
    begin = time.process_time()
    assert len(candidates(["get", "--state", str(state), "ksp", "p"])) >= 1000
    return time.process_time() - begin
