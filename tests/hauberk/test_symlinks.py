# SPDX-License-Identifier: Apache-2.0
"""On the live kernel: a rule on /bin/sh is told of when what it points to runs, on the host and in a root of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import eventually

HAUBERK = Path(sys.executable).parent / "hauberk"
POLICIES = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorHostPolicy
metadata: {{name: host-sh}}
spec:
  nodeSelector: {{matchLabels: {{kubernetes.io/hostname: "*"}}}}
  process: {{matchPaths: [{{path: {link}}}]}}
  action: Audit
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: jail-sh}}
spec:
  selector: {{matchLabels: {{app: jail}}}}
  process: {{matchPatterns: [{{pattern: "/bin/*x"}}]}}
  action: Audit
"""


@pytest.fixture
def link(tmp_path: Path) -> Path:
    """A link to a shell of its own, so that other tests on this machine are not told of."""
    (tmp_path / "shell").write_bytes(Path("/bin/sh").resolve().read_bytes())
    (tmp_path / "shell").chmod(0o755)
    (tmp_path / "sh").symlink_to("shell")
    return tmp_path / "sh"


@pytest.fixture
def jail(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A cgroup and a root where /bin leads to /usr/bin."""
    busybox = Path("/usr/bin/busybox")
    if not busybox.exists():
        pytest.skip("needs `busybox`: apt-get install busybox-static")
    root = tmp_path / "root"
    (root / "usr/bin").mkdir(parents=True)
    (root / "old").mkdir()
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/busybox").write_bytes(busybox.read_bytes())
    (root / "usr/bin/busybox").chmod(0o755)
    top = Path("/sys/fs/cgroup/unified") if Path("/sys/fs/cgroup/unified").exists() else Path("/sys/fs/cgroup")
    cgroup = top / f"hauberk-jail-{os.getpid()}"
    cgroup.mkdir()
    yield cgroup, root
    eventually(lambda: not (cgroup / "cgroup.procs").read_text())
    cgroup.rmdir()


@pytest.mark.kernel
def test_a_rule_on_a_link_is_told_when_its_target_runs(tmp_path: Path, link: Path, jail: tuple[Path, Path]) -> None:
    if why := subprocess.run([HAUBERK, "probe", "--quiet"], capture_output=True, text=True, check=False).stderr.strip():
        pytest.skip(f"this node cannot be watched: {why}")
    cgroup, root = jail
    policies, state, said = tmp_path / "p.yaml", tmp_path / "state", tmp_path / "said"
    policies.write_text(POLICIES.format(link=link))
    workloads = [{"name": "jail", "cgroup": f"/{cgroup.name}", "labels": {"app": "jail"}}]
    enter = f"mount --bind {root} {root} && cd {root} && pivot_root . old"
    inside = ["unshare", "-m", "sh", "-c", f'echo $$ > {cgroup}/cgroup.procs; {enter} && exec /bin/busybox "$@"', "sh"]
    sleeper = None
    with said.open("w") as out:
        up = subprocess.Popen(
            [HAUBERK, "up", "--state", state, "-f", policies, "-o", "json",
             "--set", f"sensor.pin_dir=/sys/fs/bpf/hauberk-links-{os.getpid()}", "--set", f"inventory.workloads={json.dumps(workloads)}",
             "--set", 'sinks=[{"type":"blackhole"}]'],
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        eventually(lambda: "  bus " in said.read_text() or up.poll() is not None, 90)
        assert up.poll() is None, said.read_text()
        sleeper = subprocess.Popen([*inside, "sleep", "100"])

        def told(policy: str, real: str) -> bool:
            return any(f'"{policy}"' in line and real in line for line in said.read_text().splitlines())

        def host() -> bool:
            subprocess.run([link, "-c", ":"], check=True)
            return told("host-sh", f"{tmp_path}/shell")

        def jailed() -> bool:
            subprocess.run([*inside, "true"], check=True)
            return told("jail-sh", "/usr/bin/busybox")

        eventually(host)
        eventually(jailed)
    finally:
        if sleeper is not None:
            sleeper.kill()
            sleeper.wait(60)
        up.send_signal(signal.SIGINT)
        try:
            up.wait(60)
        finally:
            # Only if it did not end by itself: nothing of it is left behind.
            up.kill()
