# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend -i NAME` of a registry: a server on loopback that speaks the distribution protocol and docker's token protocols over
real HTTP; credentials of docker's configuration and of helpers, which are real programs."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from image_files import BASE, TOP, layout
from image_registry import Registry
from recommending import run

from hauberk.images.references import reference, spellings


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry(layout(gzip.compress(BASE), TOP))
    yield made
    made.close()


def test_an_image_of_a_registry_with_docker_credentials(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry
) -> None:
    config = tmp_path / "config.json"
    host = f"127.0.0.1:{registry.port}"
    config.write_text(json.dumps({"auths": {host: {"auth": base64.b64encode(b"user:secret").decode()}}}))
    text = run(capsys, tmp_path / "state", "-i", f"{host}/team/web:1", "-c", config, "--platform", "amd64")
    assert "web-package-managers" in text
    elsewhere = [given for path, given in registry.asked if path.startswith("/elsewhere")]
    assert len(elsewhere) >= 3
    assert set(elsewhere) == {""}, "credentials stay with the registry"
    config.write_text("{}")
    assert "it refuses (401); log in with docker" in run(
        capsys, tmp_path / "state", "-i", f"{host}/team/web:1", "-c", config, code=2
    )
    config.write_text(json.dumps({"auths": {host: {"username": "user", "password": "secret"}}}))
    assert "has no such image" in run(capsys, tmp_path / "state", "-i", f"{host}/team/none", "-c", config, code=2)
    assert "it has amd64" in run(
        capsys, tmp_path / "state", "-i", f"{host}/team/web:1", "-c", config, "--platform", "riscv64", code=2
    )


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz",
        b"",
        b"HTTP/1.1 500 \x1b[31mred\x07\r\nContent-Length: 0\r\n\r\n",
        b'HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer realm="http://[x"\r\nContent-Length: 0\r\n\r\n',
        b"HTTP/1.1 302 Found\r\nLocation: http://[x\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/shadow\r\nContent-Length: 0\r\n\r\n",
    ],
    ids=["ssh", "half", "nothing", "drives the terminal", "no address of tokens", "leads nowhere", "leads to a file"],
)
def test_what_is_no_registry_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path, answer: bytes) -> None:
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = server.accept()
        with peer:
            peer.recv(65536)
            peer.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        said = run(capsys, tmp_path / "state", "-i", f"127.0.0.1:{server.getsockname()[1]}/x", code=2)
    finally:
        thread.join()
        server.close()
    assert len(said.strip().splitlines()) == 1
    assert said.strip().isprintable()


@pytest.mark.parametrize("given", ["dXNlcjpzZWNyZXQ=\n", "c2VjcmV0\x01c2VjcmV0", "user:secret"])
def test_credentials_are_never_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry, given: str
) -> None:
    """What cannot go into a header is told by the library with all of it."""
    host = f"127.0.0.1:{registry.port}"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {host: {"auth": given}}}))
    code = 0 if given.endswith("\n") else 2
    said = run(capsys, tmp_path / "state", "-i", f"{host}/team/web:1", "-c", config, "--platform", "amd64", code=code)
    assert given.strip() not in said
    assert "user:secret" not in said
    assert code == 0 or f"expected `auth` of {host}" in said


def test_references() -> None:
    assert reference("nginx").base == "https://registry-1.docker.io/v2/library/nginx"
    assert reference("team/app:2").name == "team/app"
    assert reference("localhost:5000/a:1").base == "http://localhost:5000/v2/a"
    assert reference("ghcr.io/a/b@sha256:" + "0" * 64).digest.endswith("0")


BASIC = {"auth": base64.b64encode(b"user:secret").decode()}


@pytest.mark.parametrize(
    ("auths", "code"),
    [
        ({"HOST/team/web": BASIC, "HOST": {"username": "other", "password": "wrong"}}, 0),  # the nearest, as podman writes it
        ({"HOST/team": BASIC}, 0),
        ({"HOST/other": BASIC}, 2),
        ({"https://HOST/v1/": BASIC}, 0),
        ({"HOST": {"identitytoken": "1dentity"}}, 0),
        ({"HOST": {"auth": base64.b64encode(b"user:").decode(), "identitytoken": "1dentity"}}, 0),
        ({"HOST": {"identitytoken": "expired"}}, 2),
        ({"HOST": {"registrytoken": "t0ken"}}, 0),
        ({"HOST": {"registrytoken": "no\r\nHeader: x"}}, 2),
        ({"HOST": {"auth": 5, "username": [], "identitytoken": {}}}, 2),
        ([], 2),
    ],
)  # fmt: skip
def test_credentials_as_they_are_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry, auths: Any, code: int
) -> None:
    host = f"127.0.0.1:{registry.port}"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": auths}).replace("HOST", host))
    said = run(capsys, tmp_path / "state", "-i", f"{host}/team/web:1", "-c", config, "--platform", "amd64", code=code)
    assert ("web-package-managers" in said) == (code == 0)
    assert not any(secret in said for secret in ("expired", "Header", "1dentity", "t0ken"))


