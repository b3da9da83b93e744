# SPDX-License-Identifier: Apache-2.0
"""`enforcement.lsm`: the first module that the kernel offers is used, and what was passed over says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from enforcers.apparmor import AppArmorEnforcer
from enforcers.bpf_lsm import LsmEnforcer
from enforcers.registry import usable
from schemas.backends import Module
from schemas.operations import Backend

HERE = {"bpf": LsmEnforcer, "apparmor": AppArmorEnforcer}


@pytest.fixture
def offered(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Module -> why this kernel does not offer it; "" when it does."""
    whys = {"bpf": "", "apparmor": ""}
    for module, kind in HERE.items():
        monkeypatch.setattr(kind, "unusable", lambda self, module=module: whys[module])
    return whys


@pytest.mark.parametrize(
    ("order", "missing", "used", "passed"),
    [
        (("bpf", "apparmor"), (), "bpf-lsm", {Backend.APPARMOR: "not used: `bpf-lsm` goes before it in `enforcement.lsm`"}),
        (("apparmor", "bpf"), (), "apparmor", {Backend.BPF_LSM: "not used: `apparmor` goes before it in `enforcement.lsm`"}),
        (("bpf", "apparmor"), ("bpf",), "apparmor", {Backend.BPF_LSM: "no bpf here"}),
        (("selinux", "bpf"), (), "bpf-lsm", {}),
    ],
)  # fmt: skip
def test_the_first_that_is_offered(
    offered: dict[str, str],
    tmp_path: Path,
    order: tuple[Module, ...],
    missing: tuple[str, ...],
    used: str,
    passed: dict[Backend, str],
) -> None:
    offered |= {module: f"no {module} here" for module in missing}
    found = usable((), str(tmp_path), lsm=order)
    kinds = {type(one) for one in (*found.tables, *found.profiles)}
    assert kinds == {LsmEnforcer if used == "bpf-lsm" else AppArmorEnforcer}
    assert dict(found.passed) == passed
    assert found.problems == ()


def test_none_of_them(offered: dict[str, str], tmp_path: Path) -> None:
    offered |= {"bpf": "no bpf here", "apparmor": "no apparmor here"}
    found = usable((), str(tmp_path), lsm=("bpf", "apparmor"))
    assert dict(found.problems) == {Backend.BPF_LSM: "no bpf here", Backend.APPARMOR: "no apparmor here"}
    assert found.tables == found.profiles == found.passed == ()


def test_without_an_order_all_that_are_named_are_used(offered: dict[str, str], tmp_path: Path) -> None:
    found = usable(("bpf-lsm", "apparmor"), str(tmp_path))
    assert len(found.tables) == len(found.profiles) == 1
