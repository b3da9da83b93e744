# SPDX-License-Identifier: Apache-2.0
"""Every verb that reads or publishes, as a person types it, over the bus and the store that a replay of the example left."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from schemas.topics import BY_NAME, TOPICS

ROOT = Path(__file__).parents[2]
RECORDING = str(ROOT / "examples/recordings/host.hbrk")
HOST_POLICY = str(ROOT / "examples/policies/host-audit-shadow.yaml")
WEB = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: web-rules
  namespace: shop
spec:
  selector:
    matchLabels:
      app: web
  severity: 4
  tags: [WEB]
  message: curl was started
  process:
    matchPaths:
    - execname: curl
  file:
    matchDirectories:
    - dir: /tmp/demo/
      recursive: true
      readOnly: true
  action: Block
"""


@pytest.fixture(scope="module")
def hauberk(make_hauberk: Callable[..., Any]) -> Any:
    """The command over a replayed example: one alert of the host, four of the pod `web` in `shop`."""
    made = make_hauberk()
    made.sinks = [{"type": "store", "path": f"{made.state}/summary.db"}, {"type": "file", "path": f"{made.state}/alerts.jsonl"}]  # fmt: skip
    (made.home / "web.yaml").write_text(WEB)
    done = made.replay("-f", HOST_POLICY, "-f", "web.yaml")
    assert done.returncode == 0, done.stderr
    return made


def out(hauberk: Any, line: str, code: int = 0, **more: Any) -> str:
    done = hauberk(*line.split(), **more)
    assert "Traceback" not in done.stderr
    assert done.returncode == code, (line, done.stdout, done.stderr)
    assert "\x1b" not in done.stdout, "colour although this is no terminal"
    return str(done.stdout)


def rows(text: str) -> list[list[str]]:
    return [re.split(r" {3,}", line) for line in text.splitlines()]


def test_replay_writes_the_alerts_file(hauberk: Any) -> None:
    alerts = [json.loads(line) for line in (hauberk.state / "alerts.jsonl").read_text().splitlines()]
    assert sorted(alert["PolicyName"] for alert in alerts) == ["audit-password-hashes", *["web-rules"] * 4]
    assert len({alert["EventID"] for alert in alerts}) == 5


# get


def test_get_policies(hauberk: Any) -> None:
    table = rows(out(hauberk, "get policies"))
    assert table[0][:6] == ["NAMESPACE", "KIND", "NAME", "ACTION", "MODE", "HITS"]
    assert [row[:6] for row in table[1:]] == [
        ["-", "hsp", "audit-password-hashes", "Audit", "enabled", "1"],
        ["shop", "ksp", "web-rules", "Block", "enabled", "4"],
    ]
    assert re.fullmatch(r"\d+s|\d+m(\d+s)?", table[1][-1])
    assert "SELECTOR" in out(hauberk, "get policies -o wide")
    assert "app=web" in out(hauberk, "get policies -o wide")
    assert out(hauberk, "get policies -o name").split() == ["hsp/audit-password-hashes", "ksp/web-rules"]
    assert len(rows(out(hauberk, "get policies --no-headers"))) == 2
    assert "audit" not in out(hauberk, "get policies -n shop")
    assert "web-rules" not in out(hauberk, "get hsp")
    assert "audit" not in out(hauberk, "get policies web-rules")
    assert json.loads(out(hauberk, "get policies web-rules -o json"))[0]["spec"]["severity"] == 4
    assert yaml.safe_load(out(hauberk, "get policies web-rules -o yaml"))[0]["metadata"]["namespace"] == "shop"
    assert out(hauberk, "get policies nothing", 1) == ""
    assert "No policies found in namespace `empty`" in hauberk("get", "policies", "-n", "empty").stderr


