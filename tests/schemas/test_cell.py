# SPDX-License-Identifier: Apache-2.0
"""Cells are cut in the middle, to the very width, and short ones are left alone."""

from hypothesis import given
from hypothesis import strategies as st

from schemas.cell import shortened


@given(st.text(max_size=300), st.integers(3, 200))
def test_a_cell_is_never_wider_and_keeps_both_ends(text: str, most: int) -> None:
    cut = shortened(text, most)
    assert len(cut) <= most
    if len(text) <= most:
        assert cut == text
    else:
        head, tail = cut.split("…", 1) if text.count("…") == 0 else ("", cut[-1])
        assert len(cut) == most
        assert text.startswith(head)
        assert text.endswith(tail)
        assert tail
