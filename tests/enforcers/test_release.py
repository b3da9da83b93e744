# SPDX-License-Identifier: Apache-2.0
"""`hauberk release`: what is in force ends at once, without an agent or a bus, and a start does not bring it back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from enforcers.apply import Applier
from enforcers.plan import Planner
from enforcers.settings import EnforceSettings
from enforcers.swap import carry_over, saved_file
from hauberk.verbs import release
from policy.ruleset import compile_ruleset
from schemas.enforcement import encode

pytestmark = pytest.mark.kernel


def test_nothing_is_enforced_any_more(
    pin_dir: str,
    new_cgroup: Any,
    identity: Any,
    policies: Any,
    ksp: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    box = new_cgroup()
    true = os.path.realpath("/bin/true")
    ruleset = compile_ruleset(
        policies(
            ksp("held", f"process: {{matchPaths: [{{path: {true}}}]}}, action: Block", "{hauberk.io/signal: enabled}")
        )
    )
    plan = Planner(ruleset).plan("n1", [identity(box)], 1)
    applier = Applier(pin_dir, "n1", grace=0.0)
    assert applier.apply(plan).failed == ()
    applier.close()
    settings = EnforceSettings(state_dir=str(tmp_path))
    kept = saved_file(settings)
    assert kept is not None
    kept.write_bytes(encode(plan))
    assert box.run(true) == -9
    asked = [
        "--set",
        f"sensor.pin_dir={pin_dir}",
        "--set",
        f"enforcement.state_dir={tmp_path}",
        "--state",
        str(tmp_path),
    ]
    assert release.main(asked) == 0
    assert capsys.readouterr().out == "released 1 cgroups\n"
    assert box.run(true) == 0
    assert (tmp_path / release.ASIDE).exists()
    carry_over(pin_dir, "n1", settings)
    assert box.run(true) == 0
    assert release.main(asked) == 0
    assert capsys.readouterr().out == "released 0 cgroups\n"
