# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend --kubeconfig`: the workloads of a cluster, asked of a real API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hauberk.cli import main

pytestmark = pytest.mark.kubernetes

PLACE = "recommended"


def template(name: str, **more: Any) -> dict[str, Any]:
    containers = [{"name": "app", "image": f"team/{name}:1"}]
    return {"metadata": {"labels": {"app": name}}, "spec": {"containers": containers, **more}}


def made(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    group = {"Job": "batch/v1", "CronJob": "batch/v1", "Pod": "v1", "ReplicationController": "v1"}.get(kind, "apps/v1")
    return {"apiVersion": group, "kind": kind, "metadata": {"name": name, "namespace": PLACE}, "spec": spec}


def selected(kind: str, name: str, **spec: Any) -> dict[str, Any]:
    return made(kind, name, selector={"matchLabels": {"app": name}}, template=template(name), **spec)


def asked(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["recommend", "-p", "netcat", "--state", str(tmp_path / "state"), *words])
    return code, *capsys.readouterr()


def test_what_runs_is_asked_of_the_server(capsys: pytest.CaptureFixture[str], tmp_path: Path, api_server: Any) -> None:
    deployment = selected("Deployment", "web")
    deployment["spec"]["template"]["spec"]["initContainers"] = [{"name": "prepare", "image": "team/prepare:1"}]
    once = {"restartPolicy": "Never"}
    made_by_rollout = selected("ReplicaSet", "rolled", replicas=0)
    bare = made("Pod", "bare", **template("bare")["spec"])
    bare["metadata"]["labels"] = {"app": "bare", "pod-template-hash": "x1"}
    ended = made("Pod", "ended", **template("ended")["spec"])
    api_server.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}}, deployment, selected("DaemonSet", "agent"),
        selected("StatefulSet", "db", serviceName="db"), made("Job", "load", template=template("load", **once)),
        made("CronJob", "nightly", schedule="0 3 * * *", jobTemplate={"spec": {"template": template("nightly", **once)}}),
        made("ReplicationController", "old", selector={"app": "old"}, template=template("old")), made_by_rollout, bare, ended,
    )  # fmt: skip
    found = json.loads(api_server.kubectl("get", "deployment", "web", "-n", PLACE, "-o", "json").stdout)
    owner = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "web",
        "uid": found["metadata"]["uid"],
        "controller": True,
    }
    owned = selected("ReplicaSet", "web-1", replicas=1)
    owned["metadata"]["ownerReferences"] = [owner]
    api_server.apply(owned)
    api_server.status("pod", PLACE, "ended", {"phase": "Succeeded"})

    file = str(api_server.kubeconfig("admin"))
    code, out, err = asked(capsys, tmp_path, "--kubeconfig", file, "-n", PLACE)
    assert code == 0, err
    bodies = list(yaml.safe_load_all(out))
    names = {one["metadata"]["name"].removesuffix("-netcat") for one in bodies}
    assert names == {"agent-app", "bare-app", "db-app", "load-app", "nightly-app", "old-app", "web-app", "web-prepare"}
    assert {one["metadata"]["namespace"] for one in bodies} == {PLACE}
    labels = {one["metadata"]["name"]: one["spec"]["selector"]["matchLabels"] for one in bodies}
    assert labels["load-app-netcat"] == {"app": "load", "kubearmor.io/container.name": "[app]"}, "not those of one run"
    assert labels["bare-app-netcat"] == {"app": "bare", "kubearmor.io/container.name": "[app]"}
    assert "images alone" not in err
    code, out, _ = asked(capsys, tmp_path, "--kubeconfig", file, "-l", "app=db")
    assert [one["metadata"]["name"] for one in yaml.safe_load_all(out)] == ["db-app-netcat"]
    # Page after page.
    import hauberk.recommend_targets as targets

    one_by_one = targets.ServerSettings
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(targets, "ServerSettings", lambda **fields: one_by_one(page=1, **fields))
        code, again, _ = asked(capsys, tmp_path, "--kubeconfig", file, "-n", PLACE)
    assert {one["metadata"]["name"] for one in yaml.safe_load_all(again)} == {f"{name}-netcat" for name in names}


def test_a_server_that_refuses_or_is_not_there_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, api_server: Any
) -> None:
    file = str(api_server.kubeconfig("nobody"))
    code, out, err = asked(capsys, tmp_path, "--kubeconfig", file, "-o", str(tmp_path / "out"))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "give the account that right" in err
    code, _, err = asked(capsys, tmp_path, "--kubeconfig", str(tmp_path / "none"))
    assert (code, "there is no such file" in err, err.count("\n")) == (2, True, 1)
    broken = tmp_path / "broken"
    broken.write_text(
        Path(file).read_text().replace(str(api_server.port), "1") if hasattr(api_server, "port") else "a: ["
    )
    code, _, err = asked(capsys, tmp_path, "--kubeconfig", str(broken))
    assert (code, err.count("\n")) == (2, 1), err
    assert not (tmp_path / "out").exists()
