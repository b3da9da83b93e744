# SPDX-License-Identifier: Apache-2.0
"""An uninstall leaves nothing in force: on a node whose kernel is real, and on every node of a DaemonSet of a real API server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

PLAIN = Path(__file__).parents[2] / "deploy/kubernetes/hauberk.yaml"


@pytest.mark.kernel
def test_a_node_is_told_to_take_everything_down(hauberk: Any, live: None) -> None:
    running = hauberk.start("node")
    running.ready()
    assert running.end() == 0
    assert Path(hauberk.pins, "links").exists(), "a node that just ends leaves its programs in force"
    removing = hauberk.start("node", "--remove")
    removing.until("nothing of .* is enforced or watched any more")
    assert not Path(hauberk.pins).exists()
    assert removing.process.poll() is None, "it stays, so that the DaemonSet counts it as ready"
    assert removing.end() == 0


@pytest.mark.kubernetes
def test_every_node_of_a_daemon_set_is_waited_for(hauberk: Any, api_server: Any, eventually: Any) -> None:
    place = "removal"
    (made,) = [one for one in yaml.safe_load_all(PLAIN.read_text()) if one and one["kind"] == "DaemonSet"]
    made["spec"]["template"]["spec"]["priorityClassName"] = ""
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": place}},
                     made | {"metadata": made["metadata"] | {"namespace": place}})  # fmt: skip
    words = ("cluster", "--remove-from", f"{place}/hauberk-node")
    environment = {"HAUBERK__CLUSTER__SERVER__KUBECONFIG": str(api_server.kubeconfig())}
    path = f"/apis/apps/v1/namespaces/{place}/daemonsets/hauberk-node"

    def answered(nodes: int) -> None:
        generation = api_server.get(path)["metadata"]["generation"]
        api_server.status("daemonset", place, "hauberk-node", {
            "observedGeneration": generation, "desiredNumberScheduled": 2, "currentNumberScheduled": 2, "numberMisscheduled": 0,
            "updatedNumberScheduled": nodes, "numberReady": nodes,
        })  # fmt: skip

    removing = hauberk.start(*words, **environment)
    eventually(lambda: "--remove" in json.dumps(api_server.get(path)))
    (container,) = api_server.get(path)["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["node", "--remove"]
    assert container["securityContext"]["capabilities"]["drop"] == ["ALL"], "nothing else of it changed"
    answered(1)
    removing.until("1 of 2 nodes enforce nothing any more")
    answered(2)
    removing.until("nothing is enforced any more on 2 nodes")
    assert removing.process.wait(60) == 0
    answered(1)
    left = hauberk(*words, "--timeout", "1s", **environment)
    assert left.returncode == 1
    assert "not within 1 s: 1 of 2 nodes" in left.stderr
