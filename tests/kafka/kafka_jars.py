# SPDX-License-Identifier: Apache-2.0
"""Apache Kafka for the tests: jars by Maven coordinates (`pom.xml`), fetched once into the user's cache.

Beside the jars lie two things that make a start cheap: a class archive (a start takes 2 s of CPU instead of 6) and a
formatted directory to copy (no second JVM). `python tests/kafka/kafka_jars.py` fetches; `make test` does so first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree
from zlib import crc32

HERE = Path(__file__).resolve().parent
PASSWORD = "a-password-of-the-tests"
USERS = ("admin", "node", "processor", "planner", "sink", "cli", "cluster", "nobody")
"""SCRAM users of a secure cluster, all with `PASSWORD`. `admin` may do everything, the others what they are granted."""
PROGRAMS = {"java": "default-jre-headless", "mvn": "maven", "setpriv": "util-linux"}


class NoKafka(Exception):
    """There is none to be had on this machine; the sentence says why."""


def version() -> str:
    found = ElementTree.parse(HERE / "pom.xml").findtext("{*}dependencies/{*}dependency/{*}version")
    assert found, "pom.xml names a dependency"
    return found


def home() -> Path:
    """Where jars are kept from run to run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "hauberk-tests" / f"kafka-{version()}"


def archive() -> Path:
    """The classes as this Java has them in memory."""
    found = Path(shutil.which("java") or "java").resolve()
    built = found.stat().st_mtime_ns if found.exists() else 0
    return home() / f"classes-{crc32(f'{found} {built}'.encode()):08x}.jsa"


def formatted() -> Path:
    """A directory as `StorageTool format` leaves it, with the users in it."""
    return home() / f"formatted-{crc32(' '.join((*USERS, PASSWORD)).encode()):08x}"


def java(heap: str = "192m", *, shared: bool = True) -> list[str]:
    """The command up to the class. The first compiler only and one collecting thread: these brokers live for seconds."""
    classes = [f"-XX:SharedArchiveFile={archive()}"] if shared and archive().exists() else []
    path = os.pathsep.join(str(jar) for jar in sorted((home() / "jars").glob("*.jar")))
    return [
        "java", f"-Xmx{heap}", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", *classes,
        "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true", "-cp", path,
    ]  # fmt: skip


def fetch() -> Path:
    """The directory with everything, made when it is not there. Several processes may ask at once. Raises NoKafka."""
    for program, package in PROGRAMS.items():
        if shutil.which(program) is None:
            raise NoKafka(f"no `{program}` on PATH (Debian's package {package})")
    home().mkdir(parents=True, exist_ok=True)
    with open(home() / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            if not (home() / "jars").is_dir():
                _jars()
            if not formatted().is_dir():
                _formatted()
            if not archive().exists():
                _classes()
        except subprocess.SubprocessError as error:
            said = getattr(error, "stdout", None) or b""
            raise NoKafka(
                f"Kafka {version()} is not to be had: {error}; {said.decode(errors='replace')[-500:]}"
            ) from error
    return home()


@contextmanager
def _place(name: str) -> Iterator[Path]:
    """A path for something new that becomes `name` of `home()` when it is whole."""
    with tempfile.TemporaryDirectory(dir=home()) as fresh:
        yield Path(fresh, name)
        os.replace(Path(fresh, name), home() / name)


def _run(*words: str) -> None:
    subprocess.run(
        words, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240
    )


def _jars() -> None:
    with _place("jars") as jars:
        _run(
            "mvn", "-q", "-B", "-f", str(HERE / "pom.xml"), "dependency:copy-dependencies",
            f"-DoutputDirectory={jars}", "-DincludeScope=runtime",
        )  # fmt: skip


def _formatted() -> None:
    with _place(formatted().name) as directory, tempfile.TemporaryDirectory() as scratch:
        settings = Path(scratch, "server.properties")
        settings.write_text(
            (HERE / "server.properties").read_text()
            + f"node.id=1\nlog.dirs={directory}\nlisteners=CONTROLLER://127.0.0.1:1,PLAINTEXT://127.0.0.1:2\n"
            + "controller.quorum.voters=1@127.0.0.1:1\n"
            + "listener.security.protocol.map=CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT\n"
        )
        users: list[str] = []
        for user in USERS:
            users += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={PASSWORD}]"]
        identity = "AAAAAAAAAAAAAAAAAAAAAQ"
        _run(
            *java("128m", shared=False),
            "kafka.tools.StorageTool",
            "format",
            "-t",
            identity,
            "-c",
            str(settings),
            *users,
        )


def _classes() -> None:
    """A start and a stop with what a test uses, written down once."""
    from kafka_cluster import Cluster

    with _place(archive().name) as fresh, tempfile.TemporaryDirectory() as scratch:
        cluster = Cluster(Path(scratch), options=(f"-XX:ArchiveClassesAtExit={fresh}",), fetched=True)
        try:
            cluster.start()
            cluster.stop(timeout=120.0)
        finally:
            cluster.close()


if __name__ == "__main__":
    try:
        print(f"kafka: {fetch()}")
    except NoKafka as error:
        # The tests that need a broker say the same and are skipped.
        print(f"kafka: {error}", file=sys.stderr)
