# SPDX-License-Identifier: Apache-2.0
"""A Docker engine with compose v2 and buildx: this machine's where it is new enough, else the next Debian's, unpacked, not installed.

`python -m vmrig.docker` prints what a shell has to `eval`. Engines before 23 know neither `BPF` nor `PERFMON` among capabilities.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from vmrig.debian import Archive, NoPackage, cache

PACKAGES = ("docker.io", "docker-cli", "containerd", "docker-buildx", "docker-compose")
OLDEST = 23


def compose() -> list[str]:
    """The command up to `config`. Raises NoPackage."""
    if _says("docker", "compose", "version"):
        return ["docker", "compose"]
    return [str(_package("docker-compose") / "usr/libexec/docker/cli-plugins/docker-compose")]


def environment() -> dict[str, str]:
    """{variable: what goes before its value}: PATH with the programs and DOCKER_CONFIG with the plugins. Empty when this machine's
    do. Raises NoPackage."""
    if (
        shutil.which("dockerd")
        and _new_enough()
        and _says("docker", "compose", "version")
        and _says("docker", "buildx", "version")
    ):
        return {}
    if shutil.which("runc") is None:
        # The next Debian's is linked to its C library, the rest of the engine runs with this one's.
        raise NoPackage("no `runc` on PATH; run `deploy/packages.sh test` as root")
    unpacked = [_package(name) for name in PACKAGES]
    home = cache() / "docker-engine"
    for kind in ("bin", "config/cli-plugins"):
        (home / kind).mkdir(parents=True, exist_ok=True)
    for package in unpacked:
        for kind, pattern in (("bin", "usr/*bin/*"), ("config/cli-plugins", "usr/libexec/docker/cli-plugins/*")):
            for program in package.glob(pattern):
                _link(home / kind / program.name, program)
    return {"PATH": str(home / "bin"), "DOCKER_CONFIG": str(home / "config")}


def _new_enough() -> bool:
    found = re.search(r"version (\d+)\.", _says("dockerd", "--version"))
    return found is not None and int(found[1]) >= OLDEST


def _says(*words: str) -> str:
    """What it printed; "" when it is not there or fails."""
    if shutil.which(words[0]) is None:
        return ""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return "" if done.returncode else done.stdout


def _package(name: str) -> Path:
    home = cache() / name
    if not (home / "usr").is_dir():
        Archive("trixie", ("trixie",)).unpack(name, home)
    return home


def _link(at: Path, target: Path) -> None:
    if not (at.is_symlink() and at.readlink() == target):
        at.unlink(missing_ok=True)
        at.symlink_to(target)


if __name__ == "__main__":
    try:
        given = environment()
    except NoPackage as error:
        sys.exit(f"no Docker engine with compose v2: {error}")
    if given:
        print(f"export PATH={given['PATH']}:$PATH DOCKER_CONFIG={given['DOCKER_CONFIG']}")