def test_get_workloads(hauberk: Any) -> None:
    table = rows(out(hauberk, "get workloads"))
    assert table[0] == ["NAMESPACE", "POD", "CONTAINER", "STATE", "IMAGE", "NODE", "AGE"]
    assert [row[:6] for row in table[1:]] == [
        ["shop", "web-6d4cf56db6-x7k2p", "web", "running", "example/web:1.0", "demo"]
    ]
    wide = out(hauberk, "get workloads -o wide")
    assert "containerd" in wide
    assert "session-1" in wide
    assert out(hauberk, "get workloads -l app=web -o name") == "workload/web\n"
    assert out(hauberk, "get workloads -l app=other") == ""
    assert json.loads(out(hauberk, "get workloads -n shop -o json"))[0]["labels"] == {"app": "web"}


def test_get_alerts(hauberk: Any) -> None:
    table = rows(out(hauberk, "get alerts"))
    assert table[0] == ["TIME", "NAMESPACE", "WORKLOAD", "POLICY", "ACTION", "OPERATION", "RESOURCE"]
    assert [(row[2], row[3], row[5]) for row in table[1:]] == [
        ("demo", "audit-password-hashes", "File"), ("web", "web-rules", "Process"), ("web", "web-rules", "Process"),
        ("web", "web-rules", "Process"), ("web", "web-rules", "File"),
    ]  # fmt: skip
    assert table[1][6] == "/etc/shadow"
    assert len(rows(out(hauberk, "get alerts --no-headers --limit 2"))) == 2
    assert len(json.loads(out(hauberk, "get alerts -l app=web -o json"))) == 4
    assert len(out(hauberk, "get alerts audit-password-hashes -o name").splitlines()) == 1


def test_get_nodes(hauberk: Any) -> None:
    table = rows(out(hauberk, "get nodes"))
    assert table[0][:3] == ["NODE", "GENERATION", "BACKENDS"]
    assert table[1][:3] == ["demo", "-", "none (audit only)"]


# describe


def test_describe(hauberk: Any) -> None:
    said, alerts = out(hauberk, "describe policy web-rules").split("\nLatest alerts:\n")
    shown = yaml.safe_load(said.split("\n\n")[0])
    assert shown["spec"]["message"] == "curl was started"
    assert shown["status"]["hits"] == 4
    assert alerts.count("web-rules") == 4
    workload = out(hauberk, "describe workload web").split("\n\n")[0]
    assert yaml.safe_load(workload)["image"] == "example/web:1.0"
    ident = json.loads(out(hauberk, "get alerts audit-password-hashes -o json"))[0]["EventID"]
    assert yaml.safe_load(out(hauberk, f"describe alert {ident}"))["Resource"] == "/etc/shadow"
    node, policies = out(hauberk, "describe node demo").split("\n\n")
    assert yaml.safe_load(node)["node"] == "demo"
    assert "audit-password-hashes" in policies
    assert "there is none" in hauberk("describe", "policy", "nothing").stderr
    out(hauberk, "describe policy nothing", 1)


def test_singular_and_plural_are_the_same(hauberk: Any) -> None:
    for one, many in (("policy", "policies"), ("workload", "workloads"), ("alert", "alerts"), ("node", "nodes")):
        assert out(hauberk, f"get {one} -o json") == out(hauberk, f"get {many} -o json") != ""
    whole = out(hauberk, "describe policy web-rules")
    assert out(hauberk, "describe policies web-rules") == whole
    assert out(hauberk, "describe ksp web-rules") == whole
    out(hauberk, "describe hsp web-rules", 1)


# apply and delete


def test_apply_and_delete(hauberk: Any) -> None:
    (hauberk.home / "more").mkdir(exist_ok=True)
    for name in ("one", "two"):
        (hauberk.home / f"more/{name}.yaml").write_text(WEB.replace("web-rules", name))
    key = "kubearmorpolicy/shop"
    assert out(hauberk, "apply -f more --dry-run") == f"{key}/one created (dry run)\n{key}/two created (dry run)\n"
    assert "one" not in out(hauberk, "get ksp -o name")
    assert out(hauberk, "apply -f more") == f"{key}/one created\n{key}/two created\n"
    assert out(hauberk, "apply -f more") == f"{key}/one unchanged\n{key}/two unchanged\n"
    changed = WEB.replace("web-rules", "one").replace("severity: 4", "severity: 5")
    assert out(hauberk, "apply -f -", stdin=changed) == f"{key}/one configured\n"
    assert json.loads(out(hauberk, "get ksp one -o json"))[0]["spec"]["severity"] == 5
    # Nobody enforces here: the wait ends with a sentence.
    done = hauberk("apply", "-f", "-", "--wait", "0.2", stdin=changed.replace("severity: 5", "severity: 6"))
    assert done.returncode == 1
    assert "expected a receipt within 0.2 s" in done.stderr
    assert out(hauberk, "delete policy one") == f"{key}/one deleted\n"
    assert out(hauberk, "delete -f more", 1) == f"{key}/two deleted\n"
    assert out(hauberk, "get ksp -o name") == "ksp/web-rules\n"
    assert "expected policy `one`" in hauberk("delete", "policy", "one").stderr


