# SPDX-License-Identifier: Apache-2.0
"""What `hauberk discover -p NetworkPolicy` writes passes the validation of a real API server, strictly, and is stored as it was written."""

from __future__ import annotations

import json

import pytest
from api_server import ApiServer

from policy.learn.evidence import Evidence
from policy.learn.network.addresses import INTERNET, excluded
from policy.learn.network.directory import PortRange
from policy.learn.network.flows import Subject
from policy.learn.network.forms import kubernetes
from policy.learn.network.intermediate import ConnectPolicy, ConnectRule, RulePeer
from policy.learn.workloads import LearntWorkload

pytestmark = pytest.mark.kubernetes

TCP = (
    PortRange("TCP", 80, 80),
    PortRange("TCP", 7000, 7005),
    PortRange("TCP", 8080, 8080, "web"),
    PortRange("UDP", 32768, 65535),
    PortRange("SCTP", 9, 9),
)


def test_every_part_of_the_form_is_accepted_and_kept(api_server: ApiServer) -> None:
    subject = Subject(LearntWorkload("default", "netpol-shop", "Deployment", "web", ""), (("app", "web"),))
    peers = [
        RulePeer("pods", "netpol-shop", (("app", "api"),)), RulePeer("pods", "data", (("app.kubernetes.io/name", "db"),)),
        RulePeer("nodes", networks=("192.168.0.1/32", "fd00::1/128")),
        RulePeer("networks", networks=("93.184.216.0/24", INTERNET[4], INTERNET[6])),
    ]  # fmt: skip
    rules = tuple(ConnectRule(peer=peer, ports=TCP[: 2 + at], evidence=Evidence()) for at, peer in enumerate(peers))
    full = kubernetes(ConnectPolicy(subject=subject, ingress=rules, egress=rules))
    assert excluded(INTERNET[4])
    closed = kubernetes(ConnectPolicy(subject=subject, ingress=(), egress=()))
    api_server.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "netpol-shop"}})
    try:
        for document in (full, closed):
            text = json.dumps(document)
            done = api_server.kubectl(
                "apply", "--validate=strict", "--server-side", "--force-conflicts", "-f", "-", given=text
            )
            assert "serverside-applied" in done.stdout
            got = json.loads(
                api_server.kubectl(
                    "get", "networkpolicy", "-n", "netpol-shop", full["metadata"]["name"], "-o", "json"
                ).stdout
            )["spec"]
            assert got.get("ingress", []) == document["spec"].get("ingress", [])
            assert got.get("egress", []) == document["spec"].get("egress", [])
            assert got["policyTypes"] == ["Ingress", "Egress"]
        # The server does refuse what is wrong: a range on a named port.
        broken = json.dumps(
            {
                **full,
                "spec": {**full["spec"], "ingress": [{"ports": [{"protocol": "TCP", "port": "web", "endPort": 9}]}]},
            }
        )
        assert "endPort" in api_server.kubectl("apply", "--server-side", "-f", "-", given=broken, check=False).stderr
    finally:
        api_server.kubectl("delete", "namespace", "netpol-shop", "--wait=false")
