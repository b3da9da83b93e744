# SPDX-License-Identifier: Apache-2.0
"""The six capabilities of the entry point are enough for `hauberk node`, as an ordinary user, on this kernel."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kernel.loading import is_bpffs, mount_bpffs, unload, unmount

ROOT = Path(__file__).parents[2]
USER = 10001
pytestmark = [pytest.mark.kernel, pytest.mark.timeout(400)]


@pytest.fixture
def pins() -> Iterator[Path]:
    """A directory in bpffs that belongs to the user, as the entry point makes it."""
    if os.geteuid() != 0:
        pytest.skip("needs root: loads programs")
    if not shutil.which("setpriv"):
        pytest.skip("needs `setpriv`: apt-get install util-linux")
    mounted = mount_bpffs("/sys/fs/bpf") if not is_bpffs("/sys/fs/bpf") else False
    parent = Path("/sys/fs/bpf", f"hauberk-test-caps-{os.getpid()}")
    parent.mkdir()
    os.chown(parent, USER, USER)
    yield parent / "node"
    unload(str(parent / "node"))
    parent.rmdir()
    if mounted:
        unmount("/sys/fs/bpf")


@pytest.fixture
def state() -> Iterator[Path]:
    """A state directory that belongs to the user; pytest's own lie under a directory that is root's alone."""
    made = Path(tempfile.mkdtemp(prefix="hauberk-caps-"))
    os.chown(made, USER, USER)
    yield made
    shutil.rmtree(made)


def test_node_loads_and_ends_as_nobody(pins: Path, state: Path) -> None:
    script = (ROOT / "deploy/docker/entrypoint.sh").read_text()
    kept = re.search(r"^keep=(\S+)$", script, re.MULTILINE)
    assert kept is not None
    caps = f"-all,{kept[1]}"
    words = ["setpriv", "--reuid", str(USER), "--regid", str(USER), "--clear-groups", "--no-new-privs"]
    words += [f"--inh-caps={caps}", f"--ambient-caps={caps}", f"--bounding-set={caps}"]
    words += [sys.executable, "-P", "-m", "hauberk", "node", "--state", str(state)]
    environment = dict(os.environ, HAUBERK__SENSOR__PIN_DIR=str(pins), HAUBERK__NODE="caps", TMPDIR=str(state))
    said = state / "said"
    with said.open("wb") as out:
        process = subprocess.Popen(words, env=environment, stdout=out, stderr=out, cwd=ROOT)
    try:
        deadline = time.monotonic() + 240
        while "running" not in said.read_text():
            assert process.poll() is None, said.read_text()
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.05)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"Uid:\t{USER}\t{USER}\t{USER}\t{USER}" in status
        assert re.search(r"^CapBnd:\t000000e000081004$", status, re.MULTILINE), status
        assert len(list((pins / "links").iterdir())) > 3
        assert (pins / "programs/guard_connect4").exists() or (pins / "programs/guard_sock_create").exists()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, said.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert "hauberk node: ended" in said.read_text()
    assert (pins / "links").exists(), "rules hold while the node is stopped"
