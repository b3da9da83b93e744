# SPDX-License-Identifier: Apache-2.0
"""Helm, built once from its Go module into the user's cache: charts are rendered and linted by what people install them with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

VERSION = "v4.2.3"


class NoHelm(Exception):
    """There is none to be had on this machine; the sentence says why."""


def home() -> Path:
    """Where the program is kept from run to run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hauberk-tests" / f"helm-{VERSION}"


def found() -> Path:
    """The program, where somebody has built it before. Raises NoHelm."""
    program = home() / "helm"
    if not program.exists():
        raise NoHelm(
            "helm is not built yet, which takes some minutes of processor time: `make test-kubernetes` does it"
        )
    return program


def build() -> Path:
    """The program, built when it is not there. Raises NoHelm."""
    program = home() / "helm"
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise NoHelm("needs Go 1.26 or newer")
    home().mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["go", "install", "-trimpath", "-gcflags=all=-N -l", "-ldflags", "-s -w", f"helm.sh/helm/v4/cmd/helm@{VERSION}"],
        env={**os.environ, "CGO_ENABLED": "0", "GOVCS": "*:off", "GOBIN": str(home())},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NoHelm(f"helm could not be built: {done.stderr[-1500:]}")
    return program


if __name__ == "__main__":
    try:
        print(f"helm: {build()}")
    except NoHelm as error:
        print(f"helm: {error}", file=sys.stderr)
        sys.exit(1)
