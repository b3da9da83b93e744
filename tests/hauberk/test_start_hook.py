# SPDX-License-Identifier: Apache-2.0
"""With the OCI hook a container's rules are in force before its first program: real runtimes, and the first act of real containers."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import container_runtimes as runtimes
import msgspec
import pytest

pytestmark = [
    pytest.mark.containers, pytest.mark.kernel, pytest.mark.usefixtures("live"), pytest.mark.timeout(900),
]  # fmt: skip

TIMES = 25
UID = "77777777-2222-3333-4444-555555555555"


def policy(namespace: str, labels: dict[str, str], **rules: Any) -> str:
    rules = rules or {"network": {"matchProtocols": [{"protocol": "udp"}]}}
    return msgspec.json.encode({
        "apiVersion": "security.kubearmor.com/v1", "kind": "KubeArmorPolicy", "metadata": {"name": "hooked", "namespace": namespace},
        "spec": {"selector": {"matchLabels": labels}, "action": "Block"} | rules,
    }).decode()  # fmt: skip


class Held:
    """A node whose hooks are answered: `hauberk up` with policies, and the hook as `hauberk hook` prints it."""

    def __init__(self, hauberk: Any) -> None:
        self._hauberk = hauberk
        self.socket = str(hauberk.home / "start.sock")
        self.name = f"hbk{os.getpid()}"

    def start(self, text: str, runtime: dict[str, Any], **more: str) -> Any:
        (self._hauberk.home / "policy.json").write_text(text)
        self.running = self._hauberk.start("up", "-q", "-f", "policy.json", **{
            "HAUBERK__INVENTORY__START_SOCKET": self.socket, "HAUBERK__INVENTORY__RUNTIMES": json.dumps([runtime]),
            "HAUBERK__POSTURES__HOST_VISIBILITY": '["none"]', "HAUBERK__INVENTORY__CONTAINER_NAMESPACE": "hooked",
        } | more)  # fmt: skip
        self.running.ready()
        return self.running

    def hook(self, form: str = "spec", *words: str) -> dict[str, Any]:
        done = self._hauberk("hook", "--form", form, "--socket", self.socket, "--seconds", "40", *words)
        assert done.returncode == 0, done.stderr
        made: dict[str, Any] = json.loads(done.stdout)
        return made

    def metric(self, name: str) -> float:
        """Its value; -1 while nobody answers."""
        url = next(line.split()[1] for line in self.running.said().splitlines() if line.startswith("  metrics"))
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return -1.0
        return float(next(line for line in lines if line.startswith(f"{name} ")).split()[1])


@pytest.fixture
def held(hauberk: Any) -> Iterator[Held]:
    if os.geteuid() != 0:
        pytest.skip("needs root: starts containers and loads programs")
    hauberk.pins = f"{hauberk.pins}-hook"
    yield Held(hauberk)
    hauberk.close()


def acts(said: str) -> tuple[int, int, int]:
    """Sockets that the first act got, microseconds to the denial, its errno."""
    got, microseconds, why = said.split()
    return int(got), int(microseconds), int(why)


def test_the_first_act_of_a_container_of_runc_is_denied(
    held: Held, oci: Any, build: Callable[[str], str], eventually: Callable[..., Any]
) -> None:
    names = [f"{held.name}-{number}" for number in range(TIMES)]
    free_names = [f"{held.name}-free{number}" for number in range(10)]
    labels = {"kubearmor.io/container.name": f"[{', '.join([*names, *free_names])}]"}
    held.start(policy("hooked", labels), {"type": "podman", "roots": [oci.root("runc")]})
    mount = str(Path(build("first_act")).parent)
    # Without it containers act before anybody has thought of their rules, though not each of them: what is shown next can fail.
    free = [oci.output(name, ["/act/first_act"], mount=mount).stdout for name in free_names]
    print(free)
    assert any(acts(one)[0] > 0 for one in free), free
    hook = held.hook()
    took = []
    for name in names:
        began = time.monotonic()
        done = oci.output(name, ["/act/first_act"], mount=mount, hooks=hook)
        took.append(time.monotonic() - began)
        assert done.returncode == 0, done.stderr
        got, _, why = acts(done.stdout)
        assert (got, why) == (0, errno.EPERM), (name, done)
    assert held.metric("hauberk_starts_held_total") == TIMES
    print(f"without the hook {free}; with it {sorted(took)[len(took) // 2]:.3f} s a container")
    assert held.running.end() == 0
    assert not os.path.exists(held.socket)


def test_the_first_act_of_a_container_of_podman_is_denied(
    held: Held, podman_cli: Any, build: Callable[[str], str], tmp_path: Path
) -> None:
    """A file of hooks.d; the name that the policy selects by is in podman's storage alone."""
    program = build("first_act")
    names = [f"{held.name}-{number}" for number in range(5)]
    held.start(policy("hooked", {"kubearmor.io/container.name": f"[{', '.join(names)}]"}), {"type": "podman"})
    (tmp_path / "hooks").mkdir()
    (tmp_path / "hooks/hauberk.json").write_text(json.dumps(held.hook("hooks.d")))
    for name in names:
        said = podman_cli.run(
            name, "-v", f"{program}:/first_act:ro", words=["/first_act"], hooks=str(tmp_path / "hooks")
        )
        got, _, why = acts(said)
        assert (got, why) == (0, errno.EPERM), (name, said, held.running.said())
    assert held.running.end() == 0


