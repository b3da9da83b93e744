# SPDX-License-Identifier: Apache-2.0
"""The compose stacks give away what they say and no more; `deploy/docker/try.sh` runs them for real."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from vmrig import docker
from vmrig.debian import NoPackage

from hauberk.cli import VERBS
from hauberk.sections import Configuration
from hauberk.settings import check, merge

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "compose.embedded.yml")
STACKS: dict[str, dict[str, Any]] = {name: yaml.safe_load((ROOT / name).read_text()) for name in FILES}
STAGES = ("node", "processor", "planner", "sink")
OTHERS = ("kafka", "topics", "prometheus", "grafana")
KEPT = ["BPF", "PERFMON", "NET_ADMIN", "SYS_PTRACE", "DAC_READ_SEARCH", "AUDIT_READ"]
BEGINNING = ["CHOWN", "SETUID", "SETGID", "SETPCAP"]


@pytest.fixture(params=FILES)
def services(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = STACKS[request.param]["services"]
    return found


@pytest.fixture
def far() -> dict[str, Any]:
    """The services of the stack over Kafka."""
    found: dict[str, Any] = STACKS["docker-compose.yml"]["services"]
    return found


def resolved(text: str) -> str:
    """`${NAME:-default}` as an empty environment would have it."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", text)


@pytest.fixture(scope="session")
def compose() -> list[str]:
    try:
        return docker.compose()
    except NoPackage as error:
        pytest.skip(f"no compose v2: {error}")


@pytest.mark.parametrize("file", FILES)
def test_compose_finds_nothing_to_say(file: str, compose: list[str]) -> None:
    """Compose's own reading: keys, types, references between services. No engine is needed."""
    done = subprocess.run(
        [*compose, "-f", file, "config", "--format", "json"],
        cwd=ROOT, capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"),
                                                        "DOCKER_CONFIG": os.environ.get("DOCKER_CONFIG", "")},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert set(json.loads(done.stdout)["services"]) == set(STACKS[file]["services"])


def test_the_four_stages_are_one_image() -> None:
    assert tuple(STACKS["compose.embedded.yml"]["services"]) == ("pins", *STAGES)
    assert set(STACKS["docker-compose.yml"]["services"]) == {"pins", *STAGES, *OTHERS}
    for stack in STACKS.values():
        services = {name: one for name, one in stack["services"].items() if name in STAGES}
        assert len({service["image"] for service in services.values()}) == 1
        for name, service in services.items():
            assert service["command"] == [name]
            assert name in VERBS


@pytest.mark.parametrize("stage", STAGES)
def test_nobody_has_more_than_it_needs(services: dict[str, Any], stage: str) -> None:
    service = services[stage]
    assert "privileged" not in service
    assert service["cap_drop"] == ["ALL"]
    assert service["read_only"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["stop_grace_period"] == "30s", "longer than the service runner's own deadline"
    assert service["init"] is (stage != "node"), "a signal to the first process, before it has a handler, is lost"
    if stage != "node":
        assert service["user"] == "10001:10001"
        assert "cap_add" not in service
        assert not {"pid", "cgroup", "uts", "ipc", "devices"} & set(service)
        assert service.get("volumes", []) in ([], ["state:/var/lib/hauberk"], [f"{stage}:/var/lib/hauberk"])


def test_over_kafka_no_two_services_share_a_directory(far: dict[str, Any]) -> None:
    mounted = [
        one.split(":")[0] for name, service in far.items() for one in service.get("volumes", []) if name != "pins"
    ]
    named = [one for one in mounted if not one.startswith((".", "/", "$"))]
    assert len(set(named)) == len(named)
    assert set(named) == set(STACKS["docker-compose.yml"]["volumes"])


def test_the_holder_of_pins_holds_and_does_nothing_else(services: dict[str, Any]) -> None:
    """Its bpffs is mounted while it or the node runs: rules outlive the node, and `down` leaves none."""
    holder = services["pins"]
    assert holder["volumes"] == ["pins:/sys/fs/bpf"]
    assert "pins:/sys/fs/bpf" in services["node"]["volumes"]
    assert services["node"]["depends_on"] == {"pins": {"condition": "service_started"}}, "enforces without a broker"
    assert (holder["user"], holder["network_mode"], holder["cap_drop"]) == ("10001:10001", "none", ["ALL"])
    assert holder["read_only"] is True
    assert "no-new-privileges:true" in holder["security_opt"]
    assert not {"cap_add", "privileged", "environment", "ports"} & set(holder)
    assert holder["healthcheck"]["test"][:1] == ["CMD"]
    for stack in STACKS.values():
        assert stack["volumes"]["pins"]["driver_opts"] == {"type": "bpf", "device": "bpf", "o": "mode=0711"}


def test_everything_else_is_confined_too_and_has_a_health_check(far: dict[str, Any]) -> None:
    for name in OTHERS:
        service = far[name]
        assert "privileged" not in service
        assert "cap_add" not in service
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
    assert {name for name, one in far.items() if "healthcheck" not in one} == {"topics"}, "it ends"
    assert far["processor"]["deploy"] == {"replicas": 2}
    assert STACKS["docker-compose.yml"]["networks"]["bus"] == {"internal": True}
    assert {name for name, one in far.items() if "front" in one.get("networks", ())} == {
        "sink",
        "prometheus",
        "grafana",
    }


def test_prometheus_asks_every_stage_where_it_answers(far: dict[str, Any]) -> None:
    read = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (stages,) = (one["dns_sd_configs"][0] for one in read["scrape_configs"])
    environment = {name: resolved(text) for name, text in far["sink"]["environment"].items()}
    configuration = check(merge(environment=environment), Configuration)
    assert (set(stages["names"]), stages["port"]) == (set(STAGES), configuration.metrics.port)
    assert stages["port"] != configuration.sinks[2].port, "asked at both, sums of alerts would be doubled"  # type: ignore[union-attr]
    mounted = {
        one.split(":")[0] for one in far["prometheus"]["volumes"] + far["grafana"]["volumes"] if one.startswith(".")
    }
    assert all((ROOT / one).exists() for one in mounted)
    assert {f"./deploy/prometheus/{one}" for one in read["rule_files"]} < mounted


@pytest.mark.skipif(shutil.which("promtool") is None, reason="needs promtool (apt install prometheus)")
def test_promtool_reads_the_configuration(tmp_path: Path) -> None:
    for name in ("prometheus.yml", "hauberk.rules.yml"):
        shutil.copy(ROOT / "deploy/prometheus" / name, tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboards_ask_the_data_source_that_is_provisioned() -> None:
    made = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/hauberk.yml").read_text())["providers"][0]
    grafana = STACKS["docker-compose.yml"]["services"]["grafana"]
    assert f"./deploy/grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    boards = {path.name: json.loads(path.read_text()) for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")}
    assert os.path.basename(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]) in boards
    for board in boards.values():
        panels = [one for one in board["panels"] if one["type"] != "row"]
        assert panels
        assert {one["datasource"]["uid"] for one in panels} == {made["datasources"][0]["uid"]}


