# SPDX-License-Identifier: Apache-2.0
"""Each cause that no policy names is told by the words of its own, and no other denial by them."""

from __future__ import annotations

import pytest

from processors.denial_reason import UNKNOWN, denial_reason
from schemas.behaviour import Behaviour
from schemas.operations import Access, Backend, Operation
from schemas.socket_names import EXTENSION_HEADERS, INET, INET6

PACKET = {
    "operation": Operation.SEND, "enforcer": Backend.CGROUP, "family": INET6, "protocol": 60, "address": "2001:db8::5",
}  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"operation": Operation.CALL, "syscall_name": "io_uring_setup", "enforcer": Backend.SIGNAL}, "enforcement.io_uring"),
        ({"operation": Operation.MOUNT, "enforcer": Backend.BPF_LSM}, "enforcement.mounts"),
        ({"resource": ".../key", "access": Access.READ | Access.PARTIAL, "enforcer": Backend.BPF_LSM}, "enforcement.unresolved"),
        ({"resource": ".../key", "access": Access.PARTIAL, "enforcer": Backend.SIGNAL}, "enforcement.unresolved"),
        *((PACKET | {"protocol": number}, "extension headers") for number in sorted(EXTENSION_HEADERS)),
    ],
)  # fmt: skip
def test_a_cause_that_the_behaviour_shows(fields, word):
    said = denial_reason(Behaviour(**fields))
    assert word in said
    assert said != UNKNOWN


@pytest.mark.parametrize(
    "fields",
    [
        {"resource": "/etc/a", "access": Access.READ, "enforcer": Backend.BPF_LSM},
        {"operation": Operation.MOUNT, "enforcer": Backend.APPARMOR},
        PACKET | {"protocol": 6},
        PACKET | {"port": 80},
        PACKET | {"family": INET},
        PACKET | {"operation": Operation.SOCKET},
        PACKET | {"enforcer": Backend.BPF_LSM},
    ],
)
def test_no_cause_is_claimed_that_was_not_seen(fields):
    assert denial_reason(Behaviour(**fields)) == UNKNOWN
