# SPDX-License-Identifier: Apache-2.0
"""Groups: offsets never go back, registering keeps what is there, a lease has one holder."""

from __future__ import annotations

import pytest

from bus.embedded.offsets import Lease, Offsets


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


def test_a_holder_that_hangs_loses_its_lease_to_whoever_asks_and_knows_it(tmp_path):
    now = 1000.0
    one, two, three = (Lease(tmp_path / "leases", "g", "alerts", 60.0, lambda: now) for _ in range(3))
    assert one.take()
    now += 59.0
    one.beat()
    now += 59.0
    assert (two.take(), one.lost) == (False, False)
    now += 2.0
    assert (two.take(), three.take()) == (True, False)
    assert (one.lost, two.lost) == (True, False)
    one.release()
    assert not one.take()
    two.release()
    assert one.take(), "a lease that was given back is free at once"
    one.release()


def test_only_one_of_those_who_wait_gets_the_lease_of_one_that_hangs(tmp_path):
    now = 1000.0
    one, two = (Lease(tmp_path / "leases", "g", "alerts", 60.0, lambda: now) for _ in range(2))
    assert one.take()
    now += 61.0
    assert two._hangs()
    third = Lease(tmp_path / "leases", "g", "alerts", 60.0, lambda: now)
    assert third.take()
    assert not two._renew(), "it is looked at again under the lock: the file is the third one's by now"
    assert not third.lost
    one.release()
    third.release()
