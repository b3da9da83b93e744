# SPDX-License-Identifier: Apache-2.0
"""The LSM hooks' part of a load: what goes wrong with it is said, and never ends the sensor's. No kernel is asked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from kernel import bpf, hook_compiler, hook_loading, loader_child
from kernel.compiled import Compiled
from kernel.features import Feature
from kernel.hooks import TABLES
from schemas.errors import Incompatible

NOTHING = Compiled(maps={}, programs={}, attach_to={})
BUG = RuntimeError("no such function")


def failing(error: Exception) -> Any:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that asks LSM programs."""
    monkeypatch.setattr(loader_child, "lsm_programs", lambda: Feature("LSM programs", True, ""))
    monkeypatch.setattr(hook_compiler, "name_of", lambda request: "name")


@pytest.mark.usefixtures("offered")
@pytest.mark.parametrize("error", [BUG, Incompatible("no member"), OSError(28, "No space left on device")])
def test_hooks_that_do_not_compile_are_left_out_with_the_reason(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """BCC raises bare Exceptions, and a full disk an OSError."""
    monkeypatch.setattr(hook_compiler, "compile_hooks", failing(error))
    found, why = loader_child.prepare_hooks({"hooks": True}, print)
    assert found is None
    assert str(error) in why


def test_a_kernel_is_not_asked_about_hooks_that_nobody_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_child, "lsm_programs", failing(AssertionError("asked")))
    assert loader_child.prepare_hooks({"hooks": False}, print) == (None, "")


@pytest.mark.usefixtures("offered")
def test_hooks_that_do_not_load_are_forgotten_and_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "name").write_bytes(b"kept")
    monkeypatch.setattr(hook_loading, "shared", failing(BUG))
    why = loader_child.load_hooks(NOTHING, {}, (1, 2), {"pin_dir": str(tmp_path), "cache": str(tmp_path)})
    assert "no such function" in why
    assert not (tmp_path / "name").exists()


def test_hooks_that_are_half_attached_are_taken_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever it is that fails: pins of some hooks alone would hold a table in half."""
    for room in ("maps", "programs", "links"):
        (tmp_path / room).mkdir()
    monkeypatch.setattr(bpf, "pin", lambda fd, path: Path(path).touch())
    links: list[int] = []

    def attach(command: int, attributes: bytes, name: str) -> int:
        if links:
            raise MemoryError
        links.append(os.open("/dev/null", os.O_RDONLY))
        return links[0]

    monkeypatch.setattr(bpf, "check", attach)
    with pytest.raises(MemoryError):
        hook_loading.install({"lsm_a": 0, "lsm_b": 0}, dict.fromkeys((table.name for table in TABLES), 0), tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
