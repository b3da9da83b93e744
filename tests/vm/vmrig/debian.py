# SPDX-License-Identifier: Apache-2.0
"""Packages of other releases of Debian: looked up, downloaded, unpacked below the user's cache directory, never installed.

They come from where this machine's own packages come from.

apt checks Debian's signatures; its lists lie in the cache too and the machine's own are not touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class NoPackage(Exception):
    """It cannot be had here; the message says why and what to do."""


def cache() -> Path:
    """The directory that everything is kept in; it may be deleted at any time."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hauberk-vm"


class Archive:
    """`suites`: of Debian, component main (`bookworm-backports`, `trixie`). `name`: of its lists in the cache."""

    def __init__(self, name: str, suites: tuple[str, ...]) -> None:
        for program in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(program) is None:
                raise NoPackage(f"no `{program}` here, and this comes as a package of Debian")
        if not Path(KEYRING).exists():
            raise NoPackage(f"`{KEYRING}` is missing; run `deploy/packages.sh test` as root")
        apt = cache() / f"apt-{name}"
        (apt / "lists" / "partial").mkdir(parents=True, exist_ok=True)
        (apt / "archives" / "partial").mkdir(parents=True, exist_ok=True)
        (apt / "list").write_text(
            "".join(f"deb [signed-by={KEYRING}] {_place(suite)} {suite} main\n" for suite in suites)
        )
        (apt / "status").touch()
        options = [
            f"Dir::Etc::sourcelist={apt}/list", "Dir::Etc::sourceparts=-", f"Dir::State::lists={apt}/lists",
            f"Dir::Cache={apt}", f"Dir::State::status={apt}/status", "APT::Sandbox::User=root",
            "APT::Architecture=amd64", "Acquire::Languages=none", "Acquire::Retries=2",
        ]  # fmt: skip
        self._given = [word for option in options for word in ("-o", option)]
        run("apt-get", *self._given, "update", "-qq")

    def shown(self, package: str) -> str:
        """What apt-cache says of the newest version."""
        return run("apt-cache", *self._given, "show", "--no-all-versions", package)

    def unpack(self, package: str, into: Path) -> None:
        """The files of `package` (or `package=version`) in the new directory `into`."""
        with tempfile.TemporaryDirectory(dir=cache()) as work:
            run("apt-get", *self._given, "download", "-q", package, cwd=work)
            (archive,) = Path(work).glob("*.deb")
            run("dpkg-deb", "-x", str(archive), f"{work}/unpacked")
            shutil.rmtree(into, ignore_errors=True)
            (Path(work) / "unpacked").rename(into)


def _place(suite: str) -> str:
    """Where this machine gets packages of Debian, or its security updates."""
    known = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages").splitlines()
    security = suite.endswith("-security")
    for line in known:
        place, _, release = line.partition(" ")
        if release.endswith("-security") is security:
            return place.rstrip("/")
    raise NoPackage(f"apt knows no source of `{suite}` here; it knows {known or 'none'}")


def run(*words: str, cwd: str | None = None) -> str:
    """What a command printed. Raises NoPackage."""
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise NoPackage(f"`{words[0]} {words[-1]}` failed: {done.stderr.strip()[-500:]}")
    return done.stdout
