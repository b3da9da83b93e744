# SPDX-License-Identifier: Apache-2.0
"""`hauberk discover` over a real store and a real bus: shown, explained, reviewed, merged, written, applied as a shadow and promoted."""

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
import yaml

import hauberk.learning
from bus.contract import Record
from bus.embedded.bus import EmbeddedBus, EmbeddedSettings
from hauberk.cli import main
from hauberk.progress_line import ProgressLine
from policy.learn.learner import LearnSettings, LearntPolicy
from policy.learn.replay import TrainingReplay
from policy.learn.sightings import Sighting
from policy.parse import parse
from policy.ruleset import compile_ruleset
from schemas.behaviour import Behaviour
from schemas.cluster import PodFact, ServiceFact, ServicePort
from schemas.cluster import encode as encode_fact
from schemas.errors import PolicyError
from schemas.identity import Identity, Kind, Owner
from schemas.identity import encode as encode_identity
from schemas.operations import Access, Operation
from schemas.summary import Summary, SummaryEntry
from schemas.topics import CLUSTER, INVENTORY, POLICIES
from schemas.verdict import Action
from sinks.store.sqlite import SqliteStore

NOW = time.time_ns()


def pod(number: int) -> Identity:
    return Identity(kind=Kind.CONTAINER, node="n", uid=f"u{number}", namespace="shop", pod=f"web-{number}", container_name="app",
                    owner=Owner("Deployment", "web", "shop"), labels={"app": "web"}, orchestrated=True)  # fmt: skip


def opened(path: str, access: Access = Access.READ) -> Behaviour:
    return Behaviour(
        operation=Operation.OPEN, access=access, resource=path, executable="/usr/bin/app", parent="/init", owner=0
    )


def connected(address: str, port: int) -> Behaviour:
    return Behaviour(
        operation=Operation.CONNECT,
        address=address,
        port=port,
        family=2,
        socket_type=1,
        executable="/usr/bin/app",
        parent="/init",
    )


RUNS = itertools.count()


