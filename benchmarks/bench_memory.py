# SPDX-License-Identifier: Apache-2.0
"""What the resident processes weigh: `hauberk up` and `hauberk node`, after the start and after a moderate workload.

VmRSS and Pss of the process alone, from /proc/PID/smaps_rollup, in MB of 10^6 bytes; children are not counted. Pss leaves out
what is shared with others, so it is what one more process really costs. Needs root, BPF, BCC and cgroup v2.
Neighbour: bench_kafka_memory, which weighs a node over Kafka the same way.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from live import Live, missing, running

Result = dict[str, dict[str, Any]]

# 500 opens of 200 files, 5 execs and 20 refused connections every 100 ms; prints how many calls that were.
WORKLOAD = """
import os, socket, sys, time
directory, seconds = sys.argv[1], float(sys.argv[2])
until, calls, turn = time.monotonic() + seconds, 0, 0
while time.monotonic() < until:
    for number in range(500):
        os.close(os.open(f"{directory}/{number % 200}", os.O_RDONLY))
    for number in range(5):
        os.waitpid(os.posix_spawn("/bin/true", ["true", str(turn), str(number)], {}), 0)
    for number in range(20):
        with socket.socket() as peer:
            peer.connect_ex(("127.0.0.1", 1 + number))
    calls += 525
    turn += 1
    time.sleep(0.1)
print(calls)
"""


def run(scale: float) -> Result:
    """{name: {"value", "unit", "n", "how"}}; `scale` 1.0 takes about a minute and a half."""
    if lacks := missing():
        print(f"bench_memory: {lacks}", file=sys.stderr)
        return {}
    seconds = max(0.5, 20 * scale)
    return weighed("node", "node", seconds) | weighed("up", "up", seconds)


def weighed(verb: str, name: str, seconds: float, where: str = "", sets: tuple[str, ...] = ()) -> Result:
    """Figures `{name}_...` of `hauberk VERB`, with `sets` as further settings and `where` to say so; it works for `seconds`."""
    # The host is left out: what others do on a shared machine would be weighed too.
    with running(verb, sets=('postures.host_visibility=["none"]', *sets)) as live:
        time.sleep(min(5.0, seconds))
        before = live.memory()
        calls = _work(live, seconds)
        time.sleep(min(2.0, seconds))
        after = live.memory()
    what = f"of `hauberk {verb}`{where}"
    how = f"after {seconds:g} s in which a watched cgroup made {calls} watched calls"
    return {
        f"{name}_rss_start": _figure(before["Rss"], 1, f"VmRSS {what} {min(5.0, seconds):g} s after it was ready"),
        f"{name}_rss": _figure(after["Rss"], calls, f"VmRSS {what} {how}"),
        f"{name}_pss": _figure(after["Pss"], calls, f"Pss {what} {how}"),
        f"{name}_anonymous": _figure(after["Anonymous"], calls, f"Anonymous memory {what} {how}"),
    }


def _work(live: Live, seconds: float) -> int:
    directory = live.state.parent / "files"
    os.mkdir(directory)
    for number in range(200):
        Path(directory, str(number)).touch()
    child = live.box.popen(WORKLOAD, str(directory), str(seconds), stdin=subprocess.DEVNULL)
    out, _ = child.communicate()
    return int(out)


def _figure(value: float, n: int, how: str) -> dict[str, Any]:
    return {"value": round(value, 2), "unit": "MB", "n": n, "how": how}
