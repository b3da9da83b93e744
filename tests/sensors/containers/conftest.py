# SPDX-License-Identifier: Apache-2.0
"""Real runtimes for the inventory's tests: a dockerd, a containerd with CRI, runc, crun and podman, all private, all gone after.

Each fixture starts only what its test asks for, under one temporary directory, and ends it by pid. Container images are a
static busybox and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
from waiting import eventually

from schemas import protobuf
from sensors.containers import cgroups, unix_grpc

APPLETS = ("sh", "sleep", "cat", "ls", "nc", "id", "true", "mkdir")


def _need(*programs: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: starts containers")
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs `{program}`: apt-get install docker.io containerd runc crun podman busybox-static")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _unmount(under: Path) -> None:
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounts = [line.split()[1] for line in file]
    for mount in sorted((one for one in mounts if one.startswith(str(under))), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)


def _remove_cgroups(*names: str) -> None:
    """Empty cgroups that the runtimes left, in every hierarchy; the last of their processes may still be going."""
    tops = [hierarchy / name for hierarchy in Path("/sys/fs/cgroup").iterdir() for name in names]
    deadline = time.monotonic() + 20
    while any(top.exists() for top in tops) and time.monotonic() < deadline:
        for directory in (one for top in tops for one, _, _ in sorted(os.walk(top), reverse=True)):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        time.sleep(0.02)


@pytest.fixture(scope="session")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root file system: busybox and its names."""
    _need("busybox")
    root = tmp_path_factory.mktemp("rootfs")
    (root / "bin").mkdir()
    for name in ("etc", "proc", "dev", "sys", "tmp"):
        (root / name).mkdir()
    shutil.copy(str(shutil.which("busybox")), root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    return root


class Dockerd:
    """A private Docker engine. `docker(...)` runs the client and gives its output."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        self.home, self.socket = home, str(home / "docker.sock")
        self._rootfs = rootfs
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        home = self.home
        with (home / "log").open("ab") as log:
            self._process = self._spawn(log)
        eventually(self._up, what="dockerd")

    def _spawn(self, log: IO[bytes]) -> subprocess.Popen[bytes]:
        home = self.home
        return subprocess.Popen(
            [
                "dockerd", "--data-root", home / "data", "--exec-root", home / "exec", "--pidfile", home / "pid",
                "-H", f"unix://{self.socket}", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
                "--ip-masq=false", "--bridge=none", "--storage-driver", "overlay2", "--live-restore",
            ],
            stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
        )  # fmt: skip

    def _up(self) -> bool:
        if not os.path.exists(self.socket):
            return False
        done = subprocess.run(["docker", "-H", f"unix://{self.socket}", "version"], check=False, capture_output=True)
        return done.returncode == 0

    def stop(self) -> None:
        if self._process is not None:
            _end(self._process)
            self._process = None

    def docker(self, *words: str, stdin: bytes | None = None) -> str:
        done = subprocess.run(
            ["docker", "-H", f"unix://{self.socket}", *words],
            check=False,
            input=stdin,
            capture_output=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def run(self, name: str, *options: str, command: tuple[str, ...] = ("/bin/sleep", "600")) -> str:
        """Start a container; its id."""
        return self.docker("run", "-d", "--name", name, "--network", "none", *options, "busy:1", *command)

    def remove(self, *names: str) -> None:
        self.docker("rm", "-f", *names)

    def remove_all(self) -> None:
        if ids := self.docker("ps", "-aq").split():
            self.remove(*ids)


@pytest.fixture(scope="session")
def image(rootfs: Path) -> bytes:
    """The root file system as a tar."""
    return subprocess.run(["tar", "-C", str(rootfs), "-c", "."], check=True, capture_output=True).stdout


@pytest.fixture(scope="session")
def dockerd(tmp_path_factory: pytest.TempPathFactory, rootfs: Path, image: bytes) -> Iterator[Dockerd]:
    _need("dockerd", "docker")
    engine = Dockerd(tmp_path_factory.mktemp("dockerd"), rootfs)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_cgroups, "docker")
        stack.callback(_unmount, engine.home)
        stack.callback(engine.stop)
        engine.start()
        stack.callback(engine.remove_all)
        engine.docker("import", "-", "busy:1", stdin=image)
        engine.docker("import", "-c", 'CMD ["/bin/sleep","100000"]', "-", "localhost/pause:1", stdin=image)
        yield engine


class Containerd:
    """A private containerd with CRI, and the few calls a kubelet would make."""

    def __init__(self, home: Path) -> None:
        self.home, self.socket = home, str(home / "c.sock")

    def call(self, name: str, request: bytes) -> protobuf.Message:
        method = f"/runtime.v1.RuntimeService/{name}"
        return protobuf.parse(asyncio.run(unix_grpc.call(self.socket, method, request, 100.0)))

    def pod(self, name: str, namespace: str, uid: str, labels: dict[str, str]) -> tuple[str, bytes]:
        """Start a pod sandbox on the host's network; its id and config."""
        p = protobuf
        all_labels = {
            **labels, "io.kubernetes.pod.name": name, "io.kubernetes.pod.namespace": namespace,
            "io.kubernetes.pod.uid": uid,
        }  # fmt: skip
        network = p.nested(2, p.nested(1, p.integer(1, 2)))
        config = p.nested(1, p.string(1, name) + p.string(2, uid) + p.string(3, namespace))
        config += b"".join(p.nested(6, p.string(1, k) + p.string(2, v)) for k, v in all_labels.items())
        config += p.nested(7, p.string(1, "note") + p.string(2, "from a test"))
        config += p.nested(8, p.string(1, f"/kubepods/burstable/pod{uid}") + network)
        return p.text(self.call("RunPodSandbox", p.nested(1, config)), 1), config

    def container(self, sandbox: str, pod_config: bytes, name: str) -> str:
        p = protobuf
        config = p.nested(1, p.string(1, name)) + p.nested(2, p.string(1, "localhost/pause:1"))
        config += p.string(3, "/bin/sleep") + p.string(4, "600")
        config += p.nested(9, p.string(1, "io.kubernetes.container.name") + p.string(2, name))
        made = self.call("CreateContainer", p.string(1, sandbox) + p.nested(2, config) + p.nested(3, pod_config))
        id_ = p.text(made, 1)
        self.call("StartContainer", p.string(1, id_))
        return id_

    def remove(self, sandbox: str) -> None:
        self.call("StopPodSandbox", protobuf.string(1, sandbox))
        self.call("RemovePodSandbox", protobuf.string(1, sandbox))


@pytest.fixture(scope="session")
def containerd(tmp_path_factory: pytest.TempPathFactory, dockerd: Dockerd) -> Iterator[Containerd]:
    _need("containerd", "ctr")
    runtime = Containerd(tmp_path_factory.mktemp("containerd"))
    home = runtime.home
    (home / "config.toml").write_text(
        f"""version = 2
root = "{home}/root"
state = "{home}/state"
[grpc]
  address = "{runtime.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "localhost/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{home}/cni-bin"
    conf_dir = "{home}/cni"
"""
    )
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            ["containerd", "-c", home / "config.toml"], stdout=subprocess.DEVNULL, stderr=log, start_new_session=True
        )
    try:
        ctr = ["ctr", "-a", runtime.socket, "-n", "k8s.io"]
        eventually(
            lambda: (
                os.path.exists(runtime.socket)
                and subprocess.run([*ctr, "version"], check=False, capture_output=True).returncode == 0
            ),
            what="containerd",
        )
        saved = subprocess.run(
            ["docker", "-H", f"unix://{dockerd.socket}", "save", "localhost/pause:1"], check=True, capture_output=True
        )
        subprocess.run([*ctr, "images", "import", "-"], check=True, input=saved.stdout, capture_output=True)
        yield runtime
    finally:
        try:
            for row in runtime.call("ListPodSandbox", b"").get(1, ()):
                runtime.remove(protobuf.text(protobuf.parse(row), 1))
        finally:
            _end(process)
            _unmount(home)
            _remove_cgroups("kubepods")


