# SPDX-License-Identifier: Apache-2.0
"""Certificates of a test's Kafka, made with openssl: one authority per cluster, one certificate per name."""

from __future__ import annotations

import subprocess
from pathlib import Path

_KIND = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def authority(place: Path) -> None:
    """`ca.pem` and `ca.key` in `place`, which is made."""
    place.mkdir(parents=True)
    _openssl(
        "req",
        "-x509",
        *_KIND,
        "-days",
        "30",
        "-subj",
        "/CN=authority",
        "-keyout",
        "ca.key",
        "-out",
        "ca.pem",
        where=place,
    )


def certificate(place: Path, name: str, days: int = 30) -> tuple[str, str]:
    """(certificate, key) of `name`, good for 127.0.0.1; made when missing. The key is PKCS#8, which Kafka asks for. `days`: it is good
    for, -1 for one that was good until yesterday."""
    if not (place / f"{name}.pem").exists():
        _openssl(
            "req", *_KIND, "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
            "-keyout", f"{name}.key", "-out", f"{name}.csr", where=place,
        )  # fmt: skip
        _openssl(
            "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-days", str(days), "-copy_extensions", "copy", "-out", f"{name}.pem", where=place,
        )  # fmt: skip
    return str(place / f"{name}.pem"), str(place / f"{name}.key")


def joined(certificate: str, key: str) -> str:
    """One file of both, as `ssl.keystore.type=PEM` takes it."""
    both = Path(f"{certificate}.both")
    both.write_bytes(Path(key).read_bytes() + Path(certificate).read_bytes())
    return str(both)


def _openssl(*words: str, where: Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=where)
