# SPDX-License-Identifier: Apache-2.0
"""Real runtimes for tests: a dockerd, a containerd with CRI, runc, crun and podman, all private, all gone after.

Each is under one temporary directory and ended by pid. Container images are a static busybox and nothing else. The fixtures are in
`tests/conftest.py`.
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
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import pytest
from waiting import eventually

from schemas import protobuf
from sensors.containers import unix_grpc

APPLETS = ("sh", "sleep", "cat", "ls", "nc", "id", "true", "mkdir")


def need(*programs: str) -> None:
    """Skips the test where one of them is not there."""
    if os.geteuid() != 0:
        pytest.skip("needs root: starts containers")
    for program in programs:
        if not shutil.which(program):
            pytest.skip(f"needs `{program}`: apt-get install docker.io containerd runc crun podman busybox-static")


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, and SIGKILL after a minute."""
    process.terminate()
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def unmount(under: Path) -> None:
    """All mounts below a directory."""
    with open("/proc/self/mounts", encoding="utf-8") as file:
        mounts = [line.split()[1] for line in file]
    for mount in sorted((one for one in mounts if one.startswith(str(under))), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False, capture_output=True)


def remove_cgroups(*names: str) -> None:
    """Empty cgroups that the runtimes left, in every hierarchy; the last of their processes may still be going."""
    tops = [hierarchy / name for hierarchy in Path("/sys/fs/cgroup").iterdir() for name in names]
    deadline = time.monotonic() + 20
    while any(top.exists() for top in tops) and time.monotonic() < deadline:
        for directory in (one for top in tops for one, _, _ in sorted(os.walk(top), reverse=True)):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        time.sleep(0.02)


def busybox_root(root: Path) -> Path:
    """A root file system: busybox and its names."""
    need("busybox")
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
            end(self._process)
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


@contextlib.contextmanager
def running_dockerd(home: Path, rootfs: Path, image: bytes) -> Iterator[Dockerd]:
    """One with the images `busy:1` and `localhost/pause:1`. `image`: of both, a tar."""
    need("dockerd", "docker")
    engine = Dockerd(home, rootfs)
    with contextlib.ExitStack() as stack:
        stack.callback(remove_cgroups, "docker")
        stack.callback(unmount, engine.home)
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

    def container(
        self, sandbox: str, pod_config: bytes, name: str, words: Sequence[str] = ("/bin/sleep", "600"), mount: str = ""
    ) -> str:
        """Start a container; its id. `mount`: a directory of this machine that it has under the same path."""
        p = protobuf
        config = p.nested(1, p.string(1, name)) + p.nested(2, p.string(1, "localhost/pause:1"))
        config += p.string(3, words[0]) + b"".join(p.string(4, word) for word in words[1:])
        config += p.nested(7, p.string(1, mount) + p.string(2, mount)) if mount else b""
        config += p.nested(9, p.string(1, "io.kubernetes.container.name") + p.string(2, name))
        made = self.call("CreateContainer", p.string(1, sandbox) + p.nested(2, config) + p.nested(3, pod_config))
        id_ = p.text(made, 1)
        self.call("StartContainer", p.string(1, id_))
        return id_

    def end(self, id_: str) -> None:
        """End a container and remove it, as of an init container that is through."""
        self.call("StopContainer", protobuf.string(1, id_))
        self.call("RemoveContainer", protobuf.string(1, id_))

    def remove(self, sandbox: str) -> None:
        self.call("StopPodSandbox", protobuf.string(1, sandbox))
        self.call("RemovePodSandbox", protobuf.string(1, sandbox))

    def execute(self, id_: str, *words: str) -> tuple[int, str, str]:
        """Run a command in a container, as `kubectl exec`; its exit code, output and errors."""
        request = protobuf.string(1, id_) + b"".join(protobuf.string(2, word) for word in words)
        done = self.call("ExecSync", request + protobuf.integer(3, 90))
        return protobuf.number(done, 3), protobuf.text(done, 1), protobuf.text(done, 2)


@contextlib.contextmanager
def running_containerd(home: Path, dockerd: Dockerd, more: str = "") -> Iterator[Containerd]:
    """One with the image `localhost/pause:1`. `more`: lines of its configuration, after those of the CRI plugin itself."""
    need("containerd", "ctr")
    runtime = Containerd(home)
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
{more}
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
            end(process)
            unmount(home)
            remove_cgroups("kubepods")


