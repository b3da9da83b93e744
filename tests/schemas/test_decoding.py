# SPDX-License-Identifier: Apache-2.0
"""Every door for encoded words: whatever the bytes are, the answer is a struct or a DecodeError."""

from __future__ import annotations

import sys
from collections.abc import Callable

import msgspec
import pytest

from schemas import alert, enforcement, frame, identity, summary, telemetry
from schemas.behaviour import Behaviour
from schemas.errors import DecodeError
from schemas.frame import FrameHeader
from schemas.identity import Identity, Kind
from schemas.operations import Access
from schemas.summary import Summary

DOORS: dict[str, Callable[[bytes], object]] = {
    "frame": frame.decode, "telemetry": telemetry.decode, "summary": summary.decode, "plan": enforcement.decode_plan,
    "receipt": enforcement.decode_receipt, "identity": identity.decode, "alert": alert.decode_alert, "log": alert.decode_log,
}  # fmt: skip
BAD = {
    "nothing": b"", "not UTF-8": b"\x98" + b"\xa1\xff" * 8, "not UTF-8 in JSON": b'{"UpdatedTime": "\xff"}',
    "deep": b"\x91" * 200_000, "deep JSON": b"[" * 200_000, "deep in an unknown field": b'{"x":' * 100_000,
    "deep after known fields": b"\x9f" + b"\x91" * 200_000, "a size that is not there": b"\xdd\xff\xff\xff\xff",
    "a map that is not there": b"\xdf\xff\xff\xff\xff", "half a surrogate": b'{"UpdatedTime": "\\ud800"}',
    "a number of 5000 digits": b'{"Timestamp": ' + b"1" * 5000 + b"}", "text of 4 GiB": b"\xdb\xff\xff\xff\xff",
}  # fmt: skip


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("bad", BAD)
def test_a_door_gives_a_word_or_an_error_of_ours(door: str, bad: str) -> None:
    with pytest.raises(DecodeError, match="expected") as said:
        DOORS[door](BAD[bad])
    assert "\n" not in str(said.value)


ONE = Identity(kind=Kind.NODE, node="n", uid="u")
COUNTED = Summary(node="n", run="r", first_frame=0, last_frame=0, bucket=60, identity=ONE, entries=())


@pytest.mark.parametrize("changes", [
    {"node": ""}, {"node": "a/b"}, {"cgroups": (-1,)}, {"started": float("nan")}, {"ended": float("inf")}, {"mnt_ns": -1},
    {"root_pid": -1},
], ids=str)  # fmt: skip
def test_an_identity_that_cannot_be(changes: dict[str, object]) -> None:
    with pytest.raises(DecodeError):
        identity.decode(identity.encode(msgspec.structs.replace(ONE, **changes)))


@pytest.mark.parametrize(
    "changes", [{"bucket": 2**63}, {"bucket": -60}, {"last_frame": 2**63}, {"first_frame": -1}], ids=str
)
def test_a_summary_that_no_store_can_keep(changes: dict[str, object]) -> None:
    assert summary.decode(summary.encode(COUNTED)) == COUNTED
    with pytest.raises(DecodeError):
        summary.decode(summary.encode(msgspec.structs.replace(COUNTED, **changes)))


def test_a_telemetry_frame_is_held_to_the_header_of_a_frame() -> None:
    header = FrameHeader(node="n", boot="b", run="r", number=0, clock_offset_ns=2**63, events=0)
    made = telemetry.TelemetryFrame(header=header, identities=(), behaviours=(), processes=(), rows=b"")
    with pytest.raises(DecodeError):
        telemetry.decode(telemetry.encode(made))


def test_a_combination_of_access_modes_is_looked_up_and_not_made_anew() -> None:
    wire = msgspec.msgpack.encode(Behaviour(access=Access.WRITE | Access.CREATE | Access.TRUNCATE))
    decode = msgspec.msgpack.Decoder(Behaviour).decode
    first = decode(wire)
    called: list[str] = []
    sys.setprofile(lambda frame, what, _: called.append(frame.f_code.co_name) if what == "call" else None)
    try:
        again = decode(wire)
    finally:
        sys.setprofile(None)
    assert again.access is first.access is Access.WRITE | Access.CREATE | Access.TRUNCATE
    assert called == ["_missing_"], "the library's own makes a member: five times the rest of the decoding"
