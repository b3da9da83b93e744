# SPDX-License-Identifier: Apache-2.0
"""`bus:` and `cluster:` in the place of policy files: what is in force, and with a file put over it, judged against the summary store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

ROOT = Path(__file__).parents[2]
POLICY = str(ROOT / "examples/policies/host-audit-shadow.yaml")
NAME = "audit-password-hashes"
PAST = ("--since", "9999d")


@pytest.fixture(scope="module")
def kept(make_hauberk: Callable[..., Any]) -> Any:
    """A state with behaviours of a recording, and one policy on the bus."""
    made = make_hauberk()
    made.sinks = [{"type": "store", "path": str(made.state / "summary.db")}]
    assert made.replay().returncode == 0
    (made.state / "bus").mkdir(exist_ok=True)
    done = made("apply", "-f", POLICY)
    assert done.returncode == 0, done.stderr
    return made


def document(**more: Any) -> dict[str, Any]:
    """The policy of the example, changed."""
    found: dict[str, Any] = msgspec.yaml.decode(Path(POLICY).read_bytes())
    return found | more


def changed(home: Path, **spec: Any) -> str:
    """A file with a policy of the same name."""
    file = home / "changed.json"
    body = document()
    file.write_bytes(msgspec.json.encode(body | {"spec": body["spec"] | spec}))
    return str(file)


def test_what_is_in_force_on_the_bus_is_judged_and_compared(kept: Any) -> None:
    here = kept("policy", "backtest", "-f", POLICY, *PAST)
    assert NAME in here.stdout
    there = kept("policy", "backtest", "bus:", *PAST)
    assert (there.returncode, there.stdout) == (0, here.stdout), there.stderr
    file = changed(kept.home, action="Block")
    same = kept("policy", "diff", "bus:", "bus:", *PAST)
    assert (same.returncode, same.stdout.splitlines()[0]) == (0, "No behaviour changes its verdict."), same.stderr
    done = kept("policy", "diff", "bus:", f"bus:{file}", *PAST)
    assert done.returncode == 1, done.stderr
    assert f"Block ({NAME})" in done.stdout
    # From standard input, as into a pod.
    piped = kept("policy", "diff", "bus:", "bus:-", *PAST, stdin=Path(file).read_text())
    assert (piped.returncode, piped.stdout) == (1, done.stdout), piped.stderr
    # As with two -f: the file's takes the place of the one in force.
    over = kept("policy", "backtest", "-f", "bus:", "-f", file, *PAST)
    assert over.stdout == kept("policy", "backtest", "-f", file, *PAST).stdout
    for words in (("check",), ("lint",), ("explain",)):
        assert kept("policy", *words, "bus:").returncode in (0, 1)


def test_what_is_not_there_is_one_sentence(kept: Any, tmp_path: Path) -> None:
    nowhere = kept("policy", "check", "bus:", HAUBERK_STATE=str(tmp_path / "none"))
    assert nowhere.returncode == 2
    assert "expected a bus in" in nowhere.stderr
    wrong = kept("policy", "check", "cluster:", "--set", "cluster.server.kubeconfig=/nowhere")
    assert wrong.returncode == 2
    assert "/nowhere" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    setting = kept("policy", "check", "cluster:", "--set", "cluster.server.page=many")
    assert setting.returncode == 2
    assert "settings: `cluster.server`" in setting.stderr
    through = kept("policy", "backtest", "-f", POLICY, "--kubeconfig", "any")
    assert through.returncode == 2
    assert "name `cluster:` in the place of a file" in through.stderr
    assert "kubectl exec -i -n hauberk deployment/hauberk-sink-store -- hauberk policy" in through.stderr
    # A file of that name is a file where it has a directory.
    (tmp_path / "bus:").write_text(Path(POLICY).read_text())
    assert kept("policy", "check", str(tmp_path / "bus:")).returncode in (0, 1)


@pytest.fixture
def in_cluster(api_server: Any) -> Iterator[Any]:
    """The policy as an object of the cluster, and one beside it that is none."""
    wrong = document()
    wrong["metadata"] = wrong["metadata"] | {"name": "no-policy"}
    wrong["spec"] = wrong["spec"] | {"network": {"matchProtocols": [{"protocol": "carrier-pigeon"}]}}
    api_server.apply(document(), wrong)
    yield api_server
    api_server.kubectl("delete", "hsp", NAME, "no-policy")


@pytest.mark.kubernetes
def test_objects_of_the_cluster_are_judged_as_files_are(kept: Any, in_cluster: Any, tmp_path: Path) -> None:
    server = ("--set", f"cluster.server.kubeconfig={in_cluster.kubeconfig()}")
    here = kept("policy", "backtest", "-f", POLICY, *PAST)
    there = kept("policy", "backtest", "cluster:", *PAST, *server)
    assert (there.returncode, there.stdout) == (0, here.stdout), there.stderr
    assert "cluster:KubeArmorHostPolicy/no-policy is left out, it is no valid policy" in there.stderr
    done = kept("policy", "diff", "cluster:", f"cluster:{changed(kept.home, action='Block')}", *PAST, *server)
    assert done.returncode == 1, done.stderr
    assert f"Block ({NAME})" in done.stdout
    # Between what is in force and what the cluster has: the same here, and an exit code for CI.
    assert kept("policy", "diff", "bus:", "cluster:", *PAST, *server).returncode == 0
    check = kept("policy", "check", "cluster:", *server)
    assert check.returncode == 2
    assert "carrier-pigeon" in check.stdout
    # Without a right, and without a store.
    nobody = kept(
        "policy", "check", "cluster:", "--set", f"cluster.server.kubeconfig={in_cluster.kubeconfig('nobody')}"
    )
    assert nobody.returncode == 3
    assert 'cannot list resource "kubearmorpolicies"' in nobody.stderr
    laptop = kept(
        "policy", "backtest", "cluster:", *server, HAUBERK_STATE=str(tmp_path / "laptop"), HAUBERK__SINKS="[]"
    )
    assert laptop.returncode == 2
    assert "lies in the pod of its sink `store`" in laptop.stderr
