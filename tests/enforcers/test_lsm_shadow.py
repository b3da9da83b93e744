# SPDX-License-Identifier: Apache-2.0
"""`enforcement.shadow`: the LSM hooks count and tell what they would deny, the calls go on, and no rule counts as held."""

from __future__ import annotations

import shutil
import signal
import struct
from pathlib import Path
from typing import Any

import pytest

from enforcers.apply import Applier
from enforcers.bpf_lsm import LsmEnforcer
from kernel.loading import LoadedPrograms
from kernel.ring import Ring
from kernel.siphash import string_id
from schemas.enforcement import PathRule, Plan, ScopePlan
from schemas.kernel import BEHAVIOUR, DEFINITION, Config, DefinitionKind
from schemas.lsm import HookCount, TableFlag
from schemas.operations import Backend, Class, Operation
from schemas.refusals import RefusalCode
from schemas.verdict import Action, RuleRef

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def loaded(hooked: LoadedPrograms) -> LoadedPrograms:
    return hooked


def told(definitions: Ring, cgroup: int, paths: set[int]) -> list[tuple[Operation, int, int]]:
    """Operation, result and enforcer of each behaviour of `cgroup` on `paths` (string ids) or by ptrace that the ring holds."""
    found = []
    for record in definitions.take_records(1 << 20):
        _, kind, size = DEFINITION.struct.unpack_from(record)
        body = record[DEFINITION.size : DEFINITION.size + size]
        if kind == DefinitionKind.BEHAVIOUR and number(body, "cgroup") == cgroup:
            operation = Operation(number(body, "operation"))
            if operation is Operation.PTRACE or number(body, "resource") in paths:
                found.append((operation, number(body, "result"), number(body, "enforcer")))
    definitions.release()
    return found


def number(body: bytes, name: str) -> int:
    """An unsigned field of a behaviour."""
    size = {"cgroup": 8, "resource": 8, "resource2": 8, "operation": 2, "result": 4, "enforcer": 1}[name]
    at = BEHAVIOUR.offsets[name]
    return int.from_bytes(body[at : at + size], "little")


def test_a_shadow_counts_and_tells_and_denies_nothing(bench: Any, tmp_path: Path, loaded: LoadedPrograms) -> None:
    (tmp_path / "secret").write_text("x")
    tool = shutil.copy("/bin/true", f"{tmp_path}/tool")
    secret = f"file: {{matchPaths: [{{path: {tmp_path}/secret}}]}}"
    with loaded.map("config") as config:
        config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", (1 << 64) - 1))
    before = bench.count(HookCount.SHADOWED), bench.count(HookCount.DENIED)
    rest = f"process: {{matchPaths: [{{path: {tool}}}]}}, presets: [{{name: protectProc}}], action: Block"
    receipt = bench.hold(f"{secret}, {rest}", shadow=True)
    assert [one.code for one in receipt.refused] == [RefusalCode.SHADOW] * 3
    assert [(one.backend, one.rules) for one in receipt.in_force] == [(Backend.BPF_LSM, 0)]
    with Ring.open(f"{loaded.pin_dir}/maps/definitions") as definitions:
        definitions.take_records(1 << 20)
        definitions.release()
        bench.expect(("ok", ("read", f"{tmp_path}/secret")), ("ok", ("run", tool)), ("ok", ("ptrace",)))
        # Each once: the sensor passes over what the hook has told, and tells the exec, which the hook leaves to it.
        ids = {string_id(loaded.key, path) for path in (f"{tmp_path}/secret", tool)}
        assert told(definitions, bench.box.id, ids) == [
            (Operation.OPEN, 0, 0), (Operation.EXEC, 0, 0), (Operation.PTRACE, 0, 0)
        ]  # fmt: skip
    after = bench.count(HookCount.SHADOWED), bench.count(HookCount.DENIED)
    assert (after[0] - before[0], after[1] - before[1]) == (3, 0)
    bench.hold(f"{secret}, action: Block")
    bench.expect(("EPERM", ("read", f"{tmp_path}/secret")))


