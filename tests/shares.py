# SPDX-License-Identifier: Apache-2.0
"""Pytest plugin (registered by `tests/conftest.py`): what one worker of a run with `-n` takes as a whole.

Tests that load programs, start containers, or share a broker or a booted kernel run one after the other in one worker, as
the machine has one kernel and a session starts its servers once. Any other file is a share of its own.
"""

from __future__ import annotations

import pytest

MARKED = {"kernel": "kernel", "containers": "kernel"}
"""Mark to share. Containers are with the kernel's tests: both make cgroups and look at all of them."""
SERVED = {
    "api_server": "kubernetes",
    "kafka": "kafka",
    "kafka_secure": "kafka",
    "kafka_clusters": "kafka",
    "guest": "vm",
    "kernels": "vm",
    "results": "vm",
}
"""Fixture to share."""


WHOLE = ("tests/hauberk/test_benchmarks.py",)
"""Files that stay together whatever their tests are marked: what one measured the next one reads."""


def share(item: pytest.Item) -> str:
    """The name of the share that `item` belongs to."""
    file = item.nodeid.partition("::")[0]
    if file in WHOLE:
        return file
    for mark, name in MARKED.items():
        if item.get_closest_marker(mark):
            return name
    # A suite that runs over several buses asks for the broker by the value of its parameter.
    called = getattr(item, "callspec", None)
    wanted = [*getattr(item, "fixturenames", ()), *(called.params.values() if called else ())]
    return next(
        (SERVED[one] for one in wanted if isinstance(one, str) and one in SERVED), item.nodeid.partition("::")[0]
    )


class Shares:
    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            item.add_marker(pytest.mark.xdist_group(share(item)))


def register(config: pytest.Config) -> None:
    """Only where tests are shared out: xdist puts the name of a share into the name of a test."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Shares(), "shares")
