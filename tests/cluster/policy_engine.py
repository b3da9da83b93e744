# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes project's engine for network policies (kube-network-policies), built once from Go modules into the user's cache (see
`netpol/`). Neighbour: `pod_network`, which starts it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = ("main.go", "go.mod", "go.sum")
VERSION = "v0.8.0"


class NoEngine(Exception):
    """There is none to be had on this machine; the sentence says why."""


def home() -> Path:
    """Where the program is kept from run to run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    mark = hashlib.sha256(b"".join((HERE / "netpol" / name).read_bytes() for name in SOURCES)).hexdigest()[:12]
    return cache / "hauberk-tests" / f"netpol-{VERSION}-{mark}"


def found() -> Path:
    """The program, where somebody has built it before. Raises NoEngine."""
    program = home() / "netpol"
    if not program.exists():
        raise NoEngine("the engine for network policies is not built yet: `make test-kubernetes` does it")
    if os.geteuid() != 0 or shutil.which("iptables") is None:
        raise NoEngine("needs root and iptables: makes network namespaces and sends their packets to the engine")
    return program


def build() -> Path:
    """The program, built when it is not there. Several processes may ask at once. Raises NoEngine."""
    program = home() / "netpol"
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise NoEngine("needs Go 1.26 or newer")
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            # The flags of the API server, with which it shares what is compiled.
            done = subprocess.run(
                ["go", "build", "-trimpath", "-gcflags=all=-N -l", "-ldflags", "-s -w", "-o", f"{program}.part", "."],
                cwd=HERE / "netpol", env={**os.environ, "CGO_ENABLED": "0", "GOVCS": "*:off", "GOFLAGS": "-mod=mod"},
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.returncode:
                raise NoEngine(f"the engine could not be built: {done.stderr[-1500:]}")
            os.replace(f"{program}.part", program)
    return program


if __name__ == "__main__":
    try:
        print(f"netpol: {build()}")
    except NoEngine as error:
        print(f"netpol: {error}", file=sys.stderr)
        sys.exit(1)
