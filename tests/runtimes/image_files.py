# SPDX-License-Identifier: Apache-2.0
"""Images for tests, made in memory: a distribution of two layers that uses whatever layers have, as an OCI layout or as `docker save` wrote it."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

OS_RELEASE = b'ID=wolfi\nVERSION_ID="20230201"\nPRETTY_NAME="Wolfi"\n'


def member(
    name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", mode: int = 0o755
) -> tuple[tarfile.TarInfo, bytes]:
    made = tarfile.TarInfo(name)
    made.type, made.linkname, made.mode, made.size = kind, link, mode, len(data)
    return made, data


def folder(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, kind=tarfile.SYMTYPE, link=target)


def tarred(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return held.getvalue()


BASE = tarred(
    folder("usr"), folder("usr/bin"), symlink("bin", "usr/bin"), folder("etc"), folder("usr/lib"), symlink("etc/os-release", "../usr/lib/os-release"),
    member("usr/lib/os-release", OS_RELEASE, mode=0o644), member("usr/bin/curl"), member("usr/bin/apk"), member("usr/bin/gone"), member("usr/bin/app"),
    folder("etc/ssl"), member("etc/ssl/cert.pem"), folder("var"), folder("var/old"), member("var/old/a"), member("var/old/b"),
)  # fmt: skip
TOP = tarred(
    member("usr/bin/.wh.gone"), member("var/old/.wh..wh..opq"), member("var/old/new"), member("bin/nc"), symlink("usr/bin/tool", "/bin/nc"),
    member("usr/bin/hard", kind=tarfile.LNKTYPE, link="usr/bin/app"), member("etc/ssl", b"now a file", mode=0o644),
)  # fmt: skip
BUILT = tarred(
    folder("usr"), folder("usr/bin"), member("usr/bin/.wh.gone"), member("usr/bin/nc"), symlink("usr/bin/tool", "/bin/nc"), folder("var"),
    folder("var/old"), member("var/old/.wh..wh..opq"), member("var/old/new"), folder("etc"), member("etc/ssl", b"now a file", mode=0o644),
    member("dev/null", kind=tarfile.CHRTYPE),
)  # fmt: skip
"""As builders write it: each directory before what is in it, and nothing through a symlink of the layer below."""
CONFIG = {
    "os": "linux", "architecture": "amd64",
    "config": {"Entrypoint": ["/usr/bin/app"], "Cmd": None, "Healthcheck": {"Test": ["CMD-SHELL", "curl -f http://localhost/ || exit 1"]}},
}  # fmt: skip


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layout(
    *layers: bytes, config: dict[str, Any] = CONFIG, name: str = "registry.example/team/web:1"
) -> dict[str, bytes]:
    """Files of an OCI layout by name."""
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}

    def put(data: bytes, media: str) -> dict[str, Any]:
        files[f"blobs/sha256/{digest(data)[7:]}"] = data
        return {"mediaType": media, "digest": digest(data), "size": len(data)}

    manifest = {
        "schemaVersion": 2, "config": put(json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json"),
        "layers": [put(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
    }  # fmt: skip
    entry = put(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    index = {"schemaVersion": 2, "manifests": [{**entry, "platform": {"os": "linux", "architecture": "amd64"}}]}
    named = put(json.dumps(index).encode(), "application/vnd.oci.image.index.v1+json")
    files["index.json"] = json.dumps(
        {"schemaVersion": 2, "manifests": [{**named, "annotations": {"io.containerd.image.name": name}}]}
    ).encode()
    return files


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def saved(path: Path) -> Path:
    """As `docker save` before 25 wrote it: layers by directory, one of them a symlink to another's."""
    manifest = [{"Config": "c.json", "RepoTags": ["web:1"], "Layers": ["a/layer.tar", "b/layer.tar", "c/layer.tar"]}]
    path.write_bytes(tarred(
        member("c.json", json.dumps(CONFIG).encode()), member("a/layer.tar", BASE), member("b/layer.tar", TOP), symlink("c/layer.tar", "../b/layer.tar"),
        member("manifest.json", json.dumps(manifest).encode()),
    ))  # fmt: skip
    return path
