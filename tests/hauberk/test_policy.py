# SPDX-License-Identifier: Apache-2.0
"""`hauberk policy` as a person meets it: tests beside a file, postures of the settings, shadow and audited policies in a backtest."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest

from hauberk.policy_files import files
from hauberk.verbs import policy
from schemas.behaviour import Behaviour
from schemas.errors import SettingsError
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation
from schemas.summary import Summary, SummaryEntry
from sinks.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: web, namespace: shop, annotations: {{{annotations}}}}}
spec:
  selector: {{matchLabels: {{app: web}}}}
  process: {{matchPaths: [{{path: /bin/ls, action: Allow}}]}}
  file: {{matchPaths: [{{path: /etc/shadow}}]}}
  action: Block
"""
BLOCKS = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: web, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  file: {matchPaths: [{path: /srv/a}, {path: /srv/b}]}
  action: Block
"""
EVENT = {
    "NamespaceName": "shop",
    "ContainerName": "web",
    "Labels": "app=web",
    "Operation": "Process",
    "Resource": "/bin/cat",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "web.yaml"
    path.write_text(POLICY.format(annotations=""))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = policy.main([str(word) for word in words])
    return code, capsys.readouterr().out


@pytest.mark.parametrize("verb", ["check", "test", "lint", "explain"])
def test_files_may_be_named_with_and_without_the_option(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    file = ROOT / "examples/policies/host-firewall.yaml"
    assert run(capsys, verb, file) == run(capsys, verb, "-f", file)
    with pytest.raises(SettingsError, match="name them or use -f"):
        policy.main([verb])


def test_tests_beside_a_policy_are_found_and_are_no_policy(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    beside = file.with_name("web.tests.yaml")
    beside.write_text(json.dumps([{"event": EVENT, "expect": {"action": "Audit", "policy": "DefaultPosture"}}]))
    assert [name for name, _ in files([str(file.parent)], False)] == [str(file)]
    assert run(capsys, "test", "-f", file)[0] == 0
    assert run(capsys, "test", "-f", file.parent)[0] == 0
    code, said = run(capsys, "test", "-f", file, "--tests", beside)
    assert (code, "1 passed, 0 failed" in said) == (0, True)


def test_each_test_is_told_by_its_name_and_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "carry.yaml"
    file.write_text(BLOCKS.replace("namespace: shop}", """namespace: shop,
  annotations: {hauberk.io/tests: '[{name: a is kept, event: EVENT, expect: {action: Block}}]'}}""").replace("EVENT", json.dumps(
        EVENT | {"Operation": "File", "Resource": "/srv/a"})))  # fmt: skip
    (beside := tmp_path / "carry.tests.yaml").write_text(
        "- name: b is free\n  event: " + json.dumps(EVENT | {"Operation": "File", "Resource": "/srv/b"}) + "\n"
        "  expect: {action: Allow}\n"
    )
    code, said = run(capsys, "test", "-f", file)
    assert code == 1
    assert said.splitlines() == [
        f"ok     {file}:4: a is kept: Block",
        f"FAILED {beside}:1: b is free: expected Allow, got Block by web",
        "1 passed, 1 failed",
    ]
    _, said = run(capsys, "test", "-f", file, "-o", "json")
    first, second = json.loads(said)
    assert (first["name"], first["policy"], first["file"], first["line"]) == ("a is kept", "web", str(file), 4)
    assert (second["name"], second["policy"], second["file"], second["line"]) == ("b is free", "", str(beside), 1)


def test_the_postures_of_the_settings_hold(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = file.with_name("events.jsonl")
    events.write_text(json.dumps(EVENT))
    for given, action in (
        ((), "Audit"),
        (("--set", "postures.file=block"), "Block"),
        (("--set", "processor.postures.file=allow"), "Allow"),
    ):
        _, said = run(capsys, "test", "-f", file, "--events", events, "-o", "json", *given)
        assert json.loads(said)["action"] == action


def test_the_contract_of_policy_test(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events = file.with_name("events.jsonl")
    opened = EVENT | {"Operation": "File", "Resource": "/etc/shadow"}
    events.write_text("\n".join(map(json.dumps, (EVENT, opened, opened | {"Labels": "app=db"}))))
    _, said = run(capsys, "test", "-f", file, "--events", events, "-o", "json")
    answers = [json.loads(line) for line in said.splitlines()]
    assert [(one["event"], one["action"], one["policy"]) for one in answers] == [
        (1, "Audit", "DefaultPosture"), (2, "Block", "web"), (3, "Allow", None),
    ]  # fmt: skip
    assert all(list(one) == ["event", "action", "policy", "rule"] for one in answers)
    assert [one["rule"] and one["rule"]["position"] for one in answers] == [None, "spec.file.matchPaths[0]", None]


def test_lint_tells_what_nothing_holds_and_ends_with_1_for_mistakes_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "web.yaml"
    file.write_text(BLOCKS)
    code, said = run(capsys, "lint", "-f", file)
    assert code == 0
    assert said.startswith("note[L110] web spec.file.matchPaths[0..1]: is only audited: ")
    assert said.endswith("2 findings in 1 policy: 0 warnings, 2 notes\n")
    assert run(capsys, "lint", "-f", file, "--strict")[0] == 1
    held = ("--set", "planner.plan.signal=true", "--set", "enforcement.io_uring=stop", "--strict")
    assert run(capsys, "lint", "-f", file, *held) == (0, "0 findings in 1 policy: 0 warnings, 0 notes\n")
    _, said = run(
        capsys, "lint", "-f", file, "--set", "planner.plan.signal=true", "--set", 'enforcement.backends=["cgroup"]'
    )
    assert "leaves out signal" in said
    _, said = run(capsys, "lint", "-f", file, "-o", "json")
    assert [(one["code"], one["level"]) for one in json.loads(said)] == [("L110", "note")] * 2


def test_the_demonstration_has_a_finding_as_the_readme_says(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = run(capsys, "lint", "-f", ROOT / "examples/demo")
    assert code == 1
    assert "warning[L109] demo-container" in said


def test_what_the_agents_own_files_say_besides_events_is_passed_over(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = file.with_name("events.jsonl")
    notice = {"Type": "SystemEvent", "Operation": "EventsLost", "Data": "ring=7", "HostName": "vm"}
    events.write_text(
        "\n".join(map(json.dumps, (EVENT, notice, notice, notice | {"Operation": "AlertThreshold"}, EVENT)))
    )
    assert policy.main(["test", "-f", str(file), "--events", str(events), "-o", "json"]) == 0
    said = capsys.readouterr()
    assert [json.loads(line)["event"] for line in said.out.splitlines()] == [1, 2]
    assert said.err == f"{events}: skipped 3 notices that are no events: 2 EventsLost, 1 AlertThreshold\n"


@pytest.mark.parametrize(
    ("annotations", "told", "total"),
    [("", "Block ", "7 would be blocked, 0 audited"),
     ("hauberk.io/mode: shadow", "Block (shadow)", "0 would be blocked, 0 audited, 7 by shadows and baselines alone"),
     ("kubearmor-policy: audited", "Audit (Block)", "0 would be blocked, 7 audited")],
)  # fmt: skip
def test_a_backtest_says_what_would_have_happened(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], annotations: str, told: str, total: str
) -> None:
    file.write_text(POLICY.format(annotations=annotations))
    stored(tmp_path / "state")
    code, said = run(capsys, "backtest", "-f", file, "--since", "1h", "--state", tmp_path / "state")
    assert code == 0
    assert f"{told}" in said
    assert total in said
    code, said = run(capsys, "diff", file, file, "--state", tmp_path / "state")
    assert (code, "1 behaviours since 7d compared, 0 change" in said) == (0, True)


def test_what_the_documentation_runs_in_the_pod_of_the_store_judges_what_is_stored(
    hauberk: Any,
) -> None:
    """Its commands after the `--` of `kubectl exec`, with the policies on standard input."""
    stored(hauberk.state)
    old, new = POLICY.format(annotations="kubearmor-policy: disabled"), POLICY.format(annotations="")
    (hauberk.state / "bus").mkdir()
    done = hauberk("apply", "-f", "-", stdin=old)
    assert done.returncode == 0, done.stderr
    text = (ROOT / "docs/kubernetes.md").read_text()
    words = re.findall(r"^kubectl exec -i \S+ \S+ \S+ -- hauberk (policy .*) < new\.yaml$", text, re.MULTILINE)
    backtest, diff = map(shlex.split, words)
    done = hauberk(*backtest, stdin=new)
    assert (done.returncode, "7 would be blocked" in done.stdout) == (0, True), done.stderr
    done = hauberk(*diff, stdin=new)
    assert (done.returncode, "1 behaviours since 7d compared, 1 change" in done.stdout) == (1, True), (
        done.stdout + done.stderr
    )


def test_a_diff_as_json_says_what_it_could_not_judge(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(POLICY.format(annotations=""))
    nothing = tmp_path / "nothing.yaml"
    nothing.write_text(POLICY.format(annotations="kubearmor-policy: disabled"))
    for name, access, kinds, untold in (
        ("told", Access.READ, ["denied"], 0),
        ("untold", Access.READ | Access.UNTOLD, [], 7),
    ):
        stored(tmp_path / name, access)
        code, said = run(capsys, "diff", nothing, file, "--state", tmp_path / name, "-o", "json")
        found = json.loads(said)
        assert ([one["kind"] for one in found["changes"]], code) == (kinds, len(kinds))
        assert (found["behaviours"], found["events"], found["untold"]) == (1, 7, untold)


def stored(state: Path, access: Access = Access.READ) -> None:
    state.mkdir()
    web = Identity(kind=Kind.CONTAINER, node="n", uid="u", namespace="shop", container_name="web", labels={"app": "web"},
                   orchestrated=True)  # fmt: skip
    opened = Behaviour(operation=Operation.OPEN, access=access, resource="/etc/shadow", executable="/bin/cat")
    now = time.time_ns()
    entry = SummaryEntry(behaviour=opened, status="Allow", count=7, first=now, last=now)
    store = SqliteStore(str(state / "summary.db"))
    store.apply(
        [
            Summary(
                node="n",
                run="r",
                first_frame=1,
                last_frame=1,
                bucket=now // 10**9 // 60 * 60,
                identity=web,
                entries=(entry,),
            )
        ],
        [],
    )
    store.close()
