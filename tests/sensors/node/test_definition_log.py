# SPDX-License-Identifier: Apache-2.0
"""The file of definitions: what was appended before a kill is read back; another boot or a foreign file starts afresh."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import SettingsError
from sensors.node.definition_log import DefinitionLog

records = st.lists(st.binary(min_size=1, max_size=200), max_size=20)


def reopened(path: Path, identity: str = "boot 1") -> tuple[bool, list[bytes]]:
    log = DefinitionLog(str(path), identity)
    try:
        return log.known, log.read()
    finally:
        log.close()


@given(first=records, second=records, lost=st.integers(0, 300))
@settings(deadline=None, max_examples=50)
def test_a_torn_tail_costs_only_what_was_torn(
    tmp_path_factory: pytest.TempPathFactory, first: list[bytes], second: list[bytes], lost: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "deep" / "definitions"
    log = DefinitionLog(str(path), "boot 1")
    assert not log.known
    log.append(first)
    log.append(second)
    log.close()
    data = path.read_bytes()
    path.write_bytes(data[: max(40, len(data) - lost)])
    known, found = reopened(path)
    everything = first + second
    assert known
    assert found == everything[: len(found)]
    assert sum(len(record) + 4 for record in everything[len(found) :]) <= lost + 204
    # What comes after the cut is whole again.
    log = DefinitionLog(str(path), "boot 1")
    log.append([b"more"])
    log.close()
    assert reopened(path) == (True, [*found, b"more"])


def test_rewriting_keeps_only_what_is_given(tmp_path: Path) -> None:
    path = tmp_path / "definitions"
    log = DefinitionLog(str(path), "boot 1")
    log.append([b"a" * 100] * 50)
    log.rewrite([b"b"])
    log.append([b"c"])
    assert log.size == path.stat().st_size < 60
    log.close()
    assert reopened(path) == (True, [b"b", b"c"])


def test_another_boot_or_load_starts_afresh(tmp_path: Path) -> None:
    path = tmp_path / "definitions"
    log = DefinitionLog(str(path), "boot 1")
    log.append([b"old"])
    log.close()
    assert reopened(path, "boot 2") == (False, [])
    assert reopened(path, "boot 2") == (True, [])
    path.write_bytes(b"something else")
    assert reopened(path, "boot 2") == (False, [])


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="state_dir"):
        DefinitionLog(str(tmp_path / "file" / "definitions"), "boot 1")
