# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend --engine DIRECTORY`: real stores of containerd and of Podman, which are CRI-O's too, read where they lie."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import container_runtimes as runtimes
import image_files as images
import pytest

from hauberk.cli import main
from hauberk.images import containerd as containerd_store
from hauberk.images.bolt import ask
from hauberk.images.containerd import ContainerdStore
from hauberk.images.containers_storage import ContainersStorage
from hauberk.images.engine import image_store
from hauberk.images.image import ReadImage
from hauberk.images.layers import LayerReader
from hauberk.images.streams import ImageLimits
from hauberk.images.unpacked import add_unpacked
from policy.recommend.contents import Distribution
from schemas.errors import SettingsError

NAME = "registry.example/team/web:1"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout as one file, two layers."""
    path = tmp_path_factory.mktemp("image") / "web.tar"
    path.write_bytes(
        images.tarred(*(images.member(name, data) for name, data in images.layout(images.BASE, images.BUILT).items()))
    )
    return path


@pytest.fixture(scope="module")
def kept(containerd: Any, archive: Path) -> Iterator[Path]:
    """containerd's directory, with the image in a namespace of its own."""
    ctr = ["ctr", "-a", containerd.socket, "-n", "images-of-tests", "images"]
    subprocess.run([*ctr, "import", "--no-unpack", "--digests", str(archive)], check=True, capture_output=True)
    yield Path(containerd.home) / "root"
    listed = subprocess.run([*ctr, "ls", "-q"], check=True, capture_output=True, text=True).stdout.split()
    subprocess.run([*ctr, "rm", *listed], check=True, capture_output=True)


def check(image: ReadImage | None) -> None:
    assert image is not None
    contents = image.contents
    assert contents.distribution == Distribution("wolfi", "20230201", "Wolfi")
    assert not contents.has("/usr/bin/gone"), "a whiteout"
    assert [contents.has(f"/var/old/{name}") for name in ("a", "b", "new")] == [False, False, True], (
        "an opaque directory"
    )
    assert contents.resolve("/bin/nc") == "/usr/bin/nc"
    assert not contents.has("/etc/ssl/cert.pem"), "a file took the directory's place"
    assert contents.programs(["curl", "apk"]) == (["/usr/bin/apk", "/usr/bin/curl"], [])
    assert {"curl", "/usr/bin/app"} <= set(image.commands)


@pytest.mark.parametrize("driver", ["overlay", "vfs"])
def test_the_store_of_podman_and_cri_o(
    archive: Path, rootfs: Path, tmp_path: Path, driver: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with runtimes.private_podman(rootfs, driver) as podman:
        podman.podman("load", "-i", str(archive))
        store = image_store(str(podman.storage))
        assert isinstance(store, ContainersStorage)
        if store.image(NAME) is None:
            podman.podman("tag", podman.podman("images", "-q").split()[0], NAME)
        check(store.image(NAME))
        assert store.image("registry.example/team/web:2") is None
        podman.podman("tag", NAME, "localhost/own/web:latest", "docker.io/library/web:latest")
        for text in ("own/web", "web", "docker.io/web:latest"):
            check(store.image(text))
        digest = podman.podman("image", "inspect", "--format", "{{.Digest}}", NAME)
        check(store.image(f"elsewhere.example/other@{digest}"))
        capsys.readouterr()
        words = [
            "-p",
            "package-managers",
            "-i",
            NAME,
            "--engine",
            str(podman.storage),
            "--state",
            str(tmp_path / "state"),
        ]
        assert main(["recommend", *words]) == 0
        assert "/usr/bin/apk" in capsys.readouterr().out
        # What is damaged is one sentence.
        names = podman.storage / f"{driver}-images/images.json"
        whole = names.read_bytes()
        for made, says in (
            (whole[:100], "to be JSON of its form"),
            (whole.replace(json.loads(whole)[-1]["layer"].encode(), b"../../../etc"), "expected the id of a layer"),
            (whole.replace(json.loads(whole)[-1]["layer"].encode(), b"0" * 64), "No such file"),
        ):
            names.write_bytes(made)
            with pytest.raises(SettingsError, match=says):
                store.image(NAME)
        names.write_bytes(whole)
        if driver == "overlay":
            next(podman.storage.glob("overlay/*/diff")).with_name("composefs-data").mkdir()
            with pytest.raises(SettingsError, match="composefs, which is not read"):
                store.image(NAME)


def test_the_store_of_containerd(
    kept: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], containerd: Any
) -> None:
    store = image_store(str(kept))
    assert isinstance(store, ContainerdStore)
    check(store.image(NAME, "amd64"))
    assert store.image("registry.example/team/web:2") is None
    assert store.image("localhost/pause:1") is not None, "of Kubernetes' namespace"
    listed = subprocess.run(
        ["ctr", "-a", containerd.socket, "-n", "images-of-tests", "images", "ls"],
        check=True,
        capture_output=True,
        text=True,
    )
    digest = next(word for word in listed.stdout.split() if word.startswith("sha256:"))
    check(store.image(f"elsewhere.example/other@{digest}", "amd64"))
    words = [
        "-p",
        "package-managers",
        "--platform",
        "amd64",
        "--state",
        str(tmp_path / "state"),
        "-i",
        NAME,
        "--engine",
    ]
    assert main(["recommend", *words, str(kept)]) == 0
    assert "/usr/bin/apk" in capsys.readouterr().out
    socket = tmp_path / "containerd.sock"
    socket.symlink_to(containerd.socket)
    assert main(["recommend", *words, str(socket)]) == 2
    assert "name the directory, as in --engine /var/lib/containerd" in capsys.readouterr().err