class Oci:
    """runc and crun by hand: containers of a bundle. State lies under `roots`."""

    def __init__(self, home: Path, rootfs: Path) -> None:
        self.home = home
        self._rootfs = rootfs
        self._made: list[tuple[str, str]] = []

    def root(self, runtime: str) -> str:
        return str(self.home / runtime)

    def run(self, runtime: str, name: str, cgroup: str = "", annotations: dict[str, str] | None = None) -> None:
        """Start a container that sleeps."""
        bundle = self._bundle(name, ("/bin/sleep", "600"), cgroup, annotations or {}, {}, "")
        self._made.append((runtime, name))
        self._do(runtime, "run", "-d", "--no-pivot", "--bundle", str(bundle), name)

    def output(
        self,
        name: str,
        words: Sequence[str],
        *,
        hooks: dict[str, Any] | None = None,
        annotations: dict[str, str] | None = None,
        mount: str = "",
        runtime: str = "runc",
    ) -> subprocess.CompletedProcess[str]:
        """Run a container to its end. `mount`: a directory of this machine that it has as `/act`."""
        bundle = self._bundle(name, words, "", annotations or {}, hooks or {}, mount)
        done = subprocess.run(
            [runtime, "--root", self.root(runtime), "run", "--no-pivot", "--bundle", str(bundle), name], check=False,
            capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        shutil.rmtree(bundle)
        return done

    def _bundle(
        self,
        name: str,
        words: Sequence[str],
        cgroup: str,
        annotations: dict[str, str],
        hooks: dict[str, Any],
        mount: str,
    ) -> Path:
        bundle = self.home / f"bundle-{name}"
        bundle.mkdir()
        subprocess.run(["runc", "spec", "--bundle", bundle], check=True)
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=list(words))
        config["process"].pop("rlimits", None)  # raising limits is refused where CAP_SYS_RESOURCE is missing
        config["root"] = {"path": str(self._rootfs), "readonly": True}
        config["linux"].pop("resources", None)
        config["annotations"], config["hooks"] = annotations, hooks
        if mount:
            config["mounts"].append({"destination": "/act", "type": "bind", "source": mount, "options": ["bind", "ro"]})
        if cgroup:
            config["linux"]["cgroupsPath"] = cgroup
        (bundle / "config.json").write_text(json.dumps(config))
        return bundle

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


@contextlib.contextmanager
def by_hand(home: Path, rootfs: Path) -> Iterator[Oci]:
    """runc and crun, until the end of the block."""
    need("runc", "crun", "unshare")
    runtime = Oci(home, rootfs)
    try:
        yield runtime
    finally:
        runtime.close()


class PodmanCli:
    """podman with a storage of its own."""

    def __init__(self, home: Path, rootfs: Path, driver: str) -> None:
        self._rootfs, self.storage = rootfs, home / "root"
        self._words = [
            "podman", "--root", str(self.storage), "--runroot", str(home / "run"), "--tmpdir", str(home / "tmp"),
            "--cgroup-manager", "cgroupfs", "--events-backend", "file", "--storage-driver", driver, "--runtime", "runc",
        ]  # fmt: skip

    def podman(self, *words: str) -> str:
        done = subprocess.run([*self._words, *words], check=False, capture_output=True, timeout=100)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode().strip()

    def run(self, name: str, *options: str, words: Sequence[str] = ("/bin/sleep", "600"), hooks: str = "") -> str:
        """Start a container, detached and asleep unless told otherwise; its id, or its output. `hooks`: a directory of OCI hooks."""
        limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--network", "none")
        given = ("--hooks-dir", hooks) if hooks else ()
        options = options or ("-d",)
        return self.podman(*given, "run", "--name", name, *options, *limits, "--rootfs", str(self._rootfs), *words)

    @contextlib.contextmanager
    def service(self, path: Path) -> Iterator[None]:
        """Its API on a socket, until the end of the block."""
        words = [*self._words, "system", "service", "--time=0", f"unix://{path}"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while not path.exists() and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            yield
        finally:
            end(process)


@contextlib.contextmanager
def private_podman(rootfs: Path, driver: str = "vfs") -> Iterator[PodmanCli]:
    """One whose containers and storage go at the end of the block."""
    need("podman", "runc")
    home = Path(tempfile.mkdtemp(prefix="hb"))  # podman refuses a run root longer than 50 characters
    cli = PodmanCli(home, rootfs, driver)
    with contextlib.ExitStack() as stack:
        stack.callback(remove_cgroups, "libpod_parent")
        stack.callback(_remove_tree, home)
        stack.callback(unmount, home)
        stack.callback(cli.podman, "rm", "-af", "-t", "0")
        yield cli


def _remove_tree(home: Path) -> None:
    deadline = time.monotonic() + 20
    while home.exists() and time.monotonic() < deadline:  # podman's cleanup process still writes there
        shutil.rmtree(home, ignore_errors=True)
        time.sleep(0.02)