class Oci:
    """runc and crun by hand: containers of a bundle. State lies under `roots`."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        self.home = home
        self._rootfs = rootfs
        self._made: list[tuple[str, str]] = []

    def root(self, runtime: str) -> str:
        return str(self.home / runtime)

    def run(self, runtime: str, name: str, cgroup: str = "", annotations: dict[str, str] | None = None) -> None:
        bundle = self.home / f"bundle-{name}"
        bundle.mkdir()
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=["/bin/sleep", "600"])
        config["process"].pop("rlimits", None)  # raising limits is refused where CAP_SYS_RESOURCE is missing
        config["root"] = {"path": str(self._rootfs), "readonly": True}
        config["linux"].pop("resources", None)
        config["annotations"] = annotations or {}
        if cgroup:
            config["linux"]["cgroupsPath"] = cgroup
        (bundle / "config.json").write_text(json.dumps(config))
        self._made.append((runtime, name))
        self._do(runtime, "run", "-d", "--no-pivot", "--bundle", str(bundle), name)

    def _do(self, runtime: str, *words: str) -> None:
        command = [runtime, "--root", self.root(runtime), *words]
        if runtime == "crun":  # it refuses a hybrid hierarchy: give it a pure one in a mount namespace of its own
            script = (
                "mount --make-rprivate / && umount -R -l /sys/fs/cgroup && "
                'mount -t cgroup2 none /sys/fs/cgroup && exec "$@"'
            )
            command = ["unshare", "-m", "sh", "-c", script, "sh", *command]
        # A file, not a pipe: the container inherits it and would keep a pipe open.
        with (self.home / "err").open("wb") as errors:
            done = subprocess.run(
                command, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, timeout=100
            )
        assert done.returncode == 0, (self.home / "err").read_text()

    def remove(self, name: str) -> None:
        runtime = next(runtime for runtime, made in self._made if made == name)
        self._made.remove((runtime, name))
        self._do(runtime, "delete", "-f", name)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for _, name in self._made:
                stack.callback(self.remove, name)


@pytest.fixture
def oci(tmp_path: Path, rootfs: Path) -> Iterator[Oci]:
    _need("runc", "crun", "unshare")
    runtime = Oci(tmp_path, rootfs)
    try:
        yield runtime
    finally:
        runtime.close()


class PodmanCli:
    """podman with a storage of its own."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        self._rootfs = rootfs
        self._words = [
            "podman", "--root", str(home / "root"), "--runroot", str(home / "run"), "--tmpdir", str(home / "tmp"),
            "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", "vfs", "--runtime", "runc",
        ]  # fmt: skip

    def podman(self, *words: str) -> str:
        done = subprocess.run([*self._words, *words], check=False, capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def run(self, name: str) -> str:
        limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
        return self.podman(
            "run",
            "-d",
            "--name",
            name,
            "--network",
            "none",
            *limits,
            "--rootfs",
            str(self._rootfs),
            "/bin/sleep",
            "600",
        )


@pytest.fixture
def podman_cli(rootfs: Path) -> Iterator[PodmanCli]:
    _need("podman", "runc")
    home = Path(tempfile.mkdtemp(prefix="hb"))  # podman refuses a run root longer than 50 characters
    cli = PodmanCli(home, rootfs)
    with contextlib.ExitStack() as stack:
        stack.callback(_remove_cgroups, "libpod_parent")
        stack.callback(_remove_tree, home)
        stack.callback(_unmount, home)
        stack.callback(cli.podman, "rm", "-af", "-t", "0")
        yield cli


def _remove_tree(home: Path) -> None:
    deadline = time.monotonic() + 20
    while home.exists() and time.monotonic() < deadline:  # podman's cleanup process still writes there
        shutil.rmtree(home, ignore_errors=True)
        time.sleep(0.02)


def remove_cgroup(path: str) -> None:
    """rmdir a cgroup of the test's own; tasks that were just reaped may hold it for a moment."""
    full = Path(cgroups.mount_point() + path)
    deadline = time.monotonic() + 30
    while full.exists():
        try:
            full.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.005)


@pytest.fixture(name="remove_cgroup")
def _remove_cgroup() -> Callable[[str], None]:
    return remove_cgroup


def kernel_cgroup_id(path: str) -> int:
    """What the kernel calls the cgroup: the handle of its directory (the same number BPF programs see)."""
    import ctypes

    class Handle(ctypes.Structure):
        _fields_ = (("size", ctypes.c_uint), ("kind", ctypes.c_int), ("id", ctypes.c_uint64))

    handle, mount = Handle(8, 0, 0), ctypes.c_int()
    libc = ctypes.CDLL(None, use_errno=True)
    full = (cgroups.mount_point() + path).encode()
    at_fdcwd = -100
    if libc.name_to_handle_at(at_fdcwd, full, ctypes.byref(handle), ctypes.byref(mount), 0):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return int(handle.id)


@pytest.fixture(name="kernel_cgroup_id")
def _kernel_cgroup_id() -> Callable[[str], int]:
    return kernel_cgroup_id
