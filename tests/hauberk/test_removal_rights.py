# SPDX-License-Identifier: Apache-2.0
"""The hook before an uninstall has the rights of its own Role in the chart: enough, each needed, and none on anything else."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import helm
import pytest
import yaml

pytestmark = pytest.mark.kubernetes

ROOT = Path(__file__).parents[2]
PLACE = "removal-rights"
NODES = f"/apis/apps/v1/namespaces/{PLACE}/daemonsets/hauberk-node"


@pytest.fixture(scope="module")
def hook() -> dict[str, dict[str, Any]]:
    """What the chart makes for it, by kind."""
    try:
        program = helm.found()
    except helm.NoHelm as error:
        pytest.skip(f"no helm: {error}")
    words = [
        program,
        "template",
        "hauberk",
        ROOT / "deploy/kubernetes/chart",
        "--namespace",
        PLACE,
        "--show-only",
        "templates/remove.yaml",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return {one["kind"]: one for one in yaml.safe_load_all(done.stdout) if one}


class Hooked:
    """The hook's account with some of its verbs, and what its Job runs."""

    def __init__(self, api_server: Any, hauberk: Any, hook: dict[str, dict[str, Any]]) -> None:
        self._api_server, self._hauberk, self._hook = api_server, hauberk, hook
        (self.rule,) = hook["Role"]["rules"]
        (container,) = hook["Job"]["spec"]["template"]["spec"]["containers"]
        self._words = container["args"][: container["args"].index("--timeout")]

    def account(self, name: str, verbs: list[str]) -> str:
        """The chart's account, Role and binding under `name`, with `verbs` alone of the Role's one rule; the path of its kubeconfig."""
        meta = {"name": name, "namespace": PLACE}
        role = self._hook["Role"] | {"metadata": meta, "rules": [self.rule | {"verbs": verbs}] if verbs else []}
        binding = self._hook["RoleBinding"] | {
            "metadata": meta, "roleRef": self._hook["RoleBinding"]["roleRef"] | {"name": name},
            "subjects": [self._hook["RoleBinding"]["subjects"][0] | {"name": name}],
        }  # fmt: skip
        self._api_server.apply(self._hook["ServiceAccount"] | {"metadata": meta}, role, binding)
        made = self._api_server.kubectl("create", "--raw", f"/api/v1/namespaces/{PLACE}/serviceaccounts/{name}/token", "-f", "-", given=json.dumps(
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}))  # fmt: skip
        return str(self._api_server.kubeconfig(json.loads(made.stdout)["status"]["token"]))

    def may(self, name: str, verb: str, what: str) -> bool:
        """What the API server itself says."""
        who = f"system:serviceaccount:{PLACE}:{name}"
        return bool(
            self._api_server.kubectl("auth", "can-i", verb, what, "-n", PLACE, "--as", who, check=False).returncode == 0
        )

    def run(self, kubeconfig: str) -> subprocess.CompletedProcess[str]:
        """As the Job does, with a short wait."""
        done: subprocess.CompletedProcess[str] = self._hauberk(
            *self._words, "--timeout", "30s", HAUBERK__CLUSTER__SERVER__KUBECONFIG=kubeconfig
        )
        return done


@pytest.fixture
def hooked(api_server: Any, hauberk: Any, hook: dict[str, dict[str, Any]]) -> Any:
    plain = yaml.safe_load_all((ROOT / "deploy/kubernetes/hauberk.yaml").read_text())
    (made,) = [one for one in plain if one and one["kind"] == "DaemonSet"]
    made["spec"]["template"]["spec"]["priorityClassName"] = ""
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": PLACE}},
                     made | {"metadata": made["metadata"] | {"namespace": PLACE}})  # fmt: skip
    yield Hooked(api_server, hauberk, hook)
    api_server.kubectl("delete", "daemonsets,roles,rolebindings,serviceaccounts", "--all", "-n", PLACE)


def test_each_right_is_needed_and_all_together_are_enough(hooked: Hooked, api_server: Any, eventually: Any) -> None:
    verbs = hooked.rule["verbs"]
    assert len(verbs) == len(set(verbs)) > 1
    for left in verbs:
        rest = [one for one in verbs if one != left]
        name = f"no-{left}"
        file = hooked.account(name, rest)
        # The authorizer takes Roles in a moment after they are made.
        eventually(lambda name=name, rest=rest: all(hooked.may(name, one, "daemonsets/hauberk-node") for one in rest))
        done = hooked.run(file)
        assert done.returncode != 0, left
        assert f'"system:serviceaccount:{PLACE}:{name}" cannot {left} resource "daemonsets"' in done.stderr
    file = hooked.account("all", verbs)
    eventually(lambda: all(hooked.may("all", one, "daemonsets/hauberk-node") for one in verbs))
    # A cluster without nodes: the rollout is over as soon as its controller has seen it.
    generation = api_server.get(NODES)["metadata"]["generation"]
    api_server.status("daemonset", PLACE, "hauberk-node", {
        "observedGeneration": generation + 1, "desiredNumberScheduled": 0, "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
    })  # fmt: skip
    done = hooked.run(file)
    assert (done.returncode, "nothing is enforced any more on 0 nodes" in done.stderr) == (0, True), done.stderr
    (container,) = api_server.get(NODES)["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["node", "--remove"]


def test_it_may_do_nothing_else(hooked: Hooked, eventually: Any) -> None:
    hooked.account("all", hooked.rule["verbs"])
    eventually(lambda: hooked.may("all", "patch", "daemonsets/hauberk-node"))
    for verb, what in (("patch", "daemonsets/other"), ("get", "daemonsets/other"), ("delete", "daemonsets/hauberk-node"), ("list", "daemonsets"),
                       ("get", "secrets"), ("list", "pods"), ("patch", "deployments/hauberk-node")):  # fmt: skip
        assert not hooked.may("all", verb, what), (verb, what)
