# SPDX-License-Identifier: Apache-2.0
"""A telemetry frame: a table of enriched behaviours and the rows that refer to them by id. One record of `telemetry.v1`.

The form of a raw frame with its definitions enriched: expansion to one JSON object per event happens at the edge that
needs it. `rows` has the row layout of `schemas.frame`; rows whose id is not in the table were not asked to be logged.
"""

from __future__ import annotations

from typing import Final

import msgspec

from schemas.behaviour import Behaviour
from schemas.decoding import Count, decoder
from schemas.frame import FrameHeader
from schemas.identity import Identity
from schemas.verdict import Verdict

CUT: Final = "\0"
"""Stands for arguments that are not known: no argument holds a NUL, so no `allowedArgs` can name it."""


FROM_DNS: Final = "dns/"
"""Before a name that a workload learnt of a name server: it is what the workload was told, and nobody vouches for it."""


class RemotePeer(msgspec.Struct, frozen=True, array_like=True):
    """Who the other side of a connection was, as the cluster tells: `pod/NAME`, `svc/NAME` or `node/NAME`, its namespace, and a pod's owner
    as `Kind/name`; of an address that the cluster does not know `dns/NAME`, what its workload had asked for. "" when that is not known."""

    name: str = ""
    namespace: str = ""
    owner: str = ""


NOBODY: Final = RemotePeer()


class Enriched(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """A behaviour with whose it is (index into `identities`) and what was judged."""

    behaviour: Behaviour
    identity: Count
    verdict: Verdict
    log: bool = True
    user: str = ""
    """Name of the acting uid on the node; "" for containers, whose uids are names of their own."""
    peer: RemotePeer = NOBODY


class ProcessContext(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """One exec image: what `process` of a row refers to. `arguments`: argv; `cut`: not all of it. `called`: the path that exec was
    given, as it was written; "" when it is not known."""

    process: int
    executable: str = ""
    parent: str = ""
    arguments: tuple[str, ...] = ()
    cwd: str = ""
    tty: str = ""
    parent_process: int = 0
    start: int = 0
    pid: int = 0
    ppid: int = 0
    session: int = 0
    loginuid: int = 0
    cut: bool = False
    called: str = ""

    @property
    def judged(self) -> tuple[str, ...]:
        """`arguments` as rules are to see them: what was cut away may have been anything, so something follows that no list allows."""
        return (*self.arguments, CUT) if self.cut and self.arguments else self.arguments


class TelemetryFrame(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """Self-contained. `folded` as in `schemas.frame`."""

    header: FrameHeader
    identities: tuple[Identity, ...]
    behaviours: tuple[Enriched, ...]
    processes: tuple[ProcessContext, ...]
    rows: bytes
    folded: bytes = b""


encode = msgspec.msgpack.Encoder().encode
_decode = decoder(TelemetryFrame, "a telemetry frame")


def decode(data: bytes) -> TelemetryFrame:
    """The telemetry frame in `data`; DecodeError when it is not one."""
    return _decode(data)
