# SPDX-License-Identifier: Apache-2.0
"""The rig itself: a run that is killed leaves no broker, and a cluster can be killed, brought back, moved and emptied."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import kafka_jars
import pytest
from kafka_cluster import brokers_seen

RUN = """
import sys, threading
from pathlib import Path
from kafka_cluster import Cluster

cluster = Cluster(Path(sys.argv[1]))
# The thread that asks for the start ends: the broker must outlive it, and die with the process alone.
asking = threading.Thread(target=cluster.start)
asking.start()
asking.join()
print(cluster.nodes[1].process.pid, cluster.nodes[1].listeners[0], flush=True)
sys.stdin.read()
"""


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_killed_run_leaves_no_broker(tmp_path, eventually):
    try:
        kafka_jars.fetch()
    except kafka_jars.NoKafka as error:
        pytest.skip(f"no Kafka: {error}")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    environment.pop("PYTHONSAFEPATH", None)
    with subprocess.Popen(
        [sys.executable, "-c", RUN, str(tmp_path / "cluster")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
    ) as run:  # fmt: skip
        try:
            pid, port = map(int, run.stdout.readline().split())
            assert running(pid)
            assert brokers_seen(port) == 1
        finally:
            run.send_signal(signal.SIGKILL)
    eventually(lambda: not running(pid))
    assert brokers_seen(port) == 0


def test_a_cluster_comes_back_moves_and_is_emptied(kafka_clusters):
    cluster = kafka_clusters()
    cluster.start()
    before = cluster.bootstrap
    cluster.kill()
    assert brokers_seen(cluster.nodes[1].listeners[0]) == 0
    cluster.start()
    assert cluster.bootstrap == before
    cluster.kill()
    cluster.move()
    assert cluster.bootstrap != before
    identity = cluster.identity
    cluster.empty()
    assert cluster.identity != identity
    cluster.start()
    assert brokers_seen(cluster.nodes[1].listeners[0]) == 1


def test_the_broker_of_the_run_is_one(kafka):
    assert brokers_seen(kafka.nodes[1].listeners[0]) == 1


def test_a_paused_broker_answers_nothing_from_then_on(kafka_clusters):
    """Each of its threads goes on until it has seen the signal: what a test asks meanwhile would be answered."""
    cluster = kafka_clusters()
    cluster.start()
    tasks = Path(f"/proc/{cluster.nodes[1].process.pid}/task")
    for _ in range(100):
        cluster.pause()
        states = Counter((one / "stat").read_text().rpartition(")")[2].split()[0] for one in tasks.iterdir())
        cluster.resume()
        assert states.keys() == {"T"}, states
