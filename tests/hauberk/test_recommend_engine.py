# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend --engine`: images of a real Docker and a real Podman; what answers as no engine is one sentence."""

from __future__ import annotations

import io
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from hauberk.cli import main

PODS = """
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop, labels: {app: web}}
spec: {containers: [{name: app, image: "team/engine:1"}, {name: side, image: "team/nowhere:1"}]}
"""


def packed(rootfs: Path) -> bytes:
    """The root file system with a package manager in it."""
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.add(rootfs, ".")
        program = tarfile.TarInfo("bin/apt-get")
        program.mode, program.size = 0o755, 4
        archive.addfile(program, io.BytesIO(b"\x7fELF"))
    return held.getvalue()


def asked(capsys: pytest.CaptureFixture[str], state: Path, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["recommend", "-p", "package-managers", "--state", str(state), *map(str, words)])
    return code, *capsys.readouterr()


def check(capsys: pytest.CaptureFixture[str], tmp_path: Path, path: str, name: str) -> None:
    state = tmp_path / "state"
    code, out, _ = asked(capsys, state, "-i", name, "--engine", path)
    assert code == 0
    body = yaml.safe_load(out)
    assert body["spec"]["process"]["matchPaths"] == [{"path": "/bin/apt-get"}], "as the engine has it"
    code, _, err = asked(capsys, state, "-i", "team/nowhere:1", "--engine", f"unix://{path}")
    assert (code, f"expected the image `team/nowhere:1` in the container engine at `{path}`, it has none" in err) == (
        2,
        True,
    )
    (tmp_path / "pods.yaml").write_text(PODS.replace("team/engine:1", name))
    code, out, err = asked(capsys, state, "-f", tmp_path / "pods.yaml", "--engine", path)
    app, side = (one["spec"]["process"]["matchPaths"] for one in yaml.safe_load_all(out))
    assert (code, app, {"execname": "apt-get"} in side) == (0, [{"path": "/bin/apt-get"}], True)
    assert f"1 image is not in the container engine at {path} (`team/nowhere:1`)" in err


def test_images_of_docker(capsys: pytest.CaptureFixture[str], tmp_path: Path, dockerd: Any, rootfs: Path) -> None:
    dockerd.docker("import", "-", "team/engine:1", stdin=packed(rootfs))
    check(capsys, tmp_path, dockerd.socket, "team/engine:1")


def test_images_of_podman(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, podman_cli: Any, rootfs: Path, eventually: Callable[..., Any]
) -> None:
    (tmp_path / "image.tar").write_bytes(packed(rootfs))
    podman_cli.podman("import", str(tmp_path / "image.tar"), "localhost/team/engine:1")
    with podman_cli.service(tmp_path / "engine.sock"):
        check(capsys, tmp_path, str(tmp_path / "engine.sock"), "localhost/team/engine:1")


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[str]:
    """A socket that gives every caller these bytes and hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        server.listen()

        def serve() -> None:
            while True:
                try:
                    caller, _ = server.accept()
                except OSError:
                    return
                with caller:
                    caller.recv(4096)
                    caller.sendall(answer)

        turn = threading.Thread(target=serve)
        turn.start()
        try:
            yield str(path)
        finally:
            server.shutdown(socket.SHUT_RDWR)
            turn.join()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b'HTTP/1.1 500 No\r\nContent-Length: 23\r\n\r\n{"message":"disk full"}', "it answers 500 disk full"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "it answers 403 Forbidden"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nhalf", "got: IncompleteRead"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone", "got a file that is neither"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "to give `web:1`, got: SSH-2.0-OpenSSH"),
        (b"", "to give `web:1`, got: Remote end closed connection"),
    ],
)  # fmt: skip
def test_what_answers_as_no_engine_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, answer: bytes, says: str
) -> None:
    with answering(tmp_path / "e.sock", answer) as path:
        code, out, err = asked(capsys, tmp_path / "state", "-i", "web:1", "--engine", path, "-o", tmp_path / "out")
    assert (code, out, says in err, err.count("\n")) == (2, "", True, 1), err
    assert not (tmp_path / "out").exists()


def test_an_engine_that_is_not_there_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = asked(capsys, tmp_path / "state", "-i", "web:1", "--engine", tmp_path / "none.sock")
    assert (code, "expected the socket of a container engine" in err, err.count("\n")) == (2, True, 1)
    monkeypatch.setattr("hauberk.images.engine.usual", lambda: ["/nowhere/docker.sock"])
    code, _, err = asked(capsys, tmp_path / "state", "-i", "web:1", "--engine")
    assert (code, "none of /nowhere/docker.sock is its socket or its store" in err, err.count("\n")) == (2, True, 1)
    with answering(tmp_path / "e.sock", b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as path:
        monkeypatch.setattr("hauberk.images.engine.usual", lambda: ["/nowhere/docker.sock", path])
        code, _, err = asked(capsys, tmp_path / "state", "-i", "web:1", "--engine")
    assert (code, f"at `{path}`, it has none" in err) == (2, True)
    code, _, err = asked(capsys, tmp_path / "state", "-i", "no such/reference!", "--engine", path)
    assert (code, err.count("\n")) == (2, 1)


def test_the_order_of_the_usual_places(monkeypatch: pytest.MonkeyPatch) -> None:
    from hauberk.images.engine import usual

    monkeypatch.setenv("DOCKER_HOST", "unix:///mine.sock")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert usual()[0] == "/mine.sock"
    assert "/run/user/7/podman/podman.sock" in usual()
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    assert usual()[0] == "/run/docker.sock"


def test_nothing_is_left_of_what_the_engine_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "room"))
    (tmp_path / "room").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    with answering(tmp_path / "e.sock", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnone") as path:
        asked(capsys, tmp_path / "state", "-i", "web:1", "--engine", path)
    assert list((tmp_path / "room").iterdir()) == []
