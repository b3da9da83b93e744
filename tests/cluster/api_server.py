# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes API server with etcd on loopback, built once from Go modules into the user's cache (see `kube/`).

There is no kubelet: a test writes what one would (status of pods). Both processes end with the run, however it ends: the
kernel kills them when the thread that started them is gone (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec

HERE = Path(__file__).resolve().parent
SOURCES = ("main.go", "go.mod", "go.sum")
VERSION = "v1.37.2"
TOKENS = {"admin": ("admin", "system:masters"), "nobody": ("nobody", ""), "watcher": ("watcher", "")}
"""Token: user and group. `watcher` may do what a test grants."""

_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="api-server-starter")


class NoServer(Exception):
    """There is none to be had on this machine; the sentence says why."""


def home() -> Path:
    """Where the program is kept from run to run."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    mark = hashlib.sha256(b"".join((HERE / "kube" / name).read_bytes() for name in SOURCES)).hexdigest()[:12]
    return cache / "hauberk-tests" / f"kube-{VERSION}-{mark}"


def found() -> Path:
    """The program, where somebody has built it before. Raises NoServer."""
    program = home() / "kube"
    if not program.exists():
        raise NoServer(
            "the API server is not built yet, which takes 11 minutes of processor time: `make test-kubernetes` does it"
        )
    return program


def build() -> Path:
    """The program, built when it is not there. Several processes may ask at once. Raises NoServer."""
    program = home() / "kube"
    if program.exists():
        return program
    if shutil.which("go") is None:
        raise NoServer("needs Go 1.26 or newer")
    home().mkdir(parents=True, exist_ok=True)
    with (home() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(program)
    return program


def _build(program: Path) -> None:
    major, minor, _ = VERSION[1:].split(".")
    version = "k8s.io/component-base/version"
    flags = f"-s -w -X {version}.gitVersion={VERSION} -X {version}.gitMajor={major} -X {version}.gitMinor={minor}"
    # Not optimised: a third cheaper to build, and as fast to start.
    done = subprocess.run(
        ["go", "build", "-trimpath", "-gcflags=all=-N -l", "-ldflags", flags, "-o", f"{program}.part", "."],
        cwd=HERE / "kube", env={**os.environ, "CGO_ENABLED": "0", "GOVCS": "*:off", "GOFLAGS": "-mod=mod"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise NoServer(f"the API server could not be built: {done.stderr[-1500:]}")
    os.replace(f"{program}.part", program)


class ApiServer:
    """`start`, `stop`, `kill`; `kubeconfig(token)` is a file. State in `directory`; whoever made it calls `close`."""

    def __init__(self, directory: Path) -> None:
        self.program = found()
        self.directory = directory.resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port, self._etcd_port, self._peer_port = _free_ports(3)
        self._etcd: subprocess.Popen[bytes] | None = None
        self._server: subprocess.Popen[bytes] | None = None
        subprocess.run(
            ["openssl", "genrsa", "-out", self.directory / "sa.key", "2048"], check=True, capture_output=True
        )
        lines = [f'{token},{user},{token},"{group}"' for token, (user, group) in TOKENS.items()]
        (self.directory / "tokens.csv").write_text("\n".join(lines) + "\n")

    @property
    def address(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def etcd(self) -> str:
        """Address of etcd's HTTP gateway."""
        return f"http://127.0.0.1:{self._etcd_port}"

    def kubeconfig(self, token: str = "admin", **more: Any) -> Path:
        """A kubeconfig for the user of `token`, which trusts the server's own certificate. `more`: of its cluster."""
        name = hashlib.sha256(f"{token}{more}".encode()).hexdigest()[:8]
        file = self.directory / f"kubeconfig-{name}"
        cluster = {"server": self.address, "certificate-authority": str(self.directory / "certs/apiserver.crt"), **more}
        file.write_bytes(msgspec.yaml.encode({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": cluster}], "users": [{"name": "tests", "user": {"token": token}}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": "tests"}}],
        }))  # fmt: skip
        return file

    def start(self, timeout: float = 240.0) -> None:
        """Start what is not running, and wait until the server answers that it is ready."""
        if self._etcd is None or self._etcd.poll() is not None:
            here, peer = f"http://127.0.0.1:{self._etcd_port}", f"http://127.0.0.1:{self._peer_port}"
            self._etcd = self._spawn("etcd", [
                "--data-dir", str(self.directory / "etcd"), "--unsafe-no-fsync", "--log-level", "error",
                "--listen-client-urls", here, "--advertise-client-urls", here, "--listen-peer-urls", peer,
                "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
            ])  # fmt: skip
        if self._server is None or self._server.poll() is not None:
            key = str(self.directory / "sa.key")
            self._server = self._spawn("kube-apiserver", [
                f"--etcd-servers=http://127.0.0.1:{self._etcd_port}", "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1",
                f"--secure-port={self.port}", f"--cert-dir={self.directory / 'certs'}", "--service-cluster-ip-range=10.96.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-signing-key-file={key}",
                f"--service-account-key-file={key}", f"--token-auth-file={self.directory / 'tokens.csv'}",
                "--authorization-mode=Node,RBAC", "--allow-privileged=true", "--disable-admission-plugins=ServiceAccount",
                "--endpoint-reconciler-type=none", "--watch-cache=true", "--min-request-timeout=5",
            ])  # fmt: skip
        began = time.monotonic()
        while not self._ready():
            for process, name in ((self._etcd, "etcd"), (self._server, "kube-apiserver")):
                assert process is not None
                assert process.poll() is None, f"{name} ended: {self.log(name)}"
            assert time.monotonic() - began < timeout, f"not ready in {timeout} s: {self.log('kube-apiserver')}"
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            return self.kubectl("get", "--raw", "/readyz", check=False).stdout == "ok"
        except OSError:
            return False

    def kill(self) -> None:
        """The API server ends at once; etcd keeps what was written."""
        if self._server is not None and self._server.poll() is None:
            self._server.kill()
            self._server.wait()

    def pause(self) -> None:
        """The API server keeps its connections and answers nothing, until `resume`."""
        assert self._server is not None
        self._server.send_signal(signal.SIGSTOP)
        # The kernel says so once the last thread has stopped; until then some answer.
        os.waitid(os.P_PID, self._server.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """Let it go on."""
        assert self._server is not None
        self._server.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        if self._etcd is not None and self._etcd.poll() is None:
            self._etcd.send_signal(signal.SIGKILL)
            self._etcd.wait()

    def kubectl(
        self, *words: str, given: str = "", token: str = "admin", check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """kubectl with the rights of `token`."""
        done = subprocess.run(
            ["kubectl", "--kubeconfig", str(self.kubeconfig(token)), *words],
            input=given, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr
        return done

    def apply(self, *objects: dict[str, Any]) -> None:
        """Objects, made or changed."""
        self.kubectl(
            "apply",
            "--server-side",
            "--force-conflicts",
            "-f",
            "-",
            given="\n".join(msgspec.json.encode(one).decode() for one in objects),
        )

    def status(self, kind: str, namespace: str, name: str, status: dict[str, Any]) -> None:
        """Write the status of an object, as a kubelet does."""
        patch = msgspec.json.encode({"status": status}).decode()
        self.kubectl("patch", kind, name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)

    def get(self, path: str, token: str = "admin") -> Any:
        """An object as JSON; {} when it is not there. A fifth of what kubectl costs, for tests that poll."""
        trusted = ssl.create_default_context(cafile=str(self.directory / "certs/apiserver.crt"))
        asked = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(asked, timeout=30, context=trusted) as answer:
                return msgspec.json.decode(answer.read())
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return {}

    def log(self, name: str) -> str:
        """The end of what a process wrote."""
        return (self.directory / f"{name}.log").read_bytes()[-2000:].decode(errors="replace")

    def _spawn(self, name: str, words: list[str]) -> subprocess.Popen[bytes]:
        def spawn() -> subprocess.Popen[bytes]:
            with (self.directory / f"{name}.log").open("ab") as log:
                return subprocess.Popen(
                    ["setpriv", "--pdeathsig", "KILL", str(self.program), name, *words],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip

        return _starter.submit(spawn).result()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


if __name__ == "__main__":
    try:
        print(f"kube: {build()}")
    except NoServer as error:
        print(f"kube: {error}", file=sys.stderr)
        sys.exit(1)
