# SPDX-License-Identifier: Apache-2.0
"""The chart and the plain manifests: rendered by helm, taken strictly by a real API server, with no more rights than they say."""

from __future__ import annotations

import base64
import json
import re
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import helm
import pytest
import yaml

from hauberk.sections import Configuration
from hauberk.settings import check, merge
from sinks.kubernetes.settings import ClusterWebhookSettings
from sinks.web.page import PageSettings

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy/kubernetes/chart"
PLAIN = ROOT / "deploy/kubernetes/hauberk.yaml"
NAMESPACE = "hauberk"
OWN_KAFKA = {
    "kafka": {"bootstrap": "kafka.example:9093", "ports": [9093], "secretName": "kafka-client",
              "settings": {"sasl": {"username": "hauberk", "password": {"file": "/etc/hauberk/kafka/password"}}}},
    "processor": {"autoscaling": {"enabled": True}}, "node": {"seLinuxOptions": {"type": "spc_t"}, "keepRules": True},
    "sinks": [{"name": "siem", "storage": "", "settings": {"type": "syslog", "address": "siem.example:6514", "transport": "tls"}}],
    "networkPolicies": {"sinkEgress": [{"to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}]},
    "imagePullSecrets": [{"name": "pull"}], "settings": {"postures": {"network": "block"}},
}  # fmt: skip
NOTHING_MORE = {"networkPolicies": {"enabled": False}, "podDisruptionBudgets": {"enabled": False}, "priorityClass": {"create": False},
                "kafka": {"createTopics": False}}  # fmt: skip
SERVING = {"sinks": [
    {"name": "prometheus", "storage": "", "settings": {"type": "prometheus", "host": "::"}, "ports": {"prometheus": 9642}},
    {"name": "alerts", "storage": "", "settings": {"type": "console", "form": "json"}},
], "networkPolicies": {"sinkFrom": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]}}  # fmt: skip
WEBHOOK = {"cluster": {"webhook": {"enabled": True}}}
VALUES: dict[str, dict[str, Any]] = {
    "default": {},
    "own kafka": OWN_KAFKA,
    "nothing more": NOTHING_MORE,
    "webhook": WEBHOOK,
    "serving": SERVING,
}
WORKLOADS = ("DaemonSet", "Deployment", "StatefulSet", "Job")
Render = Callable[[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def helm_program() -> Path:
    try:
        return helm.found()
    except helm.NoHelm as error:
        pytest.skip(f"no helm: {error}")


@pytest.fixture(scope="module")
def render(helm_program: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """Objects of the chart under the values of that name."""
    kept: dict[str, list[dict[str, Any]]] = {}

    def rendered(name: str) -> list[dict[str, Any]]:
        if name not in kept:
            values = tmp_path_factory.mktemp("values") / "values.yaml"
            values.write_text(json.dumps(VALUES[name]))
            kept[name] = [one for one in yaml.safe_load_all(template(helm_program, values, hooks=True)) if one]
        return kept[name]

    return rendered


def template(program: Path, *values: Path, hooks: bool = False) -> str:
    words = [program, "template", "hauberk", CHART, "--namespace", NAMESPACE, *([] if hooks else ["--no-hooks"])]
    words += [word for file in values for word in ("--values", file)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pods(objects: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Component -> spec of its pods, with the volumes that its controller adds."""
    found = {}
    for one in objects:
        if one["kind"] in WORKLOADS:
            spec = one["spec"]["template"]["spec"]
            claims = [
                {"name": claim["metadata"]["name"], "emptyDir": {}}
                for claim in one["spec"].get("volumeClaimTemplates", ())
            ]
            found[one["metadata"]["labels"]["app.kubernetes.io/component"]] = spec | {
                "volumes": spec.get("volumes", []) + claims
            }
    return found


def test_helm_finds_nothing_to_say(helm_program: Path) -> None:
    done = subprocess.run([helm_program, "lint", "--strict", CHART], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_plain_manifests_are_what_the_chart_makes(helm_program: Path) -> None:
    head = PLAIN.read_text().partition("---\n")[0]
    assert head.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert PLAIN.read_text() == head + template(helm_program), "run deploy/kubernetes/render.sh"


@pytest.mark.kubernetes
@pytest.mark.parametrize("name", VALUES)
def test_a_real_api_server_takes_every_object(api_server: Any, render: Render, name: str) -> None:
    """Strictly: a field that it does not know is an error."""
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    text = yaml.safe_dump_all(render(name))
    done = api_server.kubectl(
        "apply",
        "-n",
        NAMESPACE,
        "--server-side",
        "--dry-run=server",
        "--validate=strict",
        "-f",
        "-",
        given=text,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(render(name))


@pytest.mark.kubernetes
def test_pod_security_lets_everything_but_the_node_run_restricted(api_server: Any, render: Render) -> None:
    for level in ("restricted", "privileged"):
        api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {
            "name": f"pods-{level}", "labels": {"pod-security.kubernetes.io/enforce": level}}})  # fmt: skip
    for stage, spec in pods(render("default")).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": stage}, "spec": spec | {"priorityClassName": ""}}
        asked = {
            level: api_server.kubectl("create", "--dry-run=server", "-n", f"pods-{level}", "-f", "-", given=json.dumps(pod), check=False)
            for level in ("restricted", "privileged")
        }  # fmt: skip
        assert asked["privileged"].returncode == 0, asked["privileged"].stderr
        assert (asked["restricted"].returncode == 0) is (stage != "node"), (stage, asked["restricted"].stderr)
        if stage == "node":
            assert "hostPID=true" in asked["restricted"].stderr
            assert "privileged=true" not in asked["restricted"].stderr


def test_the_node_has_the_capabilities_that_its_entry_point_names_and_no_more(render: Render) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["node"]
    spec = pods(render("default"))["node"]
    (container,) = spec["containers"]
    context = container["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"], "add": compose["cap_add"]}
    assert (context["privileged"], context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, False, True)  # fmt: skip
    assert "hostNetwork" not in spec
    assert spec["automountServiceAccountToken"] is False
    assert spec["tolerations"] == [{"operator": "Exists"}]


def test_only_the_cluster_role_has_a_token(render: Render) -> None:
    tokens = {stage for stage, spec in pods(render("default")).items() if spec["automountServiceAccountToken"]}
    assert tokens == {"cluster", "remove"}
    bound = [one for one in render("default") if one["kind"] in ("ClusterRoleBinding", "RoleBinding")]
    assert {subject["name"] for one in bound for subject in one["subjects"]} == {"hauberk-cluster", "hauberk-remove"}


@pytest.mark.parametrize("name", VALUES)
def test_every_role_reads_settings_that_hauberk_takes(render: Render, tmp_path: Path, name: str) -> None:
    (settings,) = [one for one in render(name) if one["kind"] == "ConfigMap"]
    file = tmp_path / "settings.yaml"
    file.write_text(settings["data"]["settings.yaml"])
    check(merge(str(file), (), {}), Configuration)
    for stage, spec in pods(render(name)).items():
        for container in spec["containers"] if stage != "kafka" else ():
            words = {one["name"]: one.get("value", "x") for one in container.get("env", ())}
            given = [f"{key.removeprefix('HAUBERK__').lower().replace('__', '.')}={value}" for key, value in words.items()
                     if key.startswith("HAUBERK__")]  # fmt: skip
            check(merge(str(file), given, {}), Configuration)


def test_each_sink_is_a_deployment_of_its_own(render: Render) -> None:
    sinks = [stage for stage in pods(render("default")) if stage.startswith("sink-")]
    assert sinks == ["sink-alerts", "sink-store"]
    assert [stage for stage in pods(render("own kafka")) if stage.startswith("sink-")] == ["sink-siem"]


def test_what_a_sink_serves_can_be_reached(render: Render) -> None:
    """By name, on its own port, through its own network policy, and by whom the values say; a sink that serves nothing has none of it."""
    named = {(one["kind"], one["metadata"]["name"]): one for one in render("serving")}
    (container,) = named["Deployment", "hauberk-sink-prometheus"]["spec"]["template"]["spec"]["containers"]
    assert {"name": "prometheus", "containerPort": 9642} in container["ports"]
    assert {"name": "metrics", "containerPort": 9644} in container["ports"]
    labels = named["Deployment", "hauberk-sink-prometheus"]["spec"]["template"]["metadata"]["labels"]
    service = named["Service", "hauberk-sink-prometheus"]["spec"]
    assert service["ports"] == [{"name": "prometheus", "port": 9642, "targetPort": "prometheus"}]
    policy = named["NetworkPolicy", "hauberk-sink-prometheus"]["spec"]
    assert policy["policyTypes"] == ["Ingress"]
    assert policy["ingress"] == [{
        "ports": [{"protocol": "TCP", "port": 9642}],
        "from": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}],
    }]  # fmt: skip
    for selector in (service["selector"], policy["podSelector"]["matchLabels"]):
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/component"] == "sink-prometheus"
    assert not {("Service", "hauberk-sink-alerts"), ("NetworkPolicy", "hauberk-sink-alerts")} & named.keys()


def test_the_documentation_forwards_the_port_of_the_page_from_a_deployment_that_keeps_a_store(render: Render) -> None:
    text = (ROOT / "docs/kubernetes.md").read_text()
    ((deployment, port),) = re.findall(
        r"^kubectl port-forward -n hauberk deployment/(\S+) (\d+):\2$", text, re.MULTILINE
    )
    assert int(port) == PageSettings().port
    (found,) = [
        one for one in render("default") if (one["kind"], one["metadata"]["name"]) == ("Deployment", deployment)
    ]
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert '"type":"store"' in json.dumps(container["env"]).replace("\\", "")
    (sinks,) = re.findall(r"^```yaml\n(sinks:.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert yaml.safe_load(sinks)["sinks"][0] == SERVING["sinks"][0]  # type: ignore[index]


def test_the_hook_before_an_uninstall_reaches_the_api_server_and_nothing_else(render: Render) -> None:
    """It is made before the Job runs, and gone with it."""
    named = {(one["kind"], one["metadata"]["name"]): one for one in render("default")}
    policy, job = named["NetworkPolicy", "hauberk-remove"], named["Job", "hauberk-remove"]
    assert policy["spec"]["podSelector"]["matchLabels"] == job["spec"]["template"]["metadata"]["labels"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == []
    assert sorted({port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}) == [53, 443, 6443]
    said, later = (one["metadata"]["annotations"] for one in (policy, job))
    assert said["helm.sh/hook"] == later["helm.sh/hook"] == "pre-delete"
    assert int(said["helm.sh/hook-weight"]) < int(later.get("helm.sh/hook-weight", 0))
    for other in ("own kafka", "nothing more"):
        assert not [
            one
            for one in render(other)
            if (one["kind"], one["metadata"]["name"]) == ("NetworkPolicy", "hauberk-remove")
        ]


def test_every_pod_of_the_chart_has_a_network_policy(render: Render) -> None:
    chosen = [one["spec"]["podSelector"]["matchLabels"] for one in render("default") if one["kind"] == "NetworkPolicy"]
    for one in render("default"):
        if one["kind"] in WORKLOADS:
            labels = one["spec"]["template"]["metadata"]["labels"]
            assert any(selector.items() <= labels.items() for selector in chosen), one["metadata"]["name"]


def test_the_webhook_fails_open_and_trusts_the_certificate_that_its_pods_show(render: Render) -> None:
    found = {one["kind"]: one for one in render("webhook") if one["metadata"]["name"] == "hauberk-webhook"}
    (hook,) = found["ValidatingWebhookConfiguration"]["webhooks"]
    assert (hook["failurePolicy"], hook["sideEffects"]) == ("Ignore", "None")
    secret = found["Secret"]["data"]
    assert hook["clientConfig"]["caBundle"] == secret["ca.crt"]
    authority = ssl.create_default_context(cadata=base64.b64decode(secret["ca.crt"]).decode())
    assert authority.cert_store_stats()["x509_ca"] == 1
    names = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName"], input=base64.b64decode(secret["tls.crt"]), capture_output=True, check=True
    ).stdout  # fmt: skip
    assert b"DNS:hauberk-webhook.hauberk.svc" in names
    ports = found["Service"]["spec"]["ports"]
    assert ports[0]["targetPort"] == ClusterWebhookSettings().port
    (policy,) = [
        one
        for one in render("webhook")
        if one["kind"] == "NetworkPolicy" and one["metadata"]["name"] == "hauberk-cluster"
    ]
    assert {"ports": [{"protocol": "TCP", "port": ports[0]["targetPort"]}]} in policy["spec"]["ingress"]
    assert not [one for one in render("default") if "webhook" in json.dumps(one)]
