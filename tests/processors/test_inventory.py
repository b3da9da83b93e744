# SPDX-License-Identifier: Apache-2.0
"""Whose a behaviour is, when cgroups nest, end, or are not there at all."""

from __future__ import annotations

import pytest

from processors.inventory import Inventory
from schemas.behaviour import Behaviour
from schemas.errors import DecodeError
from schemas.identity import Identity, Kind, encode

HEX = "ab" * 32


def put(inventory: Inventory, *identities: Identity) -> None:
    for identity in identities:
        inventory.apply(identity.key, encode(identity))


def container(**fields: object) -> Identity:
    return Identity(**{"kind": Kind.CONTAINER, "node": "n", "uid": HEX, **fields})


def test_a_container_under_a_host_cgroup_is_not_the_host():
    inventory = Inventory()
    put(inventory, Identity(kind=Kind.HOST, node="n", uid="slice", cgroups=(5,), cgroup_path="/system.slice"))
    inventory.learn_cgroups("n", {9: f"/system.slice/docker-{HEX}.scope"})
    assert inventory.find("n", Behaviour(cgroup=9)) is None
    assert inventory.give_up("n", Behaviour(cgroup=9)).uid == HEX


def test_more_cgroups_than_are_remembered_make_none_but_the_oldest_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path that is learned later must have those judged again that were asked about before."""
    monkeypatch.setattr("processors.inventory._PATHS", 3)
    inventory = Inventory()
    put(inventory, Identity(kind=Kind.NODE, node="n", uid="n", cgroups=(1,), pid_ns=1, mnt_ns=2))
    for cgroup in (11, 12, 13, 13, 14):
        assert inventory.find("n", Behaviour(cgroup=cgroup)) is None
    for cgroup, again in ((11, 0), (12, 1), (13, 1), (14, 1)):
        before = inventory.epoch
        inventory.learn_cgroups("n", {cgroup: f"/{cgroup}"})
        assert inventory.epoch - before == again, cgroup


def test_host_namespaces_do_not_make_a_container_the_host():
    inventory = Inventory()
    put(inventory, Identity(kind=Kind.NODE, node="n", uid="n", cgroups=(1,), pid_ns=1, mnt_ns=2))
    inventory.learn_cgroups("n", {9: f"/docker/{HEX}"})
    assert inventory.find("n", Behaviour(cgroup=9, pid_ns=1, mnt_ns=2)) is None, (
        "the runtime's own steps before the exec"
    )
    assert inventory.find("n", Behaviour(cgroup=8, pid_ns=1, mnt_ns=2)).kind is Kind.NODE


def test_namespaces_go_to_the_living():
    inventory = Inventory()
    old, new = container(uid="old", pid_ns=3, mnt_ns=4), container(uid="new", pid_ns=3, mnt_ns=4)
    place = Behaviour(cgroup=0, pid_ns=3, mnt_ns=4)
    put(inventory, old, container(uid="old", pid_ns=3, mnt_ns=4, ended=9.0))
    assert inventory.find("n", place).uid == "old", "late events of an ended container"
    put(inventory, new)
    assert inventory.find("n", place).uid == "new"
    put(inventory, container(uid="old", pid_ns=3, mnt_ns=4, ended=10.0))
    assert inventory.find("n", place).uid == "new"
    inventory.apply(b"n/old", None)
    assert inventory.find("n", place).uid == "new"


def test_the_same_cgroup_number_on_two_nodes():
    inventory = Inventory()
    put(inventory, container(cgroups=(7,)), container(node="m", uid="other", cgroups=(7,)))
    assert inventory.find("n", Behaviour(cgroup=7)).uid == HEX
    assert inventory.find("m", Behaviour(cgroup=7)).uid == "other"
    assert inventory.find("x", Behaviour(cgroup=7)) is None


def test_a_moved_container_leaves_its_old_cgroup():
    inventory = Inventory()
    put(inventory, container(cgroups=(7, 8)), container(cgroups=(8,)))
    assert inventory.find("n", Behaviour(cgroup=7)) is None
    assert inventory.find("n", Behaviour(cgroup=8)).uid == HEX


def test_bad_bytes_are_refused_and_change_nothing():
    inventory = Inventory()
    put(inventory, container(cgroups=(7,)))
    epoch = inventory.epoch
    with pytest.raises(DecodeError, match="expected an identity"):
        inventory.apply(b"n/x", b"\xc1")
    assert inventory.epoch == epoch
    assert inventory.find("n", Behaviour(cgroup=7)).uid == HEX