@pytest.mark.parametrize("unanswered", ["start", "refuse"])
def test_a_container_whose_agent_is_away_does_as_the_hook_was_told(
    held: Held, oci: Any, unanswered: str, eventually: Callable[..., Any]
) -> None:
    """And the agent that comes tells it."""
    hook = held.hook("spec", "--unanswered", unanswered)
    done = oci.output(held.name, ["/bin/sh", "-c", "echo runs"], hooks=hook)
    if unanswered == "start":
        assert (done.returncode, done.stdout) == (0, "runs\n"), done.stderr
    else:
        assert done.returncode != 0
        assert done.stdout == ""
        assert f"container {held.name} is not started: expected the agent at {held.socket}" in done.stderr
    held.start(policy("hooked", {"app": "none"}), {"type": "podman", "roots": [oci.root("runc")]})
    name = "hauberk_starts_started_unheld_total" if unanswered == "start" else "hauberk_starts_kept_out_total"
    eventually(lambda: held.metric(name) == 1)
    assert f"{'started' if unanswered == 'start' else 'refused'} {held.name}: expected the agent" in held.running.said()
    assert held.running.end() == 0


def test_a_pod_of_containerd_waits_for_its_rules(
    held: Held,
    dockerd: Any,
    build: Callable[[str], str],
    tmp_path_factory: pytest.TempPathFactory,
    eventually: Callable[..., Any],
) -> None:
    """`base_runtime_spec`; labels are what the CRI says of the pod, which it does while the hook waits."""
    home = tmp_path_factory.mktemp("hooked-containerd")
    program = shutil.copy(build("first_act"), home)
    spec = json.loads(subprocess.run(["ctr", "oci", "spec"], check=True, capture_output=True).stdout)
    (home / "base.json").write_text(json.dumps(spec | {"hooks": held.hook()}))
    more = f"""
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "{home}/base.json"
"""
    with runtimes.running_containerd(home, dockerd, more) as containerd:
        held.start(
            policy("shop", {"app": "hooked"}), {"type": "cri", "socket": containerd.socket, "timeout_seconds": 60.0}
        )
        sandbox, config = containerd.pod("web-1", "shop", UID, {"app": "hooked"})
        other, other_config = containerd.pod("free-1", "shop", UID[:-1] + "6", {"app": "other"})
        for number in range(5):
            for pod, pod_config, wanted in ((sandbox, config, (0, errno.EPERM)), (other, other_config, None)):
                name = f"c{number}"
                log = home / f"{name}-{pod[:8]}"
                log.mkdir()
                words = ("/bin/sh", "-c", f"{program} >{log}/said; sleep 600")
                containerd.container(pod, pod_config, name, words, str(home))
                said = eventually(lambda log=log: (log / "said").exists() and (log / "said").read_text())
                got, _, why = acts(said)
                assert (got, why) == wanted or (wanted is None and (why == 0 and got > 0)), (name, said)
        # Of this containerd the sandboxes, which only pause, do not have the base specification.
        assert held.metric("hauberk_starts_held_total") == 10
        assert held.running.end() == 0