def put(state: Path, number: int, *behaviours: Behaviour, status: str = "Allow", of: Identity | None = None) -> None:
    state.mkdir(exist_ok=True)
    store = SqliteStore(str(state / "summary.db"))
    at = NOW - 3600 * 10**9 + number * 10**9
    entries = tuple(SummaryEntry(behaviour=one, status=status, count=7, first=at, last=at) for one in behaviours)
    store.apply([Summary(node="n", run=f"r{next(RUNS)}", first_frame=1, last_frame=1, bucket=at // 10**9 // 60 * 60, identity=of or pod(number), entries=entries)], [])  # fmt: skip
    store.close()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    made = tmp_path / "state"
    started = Behaviour(
        operation=Operation.EXEC, access=Access.EXEC, resource="/usr/bin/app", executable="/init", parent="/init"
    )
    for number in (1, 2, 3):
        put(made, number, started, opened("/etc/app.conf"), opened(f"/srv/job-{number}", Access.WRITE))
    put(made, 2, opened("/etc/shadow"))
    put(made, 3, opened("/srv/denied"), status="Deny")

    async def bus() -> None:
        await (await EmbeddedBus.open(EmbeddedSettings(directory=str(made / "bus")))).close()

    asyncio.run(bus())
    return made


def run(capsys: pytest.CaptureFixture[str], state: Path, *words: object, code: int = 0) -> str:
    capsys.readouterr()
    got = main([*map(str, words), "--state", str(state)])
    said = capsys.readouterr()
    assert got == code, (words, said)
    return said.out + (said.err if code > 1 else "")


def test_the_policy_is_whole_and_allows_what_was_seen(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    text = run(capsys, state, "discover")
    body = yaml.safe_load(text)
    assert body["spec"]["selector"]["matchLabels"] == {"app": "web", "kubearmor.io/container.name": "[app]"}
    assert body["spec"]["file"] == {
        "matchPaths": [{"path": "/etc/app.conf", "readOnly": True}], "matchPatterns": [{"pattern": "/srv/job-[0-9]*"}],
    }  # fmt: skip
    assert text.startswith("# shop/web/app: 3 rules from 9 behaviours (63 events), of which it denies none. ")
    free = [name for name in ("process", "file", "network") if name not in body["spec"]]
    assert free
    assert f"Without a rule for {' or '.join(free)} it restricts none of that" in text.splitlines()[0]
    assert run(capsys, state, "discover") == text
    parsed = parse(text, "learnt")
    assert not parsed.diagnostics
    fine = [Sighting(identity=pod(9), behaviour=opened("/srv/job-17", Access.WRITE))]
    assert not list(TrainingReplay(parsed.policies).denied(fine))
    assert json.loads(run(capsys, state, "discover", "-f", "json")) == [body]


def test_containers_outside_kubernetes_have_policies_that_can_be_applied(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    """Of docker's containers: their common namespace is no name for a policy, whose own says nothing there."""
    box = Identity(kind=Kind.CONTAINER, node="n", uid="box", namespace="container_namespace", container_name="box")
    started = Behaviour(
        operation=Operation.EXEC, access=Access.EXEC, resource="/bin/sh", executable="/init", parent="/init"
    )
    put(state, 4, started, opened("/etc/box.conf"), of=box)
    file = tmp_path / "box.yaml"
    file.write_text(run(capsys, state, "discover", "-c", "box"))
    (document,) = parse(file.read_bytes(), "box").policies
    assert document.namespace == "default"
    assert compile_ruleset([document]).scope(box).judge(started).action is Action.ALLOW


def test_every_rule_has_its_evidence_and_what_is_apart_its_reason(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    (told,) = json.loads(run(capsys, state, "discover", "--explain", "-f", "json"))
    jobs = next(rule for rule in told["rules"] if "job" in rule["rule"])
    assert (jobs["count"], jobs["instances"], jobs["sources"]) == (21, ["u1", "u2", "u3"], ["/usr/bin/app"])
    assert jobs["pods"] == ["web-1", "web-2", "web-3"]
    assert "file pattern /srv/job-[0-9]*" in run(capsys, state, "discover", "--explain")
    items = json.loads(run(capsys, state, "discover", "--review", "-f", "json", code=1))
    assert [(item["reason"], item["resource"]) for item in items] == [
        ("a secret", "/etc/shadow"),
        ("told as Deny", "/srv/denied"),
    ]
    accepted = run(capsys, state, "discover", "--accept", items[0]["ident"])
    assert "/etc/shadow" in accepted
    assert "a secret" in run(capsys, state, "discover", "--review", code=1)


def test_a_pod_whose_container_was_started_again_and_again_is_one_pod(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    for number in range(10, 15):
        put(state, 1, opened("/etc/app.conf"), of=msgspec.structs.replace(pod(number), pod="web-1"))
    (told,) = json.loads(run(capsys, state, "discover", "--explain", "-f", "json"))
    read = next(rule for rule in told["rules"] if "/etc/app.conf" in rule["rule"])
    assert (read["pods"], len(read["instances"])) == (["web-1", "web-2", "web-3"], 8)
    (line,) = [one for one in run(capsys, state, "discover", "--explain").splitlines() if "/etc/app.conf" in one]
    assert line.split("Z ")[-1].split() == ["3", "web-1,", "web-2,", "web-3", "/usr/bin/app"]
    for number in range(20, 25):
        put(state, 1, opened("/etc/app.conf"), of=pod(number))
    (line,) = [one for one in run(capsys, state, "discover", "--explain").splitlines() if "/etc/app.conf" in one]
    assert " ".join(line.split("Z ")[-1].split()) == "8 web-1, web-2, web-20, web-21, web-22 and 3 more /usr/bin/app"


def test_an_id_that_accepts_nothing_is_refused_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    shadow, denied = (
        item["ident"] for item in json.loads(run(capsys, state, "discover", "--review", "-f", "json", code=1))
    )
    out = tmp_path / "out"
    said = run(capsys, state, "discover", "--accept", f"{shadow},0123456789", "--outdir", out, code=2)
    assert "got `0123456789`, which nothing in this selection and time has" in said
    said = run(capsys, state, "discover", "--accept", denied, "--outdir", out, code=2)
    assert f"got `{denied}`, which never is: told as Deny" in said
    assert not out.exists()
    # What a second instance did meanwhile is learnt; the id of before is no mistake.
    put(state, 3, opened("/etc/shadow"))
    assert "/etc/shadow" in run(capsys, state, "discover", "--accept", shadow)
    said = run(capsys, state, "discover", "-p", "NetworkPolicy", "--accept", "0123456789", code=2)
    assert "got `0123456789`" in said


def test_a_file_to_verify_that_is_none_is_told_also_where_nothing_was_seen(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    assert "expected a readable file of policies" in run(
        capsys, state, "discover", "--verify", tmp_path / "none", code=2
    )
    (tmp_path / "text").write_text("no policy")
    assert "expected network policies" in run(capsys, state, "discover", "--verify", tmp_path / "text", code=2)
    assert main(["discover", "-p", "KubeArmorNetworkPolicy", "--state", str(state)]) == 1
    assert "no connections of nodes in the last 30d" in capsys.readouterr().err


def test_that_policies_for_an_untracked_namespace_select_nothing_is_said(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    dns = msgspec.structs.replace(pod(8), namespace="kube-system", owner=Owner("Deployment", "coredns", "kube-system"))
    put(state, 8, opened("/etc/coredns/Corefile"), of=dns)
    said = "1 policy is for kube-system and will select nothing: containers there are neither logged nor subject to policies"
    for verb in (("discover",), ("recommend", "-p", "netcat")):
        assert main([*verb, "--state", str(state)]) == 0
        assert said in capsys.readouterr().err, verb
        assert main([*verb, "-n", "shop", "--state", str(state)]) == 0
        assert "select nothing" not in capsys.readouterr().err
        assert main([*verb, "--set", "postures.untracked_namespaces=[]", "--state", str(state)]) == 0
        assert "select nothing" not in capsys.readouterr().err


def test_a_file_is_extended_and_nothing_of_it_lost(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    body = yaml.safe_load(run(capsys, state, "discover"))
    body["spec"]["message"] = "mine"
    body["spec"]["file"]["matchPaths"].append({"path": "/opt/mine"})
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(body))
    assert yaml.safe_load(run(capsys, state, "discover", "--merge", mine)) == body
    put(state, 4, opened("/etc/more.conf"), opened("/etc/app.conf", Access.WRITE))
    put(state, 5, opened("/etc/more.conf"), opened("/etc/app.conf", Access.WRITE))
    again = yaml.safe_load(run(capsys, state, "discover", "--merge", mine))
    body["spec"]["file"]["matchPaths"] = [
        {"path": "/etc/app.conf"},
        {"path": "/opt/mine"},
        {"path": "/etc/more.conf", "readOnly": True},
    ]
    assert again == body


def test_files_are_written_whole(capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path) -> None:
    written = run(capsys, state, "discover", "--outdir", tmp_path / "out").split()
    assert [str(path) for path in (tmp_path / "out").rglob("*") if path.is_file()] == written
    assert run(capsys, state, "policy", "check", *written) == "1 policy: nothing to say\n"
    # Two things were set apart: the secret, and what was denied.
    assert "0 would be blocked, 14 audited" in run(capsys, state, "policy", "backtest", *written)


def test_a_shadow_first_then_the_same_policy_enforces(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    name = yaml.safe_load(run(capsys, state, "discover"))["metadata"]["name"]
    assert (
        run(capsys, state, "discover", "--apply", "--mode", "shadow")
        == f"kubearmorpolicy/shop/{name} created (shadow)\n"
    )
    # What the shadow would have blocked is not learnt from then on.
    put(state, 6, opened("/srv/new", Access.WRITE))
    put(state, 7, opened("/srv/new", Access.WRITE))
    items = json.loads(run(capsys, state, "discover", "--review", "-f", "json", code=1))
    waiting = {item["resource"]: item for item in items}
    assert waiting["/srv/new"]["reason"] == "a shadow policy or a baseline spoke against it"
    assert "/srv/new" not in run(capsys, state, "discover")
    assert "/srv/new" in run(capsys, state, "discover", "--accept", waiting["/srv/new"]["ident"])
    assert run(capsys, state, "discover", "--promote", name) == f"kubearmorpolicy/shop/{name} configured (enforce)\n"
    assert "enforces already" in run(capsys, state, "discover", "--promote", name, code=2)
    assert "there is none" in run(capsys, state, "discover", "--promote", "nobody", code=2)


def test_a_mode_without_apply_is_refused(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    assert "expected --apply with --mode" in run(capsys, state, "discover", "--mode", "baseline", code=2)


def test_a_baseline_is_put_on_the_bus_and_what_it_tells_is_not_learnt(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    name = yaml.safe_load(run(capsys, state, "discover"))["metadata"]["name"]
    said = run(capsys, state, "discover", "--apply", "--mode", "baseline")
    assert said == f"kubearmorpolicy/shop/{name} created (baseline)\n"
    (policy,) = json.loads(run(capsys, state, "get", "policies", "-o", "json"))
    assert policy["metadata"]["annotations"] == {"hauberk.io/mode": "baseline"}
    assert policy["spec"]["message"].startswith(
        "not among what 9 behaviours showed of shop/web/app; Stabilizing: 3 instances"
    )
    assert "baseline" in run(capsys, state, "get", "policies")
    put(state, 6, opened("/srv/new", Access.WRITE))
    put(state, 7, opened("/srv/new", Access.WRITE))
    items = json.loads(run(capsys, state, "discover", "--review", "-f", "json", code=1))
    waiting = {item["resource"]: item for item in items}
    assert waiting["/srv/new"]["reason"] == "a shadow policy or a baseline spoke against it"
    assert "/srv/new" in run(capsys, state, "discover", "--accept", waiting["/srv/new"]["ident"])
    assert run(capsys, state, "discover", "--promote", name) == f"kubearmorpolicy/shop/{name} configured (enforce)\n"


def test_that_shadows_are_not_known_is_said(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    text = run(capsys, state, "discover")
    shutil.rmtree(state / "bus")
    capsys.readouterr()
    assert main(["discover", "--state", str(state)]) == 0
    said = capsys.readouterr()
    assert said.out == text
    assert "what shadow policies spoke against is not known" in said.err


def test_a_policy_that_cannot_be_read_stops_nothing(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    text = run(capsys, state, "discover")

    async def tell() -> None:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(state / "bus")))
        await bus.publish(POLICIES, [Record(b"KubeArmorPolicy/shop/bad", b"{}")])
        await bus.close()

    asyncio.run(tell())
    capsys.readouterr()
    assert main(["discover", "--state", str(state)]) == 0
    said = capsys.readouterr()
    assert said.out == text
    assert "1 policies left out, the first because: " in said.err


def test_whom_a_policy_selects_that_nothing_was_seen_of_is_told(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    """By what nodes and the cluster say on the bus: beside the policies, above each, and with its evidence."""
    alone = run(capsys, state, "discover")
    unseen = msgspec.structs.replace(
        pod(1), uid="b1", pod="batch-1", pod_uid="b", owner=Owner("Deployment", "batch", "shop"), labels={"app": "web"}
    )
    nightly = PodFact(uid="c", namespace="shop", name="n-1", labels={"app": "web"}, owner=Owner("CronJob", "n", "shop"))

    async def tell() -> None:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(state / "bus")))
        await bus.publish(INVENTORY, [Record(key=one.key, value=encode_identity(one)) for one in (pod(1), unseen)])
        await bus.publish(CLUSTER, [Record(key=nightly.key, value=encode_fact(nightly))])
        await bus.close()

    asyncio.run(tell())
    for words in ((), ("--explain",), ("--outdir", tmp_path / "out")):
        capsys.readouterr()
        assert main(["discover", *map(str, words), "--state", str(state)]) == 0
        said = capsys.readouterr()
        assert said.err.startswith(
            "hauberk discover: the policy of shop/web/app selects shop/batch/app, shop/n too, of which nothing was seen"
        )
        text = next((tmp_path / "out").rglob("*.yaml")).read_text() if "--outdir" in words else said.out
        assert "It selects shop/batch/app, shop/n too, of which nothing was seen." in text
    assert yaml.safe_load(run(capsys, state, "discover")) == yaml.safe_load(alone), "the policy is what it was"
    for written, said_too in ((alone, True), (alone.replace("app: web", "app: web\n      tier: front"), False)):
        (tmp_path / "before.yaml").write_text(written)
        merged = run(capsys, state, "discover", "--merge", tmp_path / "before.yaml")
        assert ("It selects shop/batch/app, shop/n too, of which nothing was seen." in merged) == said_too, merged
    (told,) = json.loads(run(capsys, state, "discover", "--explain", "-f", "json"))
    assert told["selects_unseen"] == ["shop/batch/app", "shop/n"]
    put(state, 4, opened("/etc/app.conf"), of=unseen)
    put(
        state,
        4,
        opened("/etc/app.conf"),
        of=msgspec.structs.replace(unseen, uid="n1", pod_uid="c", pod="n-1", owner=nightly.owner),
    )
    capsys.readouterr()
    assert main(["discover", "--state", str(state)]) == 0
    assert "nothing was seen" not in capsys.readouterr().err


def test_network_policies_of_what_pods_spoke_to(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the store and the facts on the bus: a service by its pods' port, checked, written, and broken files found out."""
    put(state, 1, connected("10.96.0.4", 5432), connected("127.0.0.1", 1))
    for words in (("-p", "NetworkPolicy"), ("--verify",)):
        said = run(capsys, state, "discover", *words, code=2)
        assert "services and pods would be taken for addresses outside; run `hauberk cluster`" in said
    put(state, 2, connected("10.66.0.1", 22), status="Deny")
    host = Identity(kind=Kind.HOST, node="n", uid="h", cgroup_path="/system.slice/ssh.service")
    put(state, 1, connected("93.184.216.34", 443), of=host)
    facts = (
        ServiceFact(namespace="data", name="db", addresses=("10.96.0.4",), ports=(ServicePort(5432, "TCP", "sql", 15432),), selector={"app": "db"}),
        PodFact(uid="d", namespace="data", name="db-1", labels={"app": "db"}, addresses=("10.0.0.4",)),
        PodFact(uid="b", namespace="shop", name="batch-1", labels={"app": "web"}, owner=Owner("Deployment", "batch", "shop")),
    )  # fmt: skip

    async def tell() -> None:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(state / "bus")))
        await bus.publish(CLUSTER, [Record(key=one.key, value=encode_fact(one)) for one in facts])
        await bus.close()

    asyncio.run(tell())
    text = run(capsys, state, "discover", "-p", "NetworkPolicy")
    body = yaml.safe_load(text)
    assert body["metadata"]["namespace"] == "shop"
    assert body["spec"]["egress"] == [
        {
            "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "data"}}, "podSelector": {"matchLabels": {"app": "db"}}}],
            "ports": [{"protocol": "TCP", "port": 15432}],
        }
    ]  # fmt: skip
    assert "all of which pass the whole set" in text
    capsys.readouterr()
    assert main(["discover", "-p", "NetworkPolicy", "--explain", "--state", str(state)]) == 0
    told = capsys.readouterr()
    assert "pods data: app=db" in told.out
    assert "Z 1 web-1 /usr/bin/app" in " ".join(told.out.split())
    assert main(["discover", "-p", "NetworkPolicy", "--explain", "-f", "json", "--state", str(state)]) == 0
    assert [rule["pods"] for rule in json.loads(capsys.readouterr().out)] == [["web-1"]]
    assert "the policy of shop/web selects pods of shop/batch too, of which nothing was seen" in told.err
    for kind in ("CiliumNetworkPolicy", "CalicoNetworkPolicy"):
        assert "15432" in run(capsys, state, "discover", "-p", kind, "-n", "shop")
        assert run(capsys, state, "discover", "-p", kind, "-n", "other", code=1) == ""
    assert "1 flows that were seen: 1 pass, 0 are denied" in run(capsys, state, "discover", "--verify")
    (file,) = run(capsys, state, "discover", "-p", "NetworkPolicy", "--outdir", tmp_path / "out").split()
    assert "0 are denied" in run(capsys, state, "discover", "--verify", file)
    broken = tmp_path / "broken.yaml"
    broken.write_text(text.replace("15432", "5432"))
    assert "shop/web -> data/svc/db TCP 15432" in run(capsys, state, "discover", "--verify", broken, code=1)
    with broken.open() as given, monkeypatch.context() as patched:
        patched.setattr(sys, "stdin", given)
        assert "shop/web -> data/svc/db TCP 15432" in run(capsys, state, "discover", "--verify", "-", code=1)
    told = json.loads(run(capsys, state, "discover", "--verify", broken, "-f", "json", code=1))
    assert (told["flows"], len(told["refused"]), told["policies"]) == (1, 1, 1)
    firewall = run(capsys, state, "discover", "-p", "KubeArmorNetworkPolicy")
    assert "93.184.216.34/32" in firewall
    assert "created (shadow)" in run(capsys, state, "discover", "-p", "KubeArmorNetworkPolicy", "--apply")
    name = yaml.safe_load(firewall)["metadata"]["name"]
    assert "configured (enforce)" in run(capsys, state, "discover", "--promote", name), "it was a shadow"
    for words, said in (
        (("--verify", tmp_path / "none.yaml"), "expected a readable file of policies"),
        (("-p", "NetworkPolicy", "--apply"), "`kubectl apply -f` takes what is printed"),
        (("-p", "KubeArmorHostPolicy", "--verify"), "expected --verify with NetworkPolicy"),
        (("--verify", "--review"), "got several"),
        (("-p", "NetworkPolicy", "-c", "app"), "with all of their containers"),
    ):  # fmt: skip
        assert said in run(capsys, state, "discover", *words, code=2)
    bare = {key: value for key, value in body.items() if key not in ("apiVersion", "kind")}
    for listed in (
        {"apiVersion": "v1", "kind": "List", "items": [body]},
        {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicyList", "items": [bare]},
    ):
        broken.write_text(yaml.safe_dump(listed))
        assert "1 policies, 1 flows that were seen: 1 pass" in run(capsys, state, "discover", "--verify", broken), (
            "as kubectl prints them"
        )
    broken.write_text("{kind: List, items: [5]}")
    assert "got something else" in run(capsys, state, "discover", "--verify", broken, code=2)
    broken.write_text("a: [")
    assert "expected YAML" in run(capsys, state, "discover", "--verify", broken, code=2)
    broken.write_text("kind: Pod")
    assert "expected a NetworkPolicy" in run(capsys, state, "discover", "--verify", broken, code=2)


def test_what_is_new_between_two_stores_windows_or_images(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    """`summary --diff`, for CI: exit 1 when something is new; peers by their workload, so that a rollout is no news."""
    facts = [
        PodFact(uid=f"d{number}", namespace="data", name=f"db-{number}", owner=Owner("StatefulSet", "db", "data"), addresses=(f"10.0.0.{number}",))
        for number in (1, 2)
    ]  # fmt: skip

    async def tell() -> None:
        bus = await EmbeddedBus.open(EmbeddedSettings(directory=str(state / "bus")))
        await bus.publish(CLUSTER, [Record(key=one.key, value=encode_fact(one)) for one in facts])
        await bus.close()

    asyncio.run(tell())
    put(state, 1, connected("10.0.0.1", 5432))
    other = tmp_path / "other"
    newer = msgspec.structs.replace(pod(7), image="web:2")
    for number in (4, 5):
        put(other, number, opened("/etc/app.conf"), opened("/srv/job-99999", Access.WRITE), connected("10.0.0.2", 5432))
    assert run(capsys, state, "summary", "--diff", state, state) == "Nothing changed.\n"
    base = tmp_path / "base"
    put(base, 1, opened("/etc/app.conf"), opened("/srv/job-12345", Access.WRITE), connected("10.0.0.1", 5432))
    assert json.loads(run(capsys, state, "summary", "--diff", base, other, "-o", "json"))[0]["change"] == "changed", (
        "two pods, not one"
    )
    put(other, 6, opened("/etc/new.conf"), of=newer)
    told = json.loads(run(capsys, state, "summary", "--diff", base, other, "-o", "json", code=1))
    assert [(one["change"], one["workload"], one["what"]) for one in told if one["change"] == "new"] == [
        ("new", "shop/web/app", "/etc/new.conf")
    ]
    assert "`/etc/new.conf`" in run(capsys, state, "summary", "--diff", base, other, "-o", "markdown", code=1)
    assert "/etc/new.conf" in run(capsys, state, "summary", "--diff", base, other / "summary.db", code=1)
    put(state, 8, opened("/etc/v2.conf"), of=newer)
    put(state, 9, opened("/etc/app.conf"), of=msgspec.structs.replace(pod(8), image="registry/web:1"))
    said = run(capsys, state, "summary", "--diff", "image=web:1", "image=web:2", code=1)
    assert "/etc/v2.conf" in said
    assert "gone" in said
    assert "statefulset/db" in run(capsys, state, "summary", "--diff", "image=web:1", "30d", code=1)
    for words, says in (
        (("5d..4d", "1d"), "expected behaviours in `5d..4d`"), (("1d..2d", "1d"), "from earlier to later"), (("nonsense", "1d"), "got `nonsense`"),
        (("image=none", "1d"), "found none"), (("image=", "image="), "expected a name after `image=`"),
    ):  # fmt: skip
        assert says in run(capsys, state, "summary", "--diff", *words, code=2)
    assert "pod/db-1" in run(capsys, state, "summary", "-o", "wide", "--wait", "0s")


def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path) -> None:
    assert "there is none" in run(capsys, tmp_path / "nowhere", "discover", code=2)
    assert run(capsys, state, "discover", "-n", "other", code=1) == ""
    assert "expected one of" in run(capsys, state, "discover", "--apply", "--explain", code=2)
    assert "--quiet-hours above 0" in run(capsys, state, "discover", "--quiet-hours", "0", code=2)
    (tmp_path / "file").write_text("here first")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert "expected a directory to write policies to" in run(capsys, state, "discover", "--outdir", place, code=2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "shop").write_text("a file where the namespace's directory would be")
    assert "out/shop` is none" in run(capsys, state, "discover", "--outdir", tmp_path / "out", code=2)


def test_what_cannot_be_written_and_a_damaged_file_are_told_before_anything_is_written(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    said = run(capsys, state, "discover", "--outdir", "/proc/nowhere", code=2)
    assert said.startswith("hauberk discover: expected to write policies below `/proc/nowhere`, got: ")
    assert said.count("\n") == 1
    damaged = tmp_path / "damaged.yaml"
    damaged.write_text("metadata: [x\n")
    assert "damaged.yaml" in run(capsys, state, "discover", "--merge", damaged, "--outdir", tmp_path / "out", code=2)
    assert not (tmp_path / "out").exists()
    of = msgspec.structs.replace(pod(1), uid="z", namespace="zoo", pod="z", owner=Owner("Deployment", "z", "zoo"))
    put(state, 9, opened("/srv/z"), of=of)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "zoo").write_text("")
    assert "is none" in run(capsys, state, "discover", "--outdir", tmp_path / "half", code=2)
    assert not list(tmp_path.glob("half/shop/*")), "nothing half written"


def test_a_store_that_is_damaged_or_empty_is_one_sentence(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path
) -> None:
    SqliteStore(str(tmp_path / "summary.db")).close()
    for kind in ("KubeArmorPolicy", "NetworkPolicy", "KubeArmorHostPolicy"):
        assert run(capsys, tmp_path if kind[0] == "K" else state, "discover", "-p", kind, "-n", "none", code=1) == ""
    file = state / "summary.db"
    whole = file.read_bytes()
    for damaged in (b"no database at all", whole[:4096] + b"\xa5" * (len(whole) - 4096), whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        capsys.readouterr()
        outdir = tmp_path / "none"
        assert main(["discover", "--state", str(state), "--outdir", str(outdir)]) in (2, 3)
        said = capsys.readouterr()
        assert len(said.err.strip().splitlines()) == 1, said.err
        assert "damaged" in said.err or "another program's" in said.err
        assert not outdir.exists()


def test_a_store_that_is_written_meanwhile_is_read_as_of_one_moment(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    """A writer in another thread adds files all the while; each answer is whole, and a later one has no less."""
    stop, failed = threading.Event(), []

    def write() -> None:
        try:
            for number in itertools.count(100):
                if stop.is_set():
                    return
                put(state, number % 5, opened(f"/opt/app/plain{number}x"))
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        counts = []
        for _ in range(5):
            (body,) = json.loads(run(capsys, state, "discover", "-f", "json", "--no-patterns"))
            assert parse(json.dumps(body), "learnt").ok
            counts.append(int(run(capsys, state, "discover").partition(" behaviours")[0].rpartition(" ")[2]))
    finally:
        stop.set()
        thread.join()
    assert not failed
    assert counts == sorted(counts)


def test_an_interrupt_leaves_nothing_half_written(state: Path, tmp_path: Path) -> None:
    """SIGINT while it reads and learns: exit 130, no policy on stdout, no directory."""
    many = tuple(opened(f"/srv/data{number % 97}/x{number}y") for number in range(4000))
    for number in range(10, 40):
        put(state, number, *many)
    out = tmp_path / "out"
    words = [sys.executable, "-m", "hauberk", "discover", "--state", str(state), "--outdir", str(out)]
    child = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    opened_store = str(state / "summary.db")
    while time.monotonic() < deadline and child.poll() is None:
        # A descriptor may be gone before it is asked about.
        with contextlib.suppress(OSError):
            descriptors = [f"/proc/{child.pid}/fd/{name}" for name in os.listdir(f"/proc/{child.pid}/fd")]
            if opened_store in map(os.readlink, descriptors):
                break
    child.send_signal(signal.SIGINT)
    said, told = child.communicate(timeout=30)
    assert child.returncode == 130, told
    assert said == ""
    assert not out.exists()


@pytest.mark.parametrize("children", ["well", "killed"])
def test_parts_and_processes_change_nothing(
    capsys: pytest.CaptureFixture[str], state: Path, monkeypatch: pytest.MonkeyPatch, children: str
) -> None:
    """Learnt whole, in parts, and in children of which one dies: the same text; what fails is one sentence in either."""
    for number in range(6):
        of = msgspec.structs.replace(
            pod(1), uid=f"w{number}", pod=f"w{number}", owner=Owner("Deployment", f"w{number}", "shop"), labels={"app": f"w{number}"}
        )  # fmt: skip
        put(state, number, opened(f"/srv/w{number}/x"), opened("/etc/shadow"), of=of)
    words = (["discover"], ["discover", "--explain"], ["discover", "-f", "json", "--no-patterns"])
    whole = [run(capsys, state, *some) for some in words]
    apart = run(capsys, state, "discover", "--review", code=1)
    monkeypatch.setattr("hauberk.learning.ROWS", 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(3)))
    parent, learnt = os.getpid(), hauberk.learning.learn

    def dies(*given: object) -> object:
        if os.getpid() != parent and children == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        return learnt(*given)  # type: ignore[arg-type]

    monkeypatch.setattr("hauberk.learning.learn", dies)
    assert [run(capsys, state, *some) for some in words] == whole
    assert run(capsys, state, "discover", "--review", code=1) == apart

    def fails(*_: object) -> object:
        raise PolicyError("expected a policy, this is none", ())

    monkeypatch.setattr("hauberk.learning.learn", fails)
    assert "this is none" in run(capsys, state, "discover", code=2)


def test_who_needed_a_rule_is_kept_only_where_it_is_asked_for() -> None:
    seen = [Sighting(identity=pod(number), behaviour=opened("/srv/a")) for number in (1, 2)]

    def learnt(looks: bool) -> list[LearntPolicy]:
        sizes = [(one.identity, 1) for one in seen]
        return hauberk.learning.learn_store(sizes, lambda _: iter(seen), LearnSettings(), evidence=False, looks=looks)

    (whole,), (bare,) = learnt(True), learnt(False)
    assert [rule.evidence.instances for rule in whole.rules] == [{"u1", "u2"}]
    assert [rule.evidence.instances for rule in bare.rules] == [set()]
    assert (bare.body, bare.completeness, bare.rules[0].evidence.count) == (whole.body, whole.completeness, 2)


def test_sockets_without_names_are_told(capsys: pytest.CaptureFixture[str], state: Path) -> None:
    """What a container made too many of is counted without addresses: no rule can be learnt of it, and it is not missed unseen."""
    untold = msgspec.structs.replace(connected("", 0), access=Access.UNTOLD)
    local = msgspec.structs.replace(untold, family=1)
    put(state, 2, untold, local)
    items = json.loads(run(capsys, state, "discover", "--review", "-f", "json", code=1))
    (item,) = [one for one in items if one["reason"].startswith("told without names")]
    assert (item["operation"], item["resource"], item["count"]) == ("connect", "tcp", 7)
    items = json.loads(run(capsys, state, "discover", "-p", "NetworkPolicy", "--review", "-f", "json", code=1))
    assert [one["operation"] for one in items if one["reason"].startswith("told without names")] == ["connect"]


def test_far_is_told_while_it_is_long(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()
    monkeypatch.setattr("hauberk.progress_line.time.monotonic", lambda: float(next(clock)))
    line = ProgressLine(lambda number, seconds: f"{number} in {seconds:.0f} s", "hauberk discover")
    assert sum(1 for _ in line.of(range(256 * 12))) == 256 * 12
    assert capsys.readouterr().err.splitlines() == [
        "hauberk discover: 1280 in 5 s",
        "hauberk discover: 2560 in 10 s",
    ]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = ProgressLine(lambda number, seconds: f"{number}", "hauberk discover")
    list(line.of(range(256 * 3)))
    said = capsys.readouterr().err
    assert said.endswith("768\r\x1b[K")
    assert "\n" not in said