# logs


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ("", 5), ("-n ^shop$", 4), ("-n SHOP", 4), ("--operation file", 2), ("--policy PASSWORD", 1), ("--action block", 4),
        ("--resource shadow$", 1), ("--resource SHADOW", 0), ("--source dash", 4), ("--container web", 4), ("--pod ^web-6d", 4),
        ("--log-type HostPolicy", 1), ("--logType matchedpolicy", 4), ("-l app=web", 4), ("-l app=web,tier=x", 0), ("--limit 2", 2),
        ("--operation process -n shop --source nothing", 0),
    ],
)  # fmt: skip
def test_filters_of_logs(hauberk: Any, filters: str, count: int) -> None:
    lines = out(hauberk, f"logs --from earliest --no-follow -o json {filters}").splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == count, [(one["Type"], one["Source"], one["Resource"]) for one in found]


def test_forms_of_logs(hauberk: Any) -> None:
    base = "logs --from earliest --no-follow --policy audit-password"
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3} Audit +File +demo \S+/cat -> /etc/shadow \[audit-password-hashes sev 6\] password hashes were opened\n", out(hauberk, base))  # fmt: skip
    assert "/etc/shadow" in out(hauberk, f"{base} -o text")
    assert json.loads(out(hauberk, f"{base} --json"))["Resource"] == "/etc/shadow"
    pretty = out(hauberk, f"{base} -o pretty-json")
    assert pretty.startswith("{\n  ")
    assert json.loads(pretty)["HostName"] == "demo"
    assert out(hauberk, "logs --no-follow") == "", "from latest there is nothing"


def test_filters_that_match_nothing_are_told(hauberk: Any) -> None:
    done = hauberk("logs", "--from", "earliest", "--no-follow", "--operation", "no such operation")
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "hauberk logs: none of 5 records match the filters\n"
    assert hauberk("logs", "--from", "earliest", "--no-follow", "--operation", "file").stderr == ""
    assert hauberk("logs", "--no-follow").stderr == "", "no records, no filter to blame"


def test_telemetry_in_logs(hauberk: Any) -> None:
    system = out(hauberk, "logs --log-filter system --from earliest --no-follow -o json").splitlines()
    kinds = {json.loads(line)["Type"] for line in system}
    assert {"HostLog", "ContainerLog"} <= kinds
    both = out(hauberk, "logs --logFilter all --from earliest --no-follow -o json").splitlines()
    assert len(both) == len(system) + 5
    files = out(hauberk, "logs --log-filter system --from earliest --no-follow -o json --resource ^/tmp/demo/notes.txt$ --operation File")  # fmt: skip
    assert len(files.splitlines()) >= 20


# summary


