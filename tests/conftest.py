# SPDX-License-Identifier: Apache-2.0
"""What holds for every room's tests: no verdict depends on the speed of the machine, on luck, or on how the run before ended.

Hypothesis judges examples, never how long a busy machine took over one, and it makes the same ones on every run;
`--hypothesis-profile=explore` makes others. A bpffs that a test mounts goes also when the run is killed: the programs
pinned in it would slow every call of the machine.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import api_server as kube
import container_runtimes as runtimes
import kafka_cluster
import kafka_jars
import pytest
import waiting
from hypothesis import HealthCheck, settings


def pytest_configure(config: pytest.Config) -> None:
    """Programs that tests start take signals as from a terminal, also when this run is under nohup(1) or in a background job, and
    keep their byte code, as where they are installed: to compile 300 modules takes 2 s of each start, and megabytes.
    Registers `flaky.py` and `shares.py` by their paths: `tests/` is no package, and on sys.path its directories would stand for
    ours."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for plugin in ("flaky", "shares"):
        spec = spec_from_file_location(plugin, Path(__file__).with_name(f"{plugin}.py"))
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        module.register(config)


# By default an example over 200 ms fails its test, and so do drawings over a second: on a loaded machine both say nothing of us.
PATIENT = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("patient", PATIENT, derandomize=True)
settings.register_profile("explore", PATIENT, max_examples=1000)
settings.load_profile("patient")

# Ends when the run's end of its pipe is closed, however that came about. Only what is mounted below the directory goes.
_GUARD = """
cat >/dev/null
sed -n "s|^[^ ]* \\($1/[^ ]*\\) bpf .*|\\1|p" /proc/self/mounts | while read -r where; do umount -l "$where"; done
rm -rf --one-file-system "$1"
"""


@pytest.fixture(scope="session")
def eventually() -> Callable[..., Any]:
    """`waiting.eventually`: polls until a condition holds, a minute at most."""
    return waiting.eventually


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """`waiting.until`: the same for tests that run a loop."""
    return waiting.until


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One running API server of Kubernetes for the whole run (`api_server.ApiServer`), with the definitions of policies. Its
    `kill` and `start` are for one test at a time: leave it running."""
    try:
        server = kube.ApiServer(tmp_path_factory.mktemp("kube"))
    except kube.NoServer as error:
        pytest.skip(f"no API server: {error}")
    try:
        server.start()
        crds = Path(__file__).parents[1] / "deploy/kubernetes/crds"
        server.kubectl("apply", "--server-side", "-f", str(crds))
        server.kubectl("wait", "--for=condition=Established", "-f", str(crds), "--timeout=60s")
        yield server
    finally:
        server.close()


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system: busybox and its names."""
    return runtimes.busybox_root(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture(scope="session")
def image(rootfs: Path) -> bytes:
    """The root file system as a tar."""
    return subprocess.run(["tar", "-C", str(rootfs), "-c", "."], check=True, capture_output=True).stdout


@pytest.fixture(scope="session")
def dockerd(tmp_path_factory: pytest.TempPathFactory, rootfs: Path, image: bytes) -> Iterator[Any]:
    """A private Docker engine (`container_runtimes.Dockerd`)."""
    with runtimes.running_dockerd(tmp_path_factory.mktemp("dockerd"), rootfs, image) as engine:
        yield engine


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory, dockerd: Any) -> Iterator[Any]:
    """A private containerd with CRI (`container_runtimes.Containerd`)."""
    with runtimes.running_containerd(tmp_path_factory.mktemp("containerd"), dockerd) as runtime:
        yield runtime


@pytest.fixture
def oci(tmp_path: Path, rootfs: Path) -> Iterator[Any]:
    """runc and crun by hand (`container_runtimes.Oci`)."""
    with runtimes.by_hand(tmp_path, rootfs) as runtime:
        yield runtime


@pytest.fixture
def podman_cli(rootfs: Path) -> Iterator[Any]:
    """podman with a storage of its own (`container_runtimes.PodmanCli`)."""
    with runtimes.private_podman(rootfs) as cli:
        yield cli


@pytest.fixture(scope="session")
def kafka_clusters_of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    try:
        kafka_jars.fetch()
    except kafka_jars.NoKafka as error:
        pytest.skip(f"no Kafka: {error}")

    def make(**options: Any) -> Any:
        return kafka_cluster.Cluster(tmp_path_factory.mktemp("kafka") / "cluster", **options)

    return make


@pytest.fixture(scope="session")
def kafka(kafka_clusters_of_the_run: Callable[..., Any]) -> Iterator[Any]:
    """One running broker for the whole run (`kafka_cluster.Cluster`): read `kafka.bootstrap`, make topics under `kafka_prefix`, and
    leave it as it is."""
    cluster = kafka_clusters_of_the_run()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def kafka_secure(kafka_clusters_of_the_run: Callable[..., Any]) -> Iterator[Any]:
    """One broker with accounts and grants for the whole run: as `kafka`, with the listeners of `kafka_cluster.LISTENERS`."""
    cluster = kafka_clusters_of_the_run(secure=True)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def kafka_clusters(kafka_clusters_of_the_run: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """kafka_clusters(brokers=1, secure=False, ...): a private cluster, not started yet; see `kafka_cluster.Cluster`."""
    made = []

    def make(**options: Any) -> Any:
        made.append(kafka_clusters_of_the_run(**options))
        return made[-1]

    yield make
    for cluster in made:
        cluster.close()


@pytest.fixture
def kafka_prefix() -> str:
    """A prefix of topics and groups that no other test has, on the broker that all share."""
    return f"t{uuid.uuid4().hex[:12]}."


@pytest.fixture(scope="session")
def bpffs_home() -> Iterator[Callable[[str], str]]:
    """bpffs_home(name): an empty directory of this run to mount a bpffs at. Whatever is mounted there is unmounted in the end."""
    home = os.path.realpath(tempfile.mkdtemp(prefix="hauberk-bpffs-"))
    guard = subprocess.Popen(
        ["/bin/sh", "-c", _GUARD, "sh", home], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    yield lambda name: tempfile.mkdtemp(prefix=f"{name}-", dir=home)
    guard.communicate(timeout=60)


@pytest.fixture(scope="session")
def build() -> Callable[[str], str]:
    """build(name): path of `tests/attacks/NAME.c`, compiled, static, with threads. Kept in the user's cache by what it is made of: a
    guest finds there what its host has compiled."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "hauberk-tests", "attacks")

    def made(name: str) -> str:
        source, words = Path(__file__).parent / "attacks" / f"{name}.c", ["gcc", "-O1", "-static", "-pthread", "-w"]
        mark = hashlib.blake2b(repr(words).encode() + source.read_bytes(), digest_size=8).hexdigest()
        # What alerts name: the file is called as its source.
        out = kept / mark / name
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            part = out.with_name(f"{out.name}-{os.getpid()}")
            subprocess.run([*words, source, "-o", part], check=True)
            part.rename(out)
        return str(out)

    return made
