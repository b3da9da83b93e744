# SPDX-License-Identifier: Apache-2.0
"""A denied path and a free one that a process opens without pause (`hammer` of tests/enforcers/calls.py), and what it got."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

CALLS = str(Path(__file__).parents[1] / "enforcers" / "calls.py")


class Hammer:
    """Begins by `start` (that of a cgroup's or a container's box) on `secret` and `free` of the directory `place`, which it makes."""

    def __init__(self, start: Callable[..., Any], place: Path) -> None:
        for name in ("secret", "free"):
            (place / name).write_text("x")
        self._end = place / "end"
        calls = [("hammer", f"{place}/secret", f"{place}/free", str(self._end))]
        self.process = start(sys.executable, "-S", CALLS, json.dumps(calls), stdout=subprocess.DEVNULL)

    def begun(self) -> bool:
        """Whether it goes on by now."""
        return Path(f"{self._end}-begun").exists()

    def stop(self) -> None:
        """And wait for its end."""
        self._end.touch()
        self.process.wait(300)

    def expect_held(self) -> None:
        """No open of the denied path passed, none of the free one was denied."""
        rounds, missed, wrong = json.loads(self._end.read_text())
        assert rounds > 150
        assert (missed, wrong) == (0, 0), rounds
