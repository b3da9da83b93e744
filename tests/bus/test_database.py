# SPDX-License-Identifier: Apache-2.0
"""Opening databases: who comes second waits for who comes first."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bus.embedded.database import connect


def test_threads_that_make_a_file_at_the_same_time_all_get_it(tmp_path: Path) -> None:
    # Without waiting for each other, a few of these fail.
    def make(path: Path, barrier: threading.Barrier) -> str:
        barrier.wait(60)
        connection = connect(path, create=True)
        try:
            return str(connection.execute("PRAGMA journal_mode").fetchone()[0])
        finally:
            connection.close()

    for number in range(100):
        barrier = threading.Barrier(3)
        with ThreadPoolExecutor(3) as pool:
            made = [pool.submit(make, tmp_path / f"{number}.db", barrier) for _ in range(3)]
            assert [one.result(60) for one in made] == ["wal"] * 3