def test_summary(hauberk: Any) -> None:
    text = out(hauberk, "summary")
    for word in ("Pod Name        web-6d4cf56db6-x7k2p", "Namespace Name  shop", "Labels          app=web"):
        assert word in text
    assert re.search(r"\| SRC PROCESS +\| DESTINATION PROCESS PATH +\| COUNT \| LAST UPDATED TIME +\| STATUS \|", text)
    assert re.search(r"\| /usr/bin/dash \| /usr/bin/cat +\| \d+ +\|.*\| Allow", text)
    assert re.search(r"\| /usr/bin/dash \| /usr/bin/curl +\| 3 +\|", text)
    assert re.search(r"\| /usr/bin/cat +\| /tmp/demo/site/index.html +\| 40 +\|", text)
    assert re.search(r"PROTOCOL \| COMMAND +\| POD/SVC/IP +\| PORT +\| NAMESPACE \| LABELS \| COUNT \| LAST UPDATED TIME", text)  # fmt: skip
    assert "Process Data" not in out(hauberk, "summary -t file")
    assert out(hauberk, "summary -n shop -l app=web") == text
    assert "nothing in the last 24h" in hauberk("summary", "-n", "other").stderr
    assert out(hauberk, "summary --host").count("Container Name") == 2, "the host is one block, the pod another"
    out(hauberk, "summary -n other", 1)
    out(hauberk, "summary -l app=none", 1)


def test_forms_of_summary(hauberk: Any) -> None:
    found = list(csv.DictReader(io.StringIO(out(hauberk, "summary --host -o csv"))))
    shadow = [row for row in found if row["destination"] == "/etc/shadow"]
    assert [(row["table"], row["source"], row["count"], row["status"]) for row in shadow] == [
        ("file", "/usr/bin/cat", "1", "Audit")
    ]
    whole = json.loads(out(hauberk, "summary -o json"))
    assert "index.html" in json.dumps(whole)
    plain = list(csv.DictReader(io.StringIO(out(hauberk, "summary --host -t file -o csv"))))
    aggregated = list(csv.DictReader(io.StringIO(out(hauberk, "summary --host -t file --agg -o csv"))))
    assert 0 < len(aggregated) <= len(plain), "one look: only kinds of names and package directories fold"
    assert sum(int(row["count"]) for row in aggregated) == sum(int(row["count"]) for row in plain)


# topic


def test_topic(hauberk: Any) -> None:
    table = {row[0]: row[1:] for row in rows(out(hauberk, "topic list"))}
    assert table["NAME"] == ["KEY", "RECORDS", "CLEANUP", "LAG"]
    assert table["alerts"][:3] == ["workload", "5", "delete"]
    assert "sink.file=0" in table["alerts"][3]
    listed = {one["name"]: one for one in json.loads(out(hauberk, "topic list -o json"))}
    assert listed["alerts"]["records"] == 5
    assert listed["events.raw"]["lag"] == {"processors": 0}
    assert table["dead"][1] == "0"
    assert "hauberk.events.raw.v1" in out(hauberk, "topic list -o wide")
    groups = {(row[0], row[1]): row[2:] for row in rows(out(hauberk, "topic groups"))}
    assert groups["sink.file", "alerts"] == ["5", "0"]
    assert groups["processors", "events.raw"][1] == "0"
    lines = [json.loads(line) for line in out(hauberk, "topic tail alerts --from earliest --limit 5").splitlines()]
    assert [line["offset"] for line in lines] == [0, 1, 2, 3, 4]
    assert {line["topic"] for line in lines} == {"hauberk.alerts.v1"}
    assert lines[0]["value"]["Resource"] == "/etc/shadow"
    frames = [json.loads(line) for line in out(hauberk, "topic tail events.raw --from earliest --limit 3").splitlines()]
    assert all(line["value"]["header"]["node"] == "demo" for line in frames)
    named = out(hauberk, "topic tail inventory --from earliest --until-quiet 0.5").splitlines()
    assert {json.loads(line)["value"]["kind"] for line in named} >= {"container", "node"}
    assert "invalid choice: 'alarms'" in hauberk("topic", "tail", "alarms").stderr


