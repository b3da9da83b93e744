# SPDX-License-Identifier: Apache-2.0
"""Pytest plugin (registered by `tests/conftest.py`): what one worker of a run with `-n` takes as a whole.

Tests that share a booted kernel, an API server or the demonstration run one after the other in one worker, which starts it once, and so do files whose
tests read what one of them measured. Any other test goes to whoever is free: also those that load programs or share a broker, whose
workers wait much, and each have programs and a broker of their own.
"""

from __future__ import annotations

import pytest

SERVED = {"api_server": "kubernetes", "guest": "vm", "kernels": "vm", "results": "vm", "show": "show"}
"""Fixture to share."""
WHOLE = ("tests/hauberk/test_benchmarks.py",)
"""Files that are a share: what one test measured the next one reads."""


def share(item: pytest.Item) -> str | None:
    """The name of the share that `item` belongs to, if it does to any."""
    file = item.nodeid.partition("::")[0]
    if file in WHOLE:
        return file
    return next((SERVED[one] for one in getattr(item, "fixturenames", ()) if one in SERVED), None)


class Shares:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if name := share(item):
                # What xdist 3.8 does with its mark `xdist_group` is lost on pytest 9.2: it writes to `_nodeid`, which nobody reads.
                item._id = type(item._id).parse(f"{item.nodeid}@{name}")  # type: ignore[attr-defined]


def register(config: pytest.Config) -> None:
    """Only where tests are shared out: xdist puts the name of a share into the name of a test."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Shares(), "shares")
