# SPDX-License-Identifier: Apache-2.0
"""Records the corpus of the discovery scorecard: real workloads and scripted attacks, seen by a real `hauberk up`.

`python benchmarks/discovery/record.py [--runs 12] [NAME...]`, as root. Each run is a cgroup of its own that `up` takes for a container;
its processes live in a throw-away root (`throwaway_root.sh`) with the Debian packages of `PACKAGES`. What `up` has put into its
summary store is written to `corpus.bin`: distinct behaviours once, and for each run which of them were seen, how often.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent))
import live  # noqa: E402

from kernel.features import cgroup2_mount  # noqa: E402
from sinks.store.queries import SqliteReader  # noqa: E402
from sinks.store.store import Query  # noqa: E402

CORPUS = HERE / "corpus.bin"
PACKAGES = (
    "nginx-light redis-server memcached lua5.4 rsync logrotate dnsmasq-base tcl lighttpd php-cli ruby bison netcat-openbsd cron "
    "sqlite3 git gcc make perl curl openssl gnupg jq nodejs default-jdk-headless rsyslog python3"
)
PREPARE = f"""
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq; apt-get install -y -qq --no-install-recommends {PACKAGES} </dev/null
"""
VICTIM = """
mkdir -p /root/.ssh /root/.aws /root/.docker /var/run/secrets/kubernetes.io/serviceaccount /var/www/html /srv/attack
echo key >/root/.ssh/id_ed25519; echo key >/root/.aws/credentials; echo {} >/root/.docker/config.json
echo token >/var/run/secrets/kubernetes.io/serviceaccount/token; echo ls >/root/.bash_history
"""
SETTLE_SECONDS = 6.0
live.START_SECONDS = 600.0


def record(root: Path, runs: int, wanted: list[str]) -> None:
    """Prepare `root`, run everything, write the corpus."""
    throwaway = ["bash", str(HERE / "throwaway_root.sh"), str(root)]
    (root / "upper").mkdir(parents=True, exist_ok=True)
    if not (root / "upper/usr/sbin/nginx").exists():
        subprocess.run([*throwaway, "bash", "-c", PREPARE], check=True, stdout=subprocess.DEVNULL)
    for name in ("workloads.sh", "attacks.sh"):
        (root / "upper" / name).write_bytes((HERE / name).read_bytes())
    names = wanted or _listed("workloads.sh")
    attacks = _listed("attacks.sh") if not wanted or "attacks" in wanted else []
    names = [name for name in names if name != "attacks"]
    mount = cgroup2_mount()
    top = f"/hauberk-discovery-{os.getpid()}"
    declared = [
        {"name": name, "cgroup": f"{top}/{name}-*", "namespace": "bench", "labels": {"app": name}}
        for name in [*names, "attack"]
    ]
    sets = (
        f"inventory.workloads={json.dumps(declared)}",
        'postures.host_visibility=["none"]',
        "sensor.load.timeout=500",
    )
    cgroups = []
    try:
        with live.running("up", sets=sets) as running:
            os.mkdir(f"{mount}{top}")
            for name in names:
                for run in range(1, runs + 1):
                    cgroups.append(f"{mount}{top}/{name}-{run:02d}")
                    os.mkdir(cgroups[-1])
                    command = f"rm -rf /srv/{name}; timeout 60 bash /workloads.sh {name} {run}"
                    done = subprocess.run(
                        [*throwaway, "bash", "-c", command], env=os.environ | {"INSIDE": cgroups[-1]}, capture_output=True,
                        text=True,
                    )  # fmt: skip
                    print(f"{name} {run}: {done.returncode} {done.stderr[-200:]!r}", file=sys.stderr, flush=True)
            for attack in attacks:
                cgroups.append(f"{mount}{top}/attack-{attack}")
                os.mkdir(cgroups[-1])
                command = f'{VICTIM} (echo 0 >"$INSIDE/cgroup.procs"; DATA=/srv/attack exec bash /attacks.sh {attack})'
                # Each has a root of its own, which it may spoil.
                with tempfile.TemporaryDirectory(prefix="hauberk-attack-") as spoilt:
                    subprocess.run(
                        [throwaway[0], throwaway[1], spoilt, "timeout", "20", "bash", "-c", command], stdout=subprocess.DEVNULL,
                        env=os.environ | {"INSIDE": cgroups[-1], "BELOW": str(root)},
                    )  # fmt: skip
            _write(running.state.parent / "summary.db")
    finally:
        deadline = time.monotonic() + 10
        for path in [*cgroups, f"{mount}{top}"]:
            while os.path.isdir(path):
                try:
                    os.rmdir(path)
                except OSError:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.05)


def _write(store: Path) -> None:
    """The store's rows once nothing more arrives."""
    reader = SqliteReader(str(store))
    try:
        before, since = -1, time.monotonic()
        while time.monotonic() - since < SETTLE_SECONDS:
            rows = list(reader.behaviours(Query(namespace="bench")))
            total = sum(row.count for row in rows)
            if total != before:
                before, since = total, time.monotonic()
            time.sleep(0.5)
    finally:
        reader.close()
    behaviours: dict[bytes, int] = {}
    runs: dict[str, list[tuple[int, int]]] = {}
    if CORPUS.exists():
        # What was not recorded this time stays as it was.
        old = msgspec.msgpack.decode(lzma.decompress(CORPUS.read_bytes()))
        behaviours = {msgspec.msgpack.encode(one): number for number, one in enumerate(old["behaviours"])}
        again = {row.identity.cgroup_path.rpartition("/")[2] for row in rows}
        runs = {name: some for name, some in old["runs"].items() if name not in again}
    for row in sorted(rows, key=lambda row: row.first):
        body = msgspec.msgpack.encode(row.behaviour)
        number = behaviours.setdefault(body, len(behaviours))
        name = row.identity.cgroup_path.rpartition("/")[2]
        runs.setdefault(name, []).append((number, row.count))
    packed = msgspec.msgpack.encode({"behaviours": [msgspec.Raw(body) for body in behaviours], "runs": runs})
    CORPUS.write_bytes(lzma.compress(packed, preset=9))
    print(f"{len(runs)} runs, {len(behaviours)} behaviours, {CORPUS.stat().st_size} bytes", file=sys.stderr)


def _listed(script: str) -> list[str]:
    return subprocess.run(
        ["bash", str(HERE / script), "list"], check=True, capture_output=True, text=True
    ).stdout.split()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="workloads, or `attacks`; default all")
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--root", type=Path, help="directory of the throw-away root, kept; default a temporary one")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hauberk-discovery-") as directory:
        record(given.root or Path(directory), given.runs, given.names)
