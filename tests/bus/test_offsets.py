# SPDX-License-Identifier: Apache-2.0
"""Groups: offsets never go back, registering keeps what is there, a lease has one holder."""

from __future__ import annotations

import pytest

from bus.offsets import Lease, Offsets


@pytest.fixture
def offsets(tmp_path):
    offsets = Offsets(tmp_path)
    yield offsets
    offsets.close()


@pytest.mark.parametrize("durable", [True, False])
def test_an_offset_never_goes_back(offsets, durable):
    offsets.commit([("g", "alerts", 5)], durable=durable)
    offsets.commit([("g", "alerts", 3), ("h", "alerts", 9)], durable=durable)
    assert offsets.all() == {"g": {"alerts": 5}, "h": {"alerts": 9}}
    assert offsets.bounds("alerts") == (5, 9)
    assert (offsets.of("g", "alerts"), offsets.of("g", "policies"), offsets.bounds("policies")) == (5, None, None)


def test_registering_keeps_what_is_there(offsets):
    offsets.commit([("g", "alerts", 5)], durable=False, register=True)
    offsets.commit([("g", "alerts", 0), ("g", "policies", 2)], durable=False, register=True)
    assert offsets.all() == {"g": {"alerts": 5, "policies": 2}}
    offsets.forget("g")
    assert offsets.all() == {}


def test_durable_and_not_share_one_file_and_the_pragma_follows(offsets):
    for durable in (False, True, False):
        offsets.commit([("g", "alerts", 1)], durable=durable)
        (mode,) = offsets._open().execute("PRAGMA synchronous").fetchone()
        assert mode == (2 if durable else 1)


def test_a_lease_has_one_holder_and_odd_names_are_files(tmp_path):
    one, two = Lease(tmp_path / "leases", "a/b c", "alerts"), Lease(tmp_path / "leases", "a/b c", "alerts")
    other = Lease(tmp_path / "leases", "a/b c", "policies")
    assert (one.take(), two.take(), other.take()) == (True, False, True)
    one.release()
    one.release()
    assert two.take()
    assert two.held
    two.release()
    other.release()
