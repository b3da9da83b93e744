# SPDX-License-Identifier: Apache-2.0
"""Pytest plugin (registered by `tests/conftest.py`): what one worker of a run with `-n` takes as a whole.

Tests that load programs, start containers, or share a broker or a booted kernel run one after the other in one worker, as
the machine has one kernel and a session starts its servers once. Any other file is a share of its own.
"""

from __future__ import annotations

import pytest

TOGETHER = {"kernel": "kernel", "containers": "kernel", "kafka": "kafka", "kubernetes": "kubernetes", "vm": "vm"}
"""Mark to share. Containers are with the kernel's tests: both make cgroups and look at all of them."""


def share(item: pytest.Item) -> str:
    """The name of the share that `item` belongs to."""
    for mark, name in TOGETHER.items():
        if item.get_closest_marker(mark):
            return name
    return item.nodeid.partition("::")[0]


class Shares:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.xdist_group(share(item)))


def register(config: pytest.Config) -> None:
    """Only where tests are shared out: xdist puts the name of a share into the name of a test."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Shares(), "shares")
