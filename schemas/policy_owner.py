# SPDX-License-Identifier: Apache-2.0
"""Whose a policy on the bus is: who applied it with `hauberk apply`, or the cluster whose object it is."""

from __future__ import annotations

from typing import Final, Protocol

OWNER: Final = "owner"
"""Header of a record of `policies.v1`; none means that `hauberk apply` wrote it."""


CLUSTER_OWNER: Final = "cluster"
"""The value of the header for an object of a cluster."""


class _WithHeaders(Protocol):
    @property
    def headers(self) -> tuple[tuple[str, bytes], ...]: ...


def owner_of(record: _WithHeaders) -> str:
    """`cluster`, or `hauberk apply`."""
    return next((value.decode("utf-8", "replace") for name, value in record.headers if name == OWNER), "hauberk apply")