def test_topic_schema(hauberk: Any, tmp_path: Path) -> None:
    """No bus is opened for it: the state directory may be missing."""
    away = f"--state {tmp_path}/none"
    one = json.loads(out(hauberk, f"topic schema alerts {away}"))
    assert (one["title"], one["$ref"]) == ("hauberk.alerts.v1", "#/$defs/Alert")
    assert "Resource" in one["$defs"]["Alert"]["properties"]
    every = json.loads(out(hauberk, f"topic schema {away}"))
    assert every["alerts"] == one
    assert set(every) == set(BY_NAME) - {"policies", "dead"}
    assert "values have a schema" in hauberk("topic", "schema", "policies").stderr
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["", "alerts"])
def test_asyncapi_refers_to_nothing_outside_of_itself(hauberk: Any, name: str) -> None:
    text = out(hauberk, f"topic schema {name} -f asyncapi")
    document = json.loads(text)
    assert {one["address"] for one in document["channels"].values()} == {
        topic.channel for topic in TOPICS if name in ("", topic.name)
    }
    for path in set(re.findall(r'"\$ref": "([^"]*)"', text)):
        found = document
        for step in path.removeprefix("#/").split("/"):
            found = found[step]


# the machine


def test_settings(hauberk: Any) -> None:
    text = out(hauberk, "settings --set sensor.rings.frame_bytes=65536") if "frame_bytes" in out(hauberk, "settings") else out(hauberk, "settings")  # fmt: skip
    assert str(hauberk.state / "bus") in text
    assert "HAUBERK__SENSOR__PIN_DIR" in text
    whole = json.loads(out(hauberk, "settings -o json --set bus.segment_bytes=65536"))
    assert "65536" in json.dumps(whole)
    assert yaml.safe_load(out(hauberk, "settings -o yaml"))
    assert "sinks[]<file>.path" in out(hauberk, "settings --reference")


def test_settings_say_where_each_value_came_from(hauberk: Any) -> None:
    def origins(line: str) -> dict[str, tuple[str, str]]:
        return {row[0]: (row[1], row[-1]) for row in rows(out(hauberk, line)) if len(row) == 3}

    found = origins("settings -o wide")
    assert found["state"] == (str(hauberk.state), "HAUBERK_STATE")
    assert found["bus.directory"] == (f"{hauberk.state}/bus", "HAUBERK_STATE")
    assert found["sinks[0].path"][1] == "HAUBERK__SINKS"
    assert found["sensor.pin_dir"][1] == "HAUBERK__SENSOR__PIN_DIR"
    moved = origins("settings --state /somewhere --set bus.segment_bytes=65536")
    assert moved["state"] == ("/somewhere", "--state")
    assert moved["bus.directory"] == ("/somewhere/bus", "--state")
    assert moved["bus.segment_bytes"] == ("65536", "--set")
    assert "default" in {by for _, by in moved.values()}
    long = f"/{'x' * 100}"
    assert len(origins(f"settings --state {long}")["state"][0]) == 60
    assert origins(f"settings --state {long} -o wide")["state"][0] == long
    assert json.loads(out(hauberk, f"settings --state {long} -o json"))["state"] == long


def test_doctor_probe_version_and_completion(hauberk: Any) -> None:
    doctor = hauberk("doctor")
    assert "python" in doctor.stdout
    assert re.search(rf"`{hauberk.state}/summary.db` holds [23] identities", doctor.stdout)
    assert {one["what"] for one in json.loads(hauberk("doctor", "-o", "json").stdout)} >= {
        "python",
        "settings",
        "state",
    }
    probe = hauberk("probe")
    assert "raw tracepoints" in probe.stdout
    assert "Chosen:" in probe.stdout
    assert "features" in json.loads(hauberk("probe", "-o", "json").stdout)
    assert re.match(r"hauberk \d+\.\d+\.\d+ \(\w+, Linux ", out(hauberk, "version"))
    assert json.loads(out(hauberk, "version -o json")).keys() == {"hauberk", "python", "kernel", "architecture"}
    assert "complete -o default -F _hauberk hauberk" in out(hauberk, "completion bash")
    assert out(hauberk, "completion --words get al") == "alerts\n"
    assert out(hauberk, "completion --words topic ta") == "tail\n"


# policy


def test_policy_check(hauberk: Any) -> None:
    assert out(hauberk, "policy check web.yaml") == "1 policy: nothing to say\n"
    (hauberk.home / "typo.yaml").write_text(WEB.replace("readOnly", "readonly"))
    text = out(hauberk, "policy check -f typo.yaml", 2)
    assert "--> typo.yaml:20:7" in text
    assert "did you mean `readOnly`?" in text
    found = json.loads(out(hauberk, "policy check -f typo.yaml -o json", 2))
    assert found["diagnostics"][0]["level"] == "error"


