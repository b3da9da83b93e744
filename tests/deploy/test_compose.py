# SPDX-License-Identifier: Apache-2.0
"""The compose stack gives away what it says and no more; `deploy/docker/try.sh` runs it for real."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hauberk.cli import VERBS
from hauberk.sections import Configuration
from hauberk.settings import check, merge

ROOT = Path(__file__).parents[2]
STACK: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = STACK["services"]
STAGES = ("node", "processor", "planner", "sink")
KEPT = ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH"]
BEGINNING = ["CHOWN", "SETUID", "SETGID", "SETPCAP"]


def resolved(text: str) -> str:
    """`${NAME:-default}` as an empty environment would have it."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


def test_the_four_stages_are_one_image() -> None:
    assert tuple(SERVICES) == STAGES
    assert len({service["image"] for service in SERVICES.values()}) == 1
    for name, service in SERVICES.items():
        assert service["command"] == [name]
        assert name in VERBS


@pytest.mark.parametrize("stage", STAGES)
def test_nobody_has_more_than_it_needs(stage: str) -> None:
    service = SERVICES[stage]
    assert "privileged" not in service
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["stop_grace_period"] == "30s", "longer than the service runner's own deadline"
    if stage != "node":
        assert service["user"] == "10001:10001"
        assert "cap_add" not in service
        assert not {"pid", "cgroup", "uts", "ipc", "devices"} & set(service)
        assert service["volumes"] == ["state:/var/lib/hauberk"]


def test_the_node_keeps_five_capabilities() -> None:
    assert SERVICES["node"]["cap_add"] == KEPT + BEGINNING
    script = (ROOT / "deploy/docker/entrypoint.sh").read_text()
    kept = re.search(r"^keep=(\S+)$", script, re.MULTILINE)
    assert kept is not None
    assert kept[1].split(",") == [f"+{name.lower()}" for name in KEPT]
    assert script.count('"-all,$keep"') == 3, "inheritable, ambient and bounding"


def test_units_keep_the_same_five() -> None:
    for unit in (ROOT / "deploy/systemd").glob("*.service"):
        lines = unit.read_text().splitlines()
        for key in ("CapabilityBoundingSet", "AmbientCapabilities"):
            assert f"{key}={' '.join(f'CAP_{name}' for name in KEPT)}" in lines


def test_the_page_says_what_each_is_for() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    for name in KEPT + BEGINNING:
        assert f"`{name}`" in page


def test_the_node_writes_to_bpffs_and_its_own_volumes_alone() -> None:
    mounts = [resolved(one) for one in SERVICES["node"]["volumes"]]
    writable = {one for one in mounts if not one.endswith(":ro")}
    assert writable == {"state:/var/lib/hauberk", "programs:/var/cache/hauberk", "/sys/fs/bpf:/sys/fs/bpf"}


def test_only_loopback_is_published() -> None:
    for service in SERVICES.values():
        for port in service.get("ports", []):
            assert resolved(port).startswith("127.0.0.1:")
    assert [name for name, one in SERVICES.items() if one["network_mode"] != "none"] == ["sink"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_environment_is_settings_that_exist(stage: str) -> None:
    environment = {name: resolved(text) for name, text in SERVICES[stage]["environment"].items()}
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert environment["HAUBERK_STATE"] == "/var/lib/hauberk"
    assert "HAUBERK_STATE=/var/lib/hauberk" in dockerfile
    configuration = check(merge(environment=environment), Configuration)
    assert configuration.metrics.enabled, "the health check asks there"
    assert (configuration.metrics.host, configuration.metrics.port) == ("127.0.0.1", 9644)
    if stage == "sink":
        assert [sink.__struct_config__.tag for sink in configuration.sinks] == ["file", "store", "prometheus"]
        ports = {resolved(port).split(":", 2)[2] for port in SERVICES[stage]["ports"]}
        assert ports == {str(configuration.sinks[2].port), str(configuration.page.port)}  # type: ignore[union-attr]
        assert not configuration.page.enabled, "it has no password, and the bridge has other containers on it"
    if stage == "node":
        assert os.path.dirname(configuration.sensor.pin_dir).startswith("/sys/fs/bpf/")
        assert f"HAUBERK__SENSOR__PIN_DIR={configuration.sensor.pin_dir}" in dockerfile


@pytest.mark.parametrize("stage", STAGES)
def test_health_is_asked_of_the_right_stage(stage: str) -> None:
    assert SERVICES[stage]["healthcheck"]["test"] == ["CMD", "health", stage]
