# SPDX-License-Identifier: Apache-2.0
"""The text of a table's cell: a name that a workload chose may have 4,096 bytes, a line of a terminal has not."""

from __future__ import annotations

from typing import Final

MOST: Final = 120
"""Characters of a cell before its middle is left out."""


def shortened(text: str, most: int = MOST) -> str:
    """`text` of at most `most` characters: what is cut is the middle, marked by an ellipsis; the end of a path names the file."""
    if len(text) <= most:
        return text
    head = most // 3
    return f"{text[:head]}…{text[head + 1 - most :]}"