def test_policy_test_explain_and_lint(hauberk: Any) -> None:
    text = out(hauberk, f"policy test -f {HOST_POLICY}")
    assert "2 passed, 0 failed" in text
    event = {"NamespaceName": "shop", "PodName": "web-1", "ContainerName": "web", "Labels": "app=web", "Operation": "Process",
             "ProcessName": "/usr/bin/curl", "Source": "/bin/sh", "Resource": "/usr/bin/curl -s x", "Result": "Passed"}  # fmt: skip
    (hauberk.home / "events.jsonl").write_text(
        json.dumps(event) + "\n" + json.dumps(event | {"Labels": "app=db"}) + "\n"
    )
    lines = out(hauberk, "policy test -f web.yaml --events events.jsonl -o json").splitlines()
    answers = [json.loads(line) for line in lines]
    assert [(answer["action"], answer["policy"]) for answer in answers] == [("Block", "web-rules"), ("Allow", None)]
    assert answers[0]["rule"]["position"] == "spec.process.matchPaths[0]"
    assert rows(out(hauberk, "policy test -f web.yaml --events events.jsonl"))[1][:3] == ["1", "Block", "web-rules"]
    why = hauberk("policy", "explain", "-f", "web.yaml", "--event", json.dumps(event)).stdout
    assert "Block" in why
    assert "web-rules" in why
    backends = out(hauberk, "policy explain -f web.yaml")
    assert re.search(r"POLICY +RULE +ACTION", backends)
    assert "web-rules" in backends
    (hauberk.home / "twice.yaml").write_text(WEB + "---\n" + WEB.replace("web-rules", "web-again"))
    assert re.search(r"\d+ findings? in 2 policies", out(hauberk, "policy lint -f twice.yaml", 1))
    (hauberk.home / "bad.jsonl").write_text("{\n")
    done = hauberk("policy", "test", "-f", "web.yaml", "--events", "bad.jsonl")
    assert done.returncode == 2
    assert done.stderr.startswith("bad.jsonl:1: ")


def test_policy_backtest_and_diff(hauberk: Any) -> None:
    text = out(hauberk, "policy backtest -f web.yaml --since 1d")
    assert re.search(r"4 would be blocked, 0 audited", text)
    assert "/usr/bin/curl" in text
    assert json.loads(out(hauberk, "policy backtest -f web.yaml -o json"))["totals"]["blocked"] == 4
    (hauberk.home / "audit.yaml").write_text(WEB.replace("action: Block", "action: Audit"))
    changes = json.loads(out(hauberk, "policy diff web.yaml audit.yaml -o json", 1))
    assert sum(change["observed"]["count"] for change in changes["changes"]) == 4
    assert "No behaviour changes its verdict." in out(hauberk, "policy diff web.yaml web.yaml")


# habits


def test_settings_stand_on_either_side(hauberk: Any) -> None:
    here = f"--state {hauberk.state}"
    assert out(hauberk, f"topic {here} list -o name") == out(hauberk, f"topic list -o name {here}")
    assert "bus" in hauberk("get", "policies", "--state", "nowhere").stderr


def test_no_color(hauberk: Any) -> None:
    # Under a terminal: script(1) makes one.
    for variables, coloured in (({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)):
        done = hauberk(
            "-qec",
            f"{hauberk.program} policy test -f {HOST_POLICY}",
            "/dev/null",
            program="script",
            **{"TERM": "xterm"} | variables,
        )
        assert done.returncode == 0, done.stdout
        assert "2 passed" in done.stdout
        assert ("\x1b[32m" in done.stdout) is coloured


def test_a_closed_pipe_is_no_error(hauberk: Any) -> None:
    done = hauberk(
        "logs",
        "--log-filter",
        "system",
        "--from",
        "earliest",
        "--no-follow",
        before=("sh", "-c", '"$@" | head -n 1', "sh"),
    )
    assert done.returncode == 0
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
