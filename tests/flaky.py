# SPDX-License-Identifier: Apache-2.0
"""Pytest plugin (registered by `tests/conftest.py`): a test that failed is run once more, alone. What then passes is flaky: named, counted and written down.

A run with at most `MOST` flaky tests and no other failure ends with 0. A test that fails twice, more than `MOST` failures,
an error while collecting or an interrupted run end as pytest ends them. `build/flaky.json` holds the names of the last run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

MOST = 3
ALONE = "HAUBERK_TEST_ALONE"
"""Set in the environment of the second run: it does not judge itself."""


class Flaky:
    """Failed tests of this run, and which of them passed alone."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.failed: list[str] = []
        self.passed_alone: list[str] = []
        self.failed_twice: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # With `-n`, "@" and the name of its share stand behind the name of a test; a "]" ends what a parameter may contain.
        name, at, share = report.nodeid.rpartition("@")
        name = name if at and "]" not in share else report.nodeid
        if report.failed and name not in self.failed:
            self.failed.append(name)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        report = self.config.rootpath / "build" / "flaky.json"
        report.unlink(missing_ok=True)
        if exitstatus != pytest.ExitCode.TESTS_FAILED or not 0 < len(self.failed) <= MOST:
            return
        for name in self.failed:
            (self.passed_alone if self._passes_alone(name) else self.failed_twice).append(name)
        report.parent.mkdir(exist_ok=True)
        report.write_text(json.dumps({"flaky": self.passed_alone, "failed twice": self.failed_twice}, indent=1) + "\n")
        if not self.failed_twice:
            session.exitstatus = pytest.ExitCode.OK

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.failed:
            return
        terminalreporter.section("failed tests run again alone")
        if len(self.failed) > MOST:
            terminalreporter.write_line(f"none was: {len(self.failed)} tests failed, at most {MOST} may be flaky")
        for name in self.passed_alone:
            terminalreporter.write_line(f"FLAKY {name}: failed, then passed alone; mend the test or the race it found")
        for name in self.failed_twice:
            terminalreporter.write_line(f"FAILED TWICE {name}")
        if self.passed_alone and not self.failed_twice:
            terminalreporter.write_line(f"{len(self.passed_alone)} flaky of at most {MOST}: the run passes")

    def _passes_alone(self, name: str) -> bool:
        seed = self.config.getoption("randomly_seed", None)
        # The same seed: what a test draws by chance is drawn again, only its neighbours are missing.
        order = [f"--randomly-seed={seed}"] if isinstance(seed, int) else []
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "--no-header", *order, name],
            cwd=self.config.rootpath, env={**os.environ, ALONE: "1"}, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        return done.returncode == 0


def register(config: pytest.Config) -> None:
    """Watches unless this is a worker of a run with `-n`, the second run, or a run that a person steers (`--lf`, `-x`, `--pdb`)."""
    steered = config.getoption("lf", False) or config.getoption("usepdb", False) or config.getoption("maxfail", 0)
    if not os.environ.get(ALONE) and not steered and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Flaky(config), "flaky-tests")
