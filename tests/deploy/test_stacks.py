# SPDX-License-Identifier: Apache-2.0
"""Both compose stacks, built and started in a Docker engine of their own by `deploy/docker/try.sh`: `make test-compose`.

What is asserted is the script's own: it ends with the first thing that does not hold. Here are the sentences without which it proved
nothing."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SENTENCES = {
    "embedded": (
        "healthy by every service's own check", "enforced: ", "alert: ", "the page shows it", "the rule holds while the node is stopped",
        "stopped: every exit code is 0", "down: nothing is enforced", "everything is removed",
    ),
    "kafka": (
        "healthy by every service's own check", "enforced: ", "alert: ", "the page shows it", "are in the scrape", "the other took over",
        "the rule holds while the broker is away", "was told when it was back", "the rule holds while the node is stopped",
        "stopped: every exit code is 0", "down: nothing is enforced", "everything is removed",
    ),
}  # fmt: skip
MISSING = "no engine"


def lacks() -> str:
    if not os.environ.get("HAUBERK_TEST_COMPOSE"):
        return "builds an image and starts an engine, minutes: `make test-compose`"
    if os.geteuid() != 0:
        return "needs root"
    wanted = ("ip", "nsenter", "curl", "busybox", "mmdebstrap", "prometheus", "promtool", "runc")
    absent = [name for name in wanted if shutil.which(name) is None]
    return f"needs {', '.join(absent)}" if absent else ""


@pytest.mark.containers
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stack", SENTENCES)
def test_a_stack_runs_and_leaves_nothing(stack: str) -> None:
    if why := lacks():
        pytest.skip(why)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hauberk-tests/compose"
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [ROOT / "deploy/docker/try.sh"], env={"TRY_DATA": str(cache), **os.environ, "TRY_STACK": stack},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    print(done.stdout)
    if MISSING in done.stdout:
        pytest.skip(done.stdout.strip().splitlines()[0])
    assert done.returncode == 0
    assert [one for one in SENTENCES[stack] if one not in done.stdout] == []
    assert str(cache) not in Path("/proc/self/mounts").read_text()