def test_a_blob_that_is_not_kept_is_one_sentence(kept: Path, tmp_path: Path) -> None:
    shutil.copytree(kept / "io.containerd.metadata.v1.bolt", tmp_path / "io.containerd.metadata.v1.bolt")
    with pytest.raises(SettingsError, match="it is not kept there"):
        ContainerdStore(tmp_path).image(NAME)


def test_what_containerd_writes_meanwhile_changes_no_answer(kept: Path, containerd: Any) -> None:
    ctr = ["ctr", "-a", containerd.socket, "-n", "images-of-tests", "images"]
    over = threading.Event()

    def write() -> None:
        for number in range(12):
            subprocess.run([*ctr, "tag", NAME, f"registry.example/meanwhile:{number}"], check=True, capture_output=True)
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        path, asked = kept / "io.containerd.metadata.v1.bolt/meta.db", 0
        while not over.is_set():
            assert ask(path, lambda database: containerd_store._digest(database, [NAME.encode()], b"")).startswith(
                "sha256:"
            )
            asked += 1
    finally:
        writer.join()
    assert asked > 12


def test_a_damaged_database_is_one_sentence_or_the_answer(kept: Path, tmp_path: Path) -> None:
    whole = (kept / "io.containerd.metadata.v1.bolt/meta.db").read_bytes()
    chance, path = random.Random(7), tmp_path / "meta.db"

    def answer() -> str:
        try:
            return ask(path, lambda database: containerd_store._digest(database, [NAME.encode()], b""))
        except SettingsError as error:
            return f"refused: {error}"

    path.write_bytes(whole)
    right = answer()
    assert right.startswith("sha256:")
    for _ in range(150):
        broken = bytearray(whole)
        for _ in range(chance.choice((1, 40))):
            broken[chance.choice((chance.randrange(200), chance.randrange(len(whole))))] = chance.randrange(256)
        path.write_bytes(bytes(broken)[: chance.choice((len(whole), chance.randrange(len(whole))))])
        assert len(answer().splitlines()) < 2
    for text in (b"", b"no database at all" * 1000, bytes(1 << 16)):
        path.write_bytes(text)
        with pytest.raises(SettingsError, match="expected a database of bbolt"):
            ask(path, lambda database: database.transaction)


def test_unpacked_layers_are_seen_as_overlayfs_shows_them(tmp_path: Path) -> None:
    """A directory above a symlink hides it; of a file with several names each is the others' as well."""
    low, high = tmp_path / "low", tmp_path / "high"
    (low / "usr/bin").mkdir(parents=True)
    (low / "bin").symlink_to("usr/bin")
    (low / "usr/bin/apk").touch(0o755)
    (low / "usr/bin/box").hardlink_to(low / "usr/bin/apk")
    (high / "bin").mkdir(parents=True)
    (high / "bin/nc").touch(0o755)
    (high / "usr/bin").mkdir(parents=True)
    (high / "usr/bin/.wh.box").touch()
    reader = LayerReader()
    add_unpacked(reader, low, "low")
    assert reader.contents().programs(["apk"]) == ([], [("apk", "/usr/bin/apk")])
    add_unpacked(reader, high, "high")
    contents = reader.contents()
    assert (contents.resolve("/bin/nc"), contents.has("/bin/apk"), contents.has("/usr/bin/box")) == (
        "/bin/nc",
        False,
        False,
    )


def test_a_layer_that_lies_unpacked_is_bounded_and_follows_nothing(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").symlink_to("/etc/os-release")
    (tmp_path / "out").symlink_to("/etc")
    reader = LayerReader()
    add_unpacked(reader, tmp_path, "x")
    contents = reader.contents()
    assert (contents.distribution, contents.has("/out/passwd")) == (Distribution(), False), "of this machine nothing"
    with pytest.raises(SettingsError, match="at most 2 names"):
        add_unpacked(LayerReader(ImageLimits(names=2)), tmp_path, "x")
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    with pytest.raises(SettingsError, match="directories in one another"):
        add_unpacked(LayerReader(), tmp_path, "x")
