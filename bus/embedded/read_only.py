# SPDX-License-Identifier: Apache-2.0
"""A look at a compacted topic of an embedded log without opening the log: for shells that complete a name.

Opening a bus starts threads, makes directories and puts damaged files aside; a key press must do none of that and must not
wait. It must never be used where an answer is owed: what cannot be read at once is as good as empty. Neighbours: `compacted`
(the table), `layout` (where it lies).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from schemas.topics import Topic

_WAIT: float = 0.02
"""Seconds to wait for a writer; it holds the file for less."""


def peek(directory: str, topic: Topic, most: int = 2000) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of the newest `most` keys in the log at `directory`; nothing when there is none or it cannot be read."""
    file = Path(os.path.abspath(directory), "topics", f"{topic.name}.v{topic.version}", "compacted.db")
    # Without a log beside it nobody has the table open, and SQLite would make one just to read.
    still = "" if os.path.exists(f"{file}-wal") else "&immutable=1"
    try:
        connection = sqlite3.connect(f"file:{quote(str(file))}?mode=ro{still}", uri=True, timeout=_WAIT)
    except sqlite3.Error:
        return
    try:
        yield from connection.execute(
            "SELECT key, value FROM record WHERE value IS NOT NULL ORDER BY offset DESC LIMIT ?", (most,)
        )
    except sqlite3.Error:
        return
    finally:
        connection.close()
