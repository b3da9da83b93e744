# SPDX-License-Identifier: Apache-2.0
"""A kernel or a tool that a security module's backend cannot use: one sentence, with what to do, and nothing is said to be held."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enforcers import apparmor, bpf_lsm
from enforcers.apparmor import AppArmorEnforcer
from enforcers.apply import Applier
from enforcers.bpf_lsm import LsmEnforcer
from hauberk.verbs.probe import _modules
from kernel import features
from kernel.features import Feature
from schemas.enforcement import Plan
from schemas.operations import Backend

ROOT = Path(__file__).parents[2]


def test_lockdown_is_read_as_the_kernel_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "lockdown"
    assert features.locked_down(str(file)) == ""
    for text, said in (
        ("[none] integrity confidentiality\n", False), ("none [integrity] confidentiality\n", False),
        ("none integrity [confidentiality]\n", True),
    ):  # fmt: skip
        file.write_text(text)
        assert bool(features.locked_down(str(file))) is said
    assert "boot with `lockdown=integrity`" in features.locked_down(str(file))


@pytest.mark.parametrize("name", ["lockdown", "btf", "modules"])
def test_bpf_lsm_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "vmlinux").write_text("")
    (tmp_path / "lsm").write_text("capability,yama,apparmor\n")
    monkeypatch.setattr(bpf_lsm, "locked_down", lambda: "locked down; boot with x" if name == "lockdown" else "")
    monkeypatch.setattr(bpf_lsm, "VMLINUX", tmp_path / ("none" if name == "btf" else "vmlinux"))
    monkeypatch.setattr(bpf_lsm, "MODULES", str(tmp_path / "lsm"))
    why = LsmEnforcer(str(tmp_path)).unusable()
    assert "boot" in why
    assert {"lockdown": "locked down", "btf": "CONFIG_DEBUG_INFO_BTF", "modules": "lsm=capability,yama,apparmor,bpf"}[
        name
    ] in why


def test_an_older_apparmor_says_what_to_do_and_the_receipt_repeats_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "apparmor").mkdir()
    (tmp_path / "apparmor" / ".replace").write_text("")
    (tmp_path / "lsm").write_text("capability,apparmor\n")
    parser = tmp_path / "parser"
    parser.write_text("#!/bin/sh\n")
    parser.chmod(0o755)
    monkeypatch.setattr(apparmor, "ABI", str(tmp_path / "abi"))
    why = AppArmorEnforcer(securityfs=str(tmp_path), parser=str(parser)).unusable()
    assert "install apparmor 3.0 or newer" in why
    monkeypatch.setattr(AppArmorEnforcer, "unusable", lambda self: why)
    monkeypatch.setattr(LsmEnforcer, "unusable", lambda self: "no hooks here")
    applier = Applier(str(tmp_path / "no-pins"), "n", (), lsm=("bpf", "apparmor"))
    receipt = applier.apply(Plan(node="n", generation=1, digest="d", scopes=()))
    assert {one.backend: one.problem for one in receipt.in_force} == {
        Backend.APPARMOR: why,
        Backend.BPF_LSM: "no hooks here",
    }
    assert (receipt.backends, receipt.scopes) == ((), 0)
    assert "nothing is enforced" in receipt.failed[0]


def test_the_audit_stream_needs_one_capability() -> None:
    if os.geteuid():
        pytest.skip("needs root to drop capabilities")
    code = "from kernel.audit import AuditStream\ntry:\n AuditStream()\n print('open')\nexcept Exception as error:\n print(error)"

    def asked(*drop: str) -> str:
        command = ["setpriv", *drop, sys.executable, "-c", code]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout

    if "open" not in (whole := asked()):
        pytest.skip(whole)
    assert "open" in asked("--inh-caps=-all,+audit_read", "--ambient-caps=-all", "--bounding-set=-all,+audit_read")
    assert "CAP_AUDIT_READ" in asked("--bounding-set=-audit_read")


@pytest.mark.parametrize("hooks", [True, False])
def test_the_probe_says_of_apparmor_why_not_whatever_else_there_is(
    monkeypatch: pytest.MonkeyPatch, hooks: bool
) -> None:
    monkeypatch.setattr(AppArmorEnforcer, "unusable", lambda self: "install apparmor 3.0 or newer")
    said = _modules(Feature("LSM programs", hooks, "no hooks here"))
    assert "not apparmor: install apparmor 3.0 or newer" in said
    assert ("not bpf: no hooks here" in said) is not hooks
