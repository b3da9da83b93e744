# SPDX-License-Identifier: Apache-2.0
"""What clang could not resolve is refused with its name, before any verifier is asked. Pure."""

from __future__ import annotations

import struct

import pytest

from kernel.linker import CALLBACKS, FUNCTIONS, SUBPROGRAMS, linked, refuse_unresolved
from schemas.errors import KernelError

END = struct.pack("=BBhi", 0x95, 0, 0, 0)


def call(number: int, source: int = 0) -> bytes:
    return struct.pack("=BBhi", 0x85, source << 4, 0, number)


@pytest.mark.parametrize("what", [call(-1, 1), call(7, 1), call(0), call(-1), call(0x7FFFFEFF)])
def test_a_call_that_nothing_resolves_is_refused(what: bytes) -> None:
    code = struct.pack("=BBhi", 0xB7, 0, 0, 0) + what + END
    with pytest.raises(KernelError, match="instruction 1 of `lsm_file_open` calls what nothing resolves"):
        linked("lsm_file_open", {"lsm_file_open": code}, lambda _: None)
    with pytest.raises(KernelError, match="nothing resolves"):
        refuse_unresolved("hop_call", code)


def test_a_call_in_a_subprogram_is_refused_by_its_name() -> None:
    mark, name = next(iter(SUBPROGRAMS.items()))
    with pytest.raises(KernelError, match=f"of `{name}` calls"):
        linked("lsm_a", {"lsm_a": call(mark) + END, name: call(-1, 1) + END}, lambda _: None)


def test_a_kernel_function_that_this_kernel_lacks_is_named() -> None:
    mark, name = next(iter(FUNCTIONS.items()))
    with pytest.raises(KernelError, match=f"kernel function `{name}`"):
        linked("lsm_a", {"lsm_a": call(mark) + END}, lambda _: None)


def test_helpers_kernel_functions_and_marks_are_linked() -> None:
    mark, name = next(iter(SUBPROGRAMS.items()))
    address = struct.pack("=BBhiBBhi", 0x18, 1, 0, 1, 0, 0, 0, 0x48415542)
    code = {"lsm_a": call(14) + call(90000, 2) + call(mark) + address + END, name: END, CALLBACKS[1]: END}
    made, starts = linked("lsm_a", code, lambda _: None)
    assert starts == (0, 6, 7)
    assert len(made) == 8 * 8
