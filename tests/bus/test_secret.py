# SPDX-License-Identifier: Apache-2.0
"""Secrets in files: read at use, never shown, and none when others may read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus.kafka.security import arguments
from bus.kafka.settings import KafkaSasl, KafkaSettings, KafkaTls
from bus.secret import Secret
from schemas.errors import SettingsError


@pytest.mark.parametrize(("mode", "taken"), [(0o600, True), (0o400, True), (0o440, True), (0o640, True), (0o644, False), (0o604, False), (0o660, False), (0o602, False)])  # fmt: skip
def test_a_file_that_others_may_read_is_no_secret(tmp_path: Path, mode: int, taken: bool) -> None:
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    file.chmod(mode)
    secret = Secret(file=str(file))
    if taken:
        assert secret.reveal() == "hunter2"
        return
    with pytest.raises(SettingsError) as caught:
        secret.reveal()
    assert f"got mode {mode:04o}; `chmod 600 {file}`" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_secret_is_read_anew_at_each_use(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.touch(0o600)
    settings = KafkaSettings(
        security_protocol="SASL_PLAINTEXT", sasl=KafkaSasl(username="u", password=Secret(file=str(file)))
    )
    file.write_text("old\n")
    assert arguments(settings)["sasl_plain_password"] == "old"
    file.write_text("new\n")
    assert arguments(settings)["sasl_plain_password"] == "new"
    assert "new" not in repr(settings)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match="bytes that are not UTF-8"):
        arguments(settings)
    file.unlink()
    with pytest.raises(SettingsError, match="No such file"):
        arguments(settings)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    key.touch()
    key.chmod(0o644)
    settings = KafkaSettings(security_protocol="SSL", tls=KafkaTls(cert_file=str(tmp_path / "c"), key_file=str(key)))
    with pytest.raises(SettingsError, match="only its owner and group may read"):
        arguments(settings)