def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """`docker-credential-mine` on the PATH."""
    program = tmp_path / "bin/docker-credential-mine"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ('read host; [ "$1 $host" = "get HOST" ] && echo \'{"ServerURL":"x","Username":"user","Secret":"secret"}\'', ""),
        ('read host; echo \'{"Username":"<token>","Secret":"1dentity"}\'', ""),
        ('echo "credentials not found in native keychain"; exit 1', "which has none for it"),
        ('echo s3cret; echo s3cret >&2; exit 3', "which ended with code 3"),
        ('echo "no json s3cret"', "gives no credentials, but something else"),
        ('echo \'{"Username":5,"Secret":"s3cret"}\'', "gives no credentials, but something else"),
        ('echo \'{"Username":"user","Secret":"s3cret"}\'', "it refuses (401)"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("store", [False, True])
def test_a_helper_is_asked_for_this_registry_alone(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch, script: str, says: str, store: bool,
) -> None:  # fmt: skip
    host = f"127.0.0.1:{registry.port}"
    helper(tmp_path, monkeypatch, script.replace("HOST", host))
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps({"auths": {host: {}}} | ({"credsStore": "mine"} if store else {"credHelpers": {host: "mine"}}))
    )
    words = ("-i", f"{host}/team/web:1", "-c", config, "--platform", "amd64")
    said = run(capsys, tmp_path / "state", *words, code=2 if says else 0)
    assert says in said
    assert "s3cret" not in said


@pytest.mark.parametrize(
    ("name", "says"),
    [("nowhere", "`docker-credential-nowhere`, which is not on the PATH"), ("../../bin/sh", "no name of a program"), (["sh"], "no name of a program")],
)  # fmt: skip
def test_a_helper_that_is_none_is_told_where_the_registry_refuses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry, name: Any, says: str
) -> None:
    host = f"127.0.0.1:{registry.port}"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"credHelpers": {host: name}}))
    assert says in run(capsys, tmp_path / "state", "-i", f"{host}/team/web:1", "-c", config, code=2)


@pytest.mark.parametrize("option", ["-c", "--config", "--docker-config"])
def test_dockers_configuration_by_each_of_its_names(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry, option: str
) -> None:
    host = f"127.0.0.1:{registry.port}"
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"auths": {host: BASIC}}))
    words = ("-i", f"{host}/team/web:1", "--platform", "amd64")
    assert "web-package-managers" in run(capsys, tmp_path / "state", *words, option, config)
    # The settings of Hauberk stay what --config is, also beside docker's configuration.
    (tmp_path / "hauberk.toml").write_text("[postures]\nuntracked_namespaces = ['default']\n")
    told = run(
        capsys,
        tmp_path / "state",
        *words,
        option,
        config,
        "--config",
        tmp_path / "hauberk.toml",
        code=2 if option == "--config" else 0,
    )
    assert ("it refuses (401)" in told) == (option == "--config"), "the last one counts"
    (tmp_path / "hauberk.toml").write_text("auths = 5\n")
    assert "expected one of state" in run(
        capsys, tmp_path / "state", *words, "--config", tmp_path / "hauberk.toml", code=2
    )


def test_the_configuration_that_docker_would_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = f"127.0.0.1:{registry.port}"
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: BASIC}}))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    assert "web-package-managers" in run(capsys, tmp_path / "state", "-i", f"{host}/team/web:1", "--platform", "amd64")


@pytest.mark.parametrize("which", ["manifest", "configuration"])
def test_what_a_digest_names_is_compared(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, registry: Registry, which: str
) -> None:
    """An image that is pinned is that image, whatever its registry answers."""
    host, files = f"127.0.0.1:{registry.port}", registry.files
    (tmp_path / "config.json").write_text(json.dumps({"auths": {host: BASIC}}))
    index = json.loads(files["index.json"])["manifests"][0]["digest"]
    manifest = json.loads(files[f"blobs/sha256/{index[7:]}"])["manifests"][0]["digest"]
    name = manifest if which == "manifest" else json.loads(files[f"blobs/sha256/{manifest[7:]}"])["config"]["digest"]
    files[f"blobs/sha256/{name[7:]}"] += b" "
    words = ("-i", f"{host}/team/web:1", "-c", tmp_path / "config.json", "--platform", "amd64")
    assert f"to have the digest {name}" in run(capsys, tmp_path / "state", *words, code=2)


def test_names_of_a_store() -> None:
    assert spellings("nginx") == ("nginx", "docker.io/library/nginx:latest", "localhost/nginx:latest")
    assert spellings("ghcr.io/a/b:1")[1:] == ()
    pinned = "sha256:" + "0" * 64
    assert spellings(f"ghcr.io/a/b:1@{pinned}")[1] == f"ghcr.io/a/b@{pinned}"