def test_a_call_that_names_two_files_is_told_once_with_both(bench: Any, tmp_path: Path, loaded: LoadedPrograms) -> None:
    """The hook knows one of them, and so what ends the call tells it; a file that an open makes is no call of mknod."""
    for name in ("secret", "source"):
        (tmp_path / name).write_text("x")
    (tmp_path / "below").mkdir()
    with loaded.map("config") as config:
        config.put(struct.pack("=I", Config.OBSERVED_UNTIL), struct.pack("=Q", (1 << 64) - 1))
    before = bench.count(HookCount.SHADOWED)
    rules = f"matchPaths: [{{path: {tmp_path}/secret}}], matchDirectories: [{{dir: {tmp_path}/below/}}]"
    bench.hold(f"file: {{{rules}}}, action: Block", shadow=True)
    with Ring.open(f"{loaded.pin_dir}/maps/definitions") as definitions:
        definitions.take_records(1 << 20)
        definitions.release()
        bench.expect(
            ("ok", ("link", f"{tmp_path}/source", f"{tmp_path}/below/linked")),
            ("ok", ("rename", f"{tmp_path}/secret", f"{tmp_path}/elsewhere")),
            ("ok", ("creat", f"{tmp_path}/below/made")),
        )
        ids = {
            string_id(loaded.key, f"{tmp_path}/{path}"): path
            for path in ("below/linked", "source", "secret", "elsewhere", "below/made")
        }
        found = []
        for record in definitions.take_records(1 << 20):
            _, kind, size = DEFINITION.struct.unpack_from(record)
            body = record[DEFINITION.size : DEFINITION.size + size]
            if kind == DefinitionKind.BEHAVIOUR and number(body, "cgroup") == bench.box.id:
                words = [ids.get(number(body, name), "") for name in ("resource", "resource2")]
                if any(words):
                    found.append((Operation(number(body, "operation")), *words))
        definitions.release()
    assert found == [
        (Operation.LINK, "below/linked", "source"),
        (Operation.RENAME, "secret", "elsewhere"),
        (Operation.CREATE, "below/made", ""),
    ]
    assert bench.count(HookCount.SHADOWED) > before


def test_the_signal_backend_stops_what_a_shadow_lets_pass(pin_dir: str, new_cgroup: Any, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    box = new_cgroup()
    rule = PathRule(cls=Class.FILE, match="path", value=f"{tmp_path}/secret", action=Action.BLOCK, ref=RuleRef("held"))
    scope = ScopePlan(uid="u", cgroups=(box.id,), cgroup_path=box.path, paths=(rule,), signal=True)
    applier = Applier(pin_dir, "n", ("bpf-lsm", "signal"), grace=0.0, shadow=True)
    try:
        receipt = applier.apply(Plan(node="n", generation=1, digest="d", scopes=(scope,)))
        assert receipt.failed == ()
        held = {one.backend: one.rules for one in receipt.in_force}
        assert held == {Backend.BPF_LSM: 0, Backend.SIGNAL: 1}
        assert box.run("/bin/cat", f"{tmp_path}/secret") == -signal.SIGKILL
        assert box.run("/bin/true") == 0
    finally:
        applier.clear()
        applier.close()


def test_what_it_would_hold_is_left_to_the_backends_after_it() -> None:
    """No kernel is asked."""
    ref = RuleRef("p")
    rule = PathRule(cls=Class.FILE, match="path", value="/a", action=Action.BLOCK, ref=ref)
    scope = ScopePlan(uid="u", cgroups=(7,), paths=(rule,))
    held, shadow = (LsmEnforcer("/nowhere", shadow=one).encode(scope, len) for one in (False, True))
    assert (held.rules, held.whole, held.refused) == (1, {Class.PROCESS, Class.FILE}, ())
    assert (shadow.rules, shadow.whole, shadow.carried) == (0, frozenset(), frozenset())
    (refusal,) = shadow.refused
    assert (refusal.ref, refusal.code, refusal.backend) == (ref, RefusalCode.SHADOW, Backend.BPF_LSM)
    header = next(value for _, value in shadow.entries["rules"])
    assert int.from_bytes(header[4:8], "little") & TableFlag.SHADOW