def test_the_node_keeps_five_capabilities(services: dict[str, Any]) -> None:
    assert services["node"]["cap_add"] == KEPT + BEGINNING
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


def test_the_node_writes_to_bpffs_and_its_own_volumes_alone(services: dict[str, Any]) -> None:
    mounts = [resolved(one) for one in services["node"]["volumes"]]
    writable = {one for one in mounts if not one.endswith(":ro")}
    assert writable - {"programs:/var/cache/hauberk", "pins:/sys/fs/bpf"} in (
        {"state:/var/lib/hauberk"}, {"node:/var/lib/hauberk"},
    )  # fmt: skip


def test_only_loopback_is_published(services: dict[str, Any]) -> None:
    for service in services.values():
        for port in service.get("ports", []):
            assert resolved(port).startswith("127.0.0.1:")
    embedded = STACKS["compose.embedded.yml"]["services"]
    assert [name for name, one in embedded.items() if one["network_mode"] != "none"] == ["sink"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_environment_is_settings_that_exist(services: dict[str, Any], stage: str) -> None:
    environment = {name: resolved(text) for name, text in services[stage]["environment"].items()}
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    assert environment["HAUBERK_STATE"] == "/var/lib/hauberk"
    assert "HAUBERK_STATE=/var/lib/hauberk" in dockerfile
    configuration = check(merge(environment=environment), Configuration)
    assert configuration.metrics.enabled, "the health check asks there"
    host = "0.0.0.0" if "kafka" in services else "127.0.0.1"
    assert (configuration.metrics.host, configuration.metrics.port) == (host, 9644)
    assert configuration.bus.__struct_config__.tag == ("kafka" if "kafka" in services else "embedded")
    if stage == "sink":
        assert [sink.__struct_config__.tag for sink in configuration.sinks] == ["file", "store", "prometheus"]
        ports = {resolved(port).split(":", 2)[2] for port in services[stage]["ports"]}
        assert ports == {str(configuration.sinks[2].port), str(configuration.page.port)}  # type: ignore[union-attr]
        assert not configuration.page.enabled, "it has no password, and the bridge has other containers on it"
    if stage == "node":
        pins = re.search(r"HAUBERK__SENSOR__PIN_DIR=(\S+)", dockerfile)
        assert pins is not None
        assert os.path.dirname(pins[1]).startswith("/sys/fs/bpf/"), "in the volume `pins`, a level below its root"


@pytest.mark.parametrize("stage", STAGES)
def test_health_is_asked_of_the_right_stage(services: dict[str, Any], stage: str) -> None:
    assert services[stage]["healthcheck"]["test"] == ["CMD", "health", stage]
