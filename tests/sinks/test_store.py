# SPDX-License-Identifier: Apache-2.0
"""The store counts exactly, whatever is repeated, reordered or killed; it answers beside a writer; it says what is broken."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import DecodeError, DiskFull, Incompatible, PermissionMissing, SettingsError, Unavailable
from schemas.operations import Class, Operation
from sinks.store import layout, ranges, rollup, sqlite
from sinks.store.queries import SqliteReader
from sinks.store.sqlite import SqliteStore
from sinks.store.store import Query


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "store.db")


@pytest.fixture
def store(path):
    store = SqliteStore(path)
    yield store
    store.close()


def counts(reader, query=None):
    return {
        (row.identity.uid, row.behaviour.resource, row.status): (row.count, row.first, row.last)
        for row in reader.totals(query or Query())
    }


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=40))
def test_ranges_are_a_set_of_numbers(adds):
    have: set[int] = set()
    kept: list[int] = []
    for first, length in adds:
        new = set(range(first, first + length + 1))
        expected = "covered" if new <= have else "overlaps" if new & have else "new"
        assert ranges.fit(kept, first, first + length) == expected
        kept = ranges.add(kept, first, first + length)
        have |= new
        assert {n for low, high in zip(kept[::2], kept[1::2], strict=True) for n in range(low, high + 1)} == have
        assert all(high + 1 < low for high, low in pairwise(kept) if kept.index(high) % 2), kept


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(1, 9)),
        min_size=1,
        max_size=12,
        unique_by=lambda t: t[:2],
    ),
    st.randoms(use_true_random=False),
)
def test_repeats_in_any_order_give_equal_counts(tmp_path_factory, make, records, order: random.Random):
    words = [
        make.summary(frame, None, make.entry(count, resource=f"/{count % 3}"), identity=make.identity(f"uid{who}"))
        for who, frame, count in records
    ]
    expected: dict[tuple[str, str], int] = {}
    for word in words:
        key = (word.identity.uid, word.entries[0].behaviour.resource)
        expected[key] = expected.get(key, 0) + word.entries[0].count
    shuffled = words + [order.choice(words) for _ in range(len(words))]
    order.shuffle(shuffled)
    store = SqliteStore(str(tmp_path_factory.mktemp("store") / "s.db"))
    try:
        while shuffled:
            size = order.randint(1, len(shuffled))
            store.apply(shuffled[:size], [])
            shuffled = shuffled[size:]
        got = {(row.identity.uid, row.behaviour.resource): row.count for row in store.totals(Query())}
        assert got == expected
    finally:
        store.close()


def test_rows_of_one_behaviour_come_one_after_another_as_one_object(store, make):
    for who in range(5):
        entries = [make.entry(1, resource=f"/{what}") for what in range(20)]
        store.apply([make.summary(who, None, *entries, identity=make.identity(f"uid{who}"))], [])
    rows = list(store.behaviours(Query()))
    assert len({id(row.behaviour) for row in rows}) == 20
    assert sum(one.behaviour is not other.behaviour for one, other in pairwise(rows)) == 19
    assert len({id(row.behaviour) for row in store.totals(Query())}) == 20


def test_what_is_remembered_is_bounded_and_counts_stay_exact(path, make, monkeypatch):
    monkeypatch.setattr(sqlite, "_NAMES_MOST", 4)
    store = SqliteStore(path, known=4)
    for frame in range(40):
        who = make.identity(f"uid{frame % 10}")
        entry = make.entry(1, f"status {frame % 10}", resource=f"/{frame % 20}")
        store.apply([make.summary(frame, None, entry, identity=who, run=f"run-{frame % 10}")], [])
    tables = (store._identities, store._runs, store._verdicts, store._behaviours)
    assert [len(one) <= 4 for one in tables] == [True] * 4
    assert sorted(count for count, _, _ in counts(store).values()) == [2] * 20
    store.close()


def test_a_repeat_after_reopening_is_still_a_repeat(path, make):
    first = SqliteStore(path)
    assert first.apply([make.summary(0, 3)], []).summaries == 1
    first.close()
    second = SqliteStore(path)
    assert second.apply([make.summary(0, 3), make.summary(1, 2)], []).repeated == 2
    assert second.apply([make.summary(2, 5)], []).overlapping == 1
    assert [row.count for row in second.totals(Query())] == [2]
    second.close()


def test_another_run_or_bucket_is_not_a_repeat(store, make):
    words = [make.summary(0), make.summary(0, run="run-2"), make.summary(0, bucket=make.start + 60)]
    assert store.apply(words, []).summaries == 3
    assert [row.count for row in store.totals(Query())] == [3]


def test_numbers_of_one_boot_do_not_split_a_behaviour(store, make):
    store.apply([make.summary(0, None, make.entry(cgroup=5, id=9)), make.summary(1, None, make.entry(cgroup=6))], [])
    (row,) = store.totals(Query())
    assert (row.count, row.behaviour.cgroup) == (2, 0)


def test_roll_up_changes_no_sum_and_repeats_stay_repeats(store, make):
    day = 86400
    now = make.start // day * day + day
    words = [
        make.summary(n, None, make.entry(n + 1), bucket=now - age) for n, age in enumerate((60, 3600, 2 * day, 6 * day))
    ]
    store.apply(words, [])
    before = counts(store)
    assert store.tidy(now) == 2
    assert counts(store) == before
    assert store.apply(words, []).repeated == 4
    assert store.tidy(now + 16 * day) > 0
    assert counts(store) == before
    late = store.apply(words, [])
    assert (late.late, counts(store)) == (4, before)
    assert store.tidy(now + 120 * day) > 0
    assert counts(store) == {}
    assert store.identities(Query()) == []
    assert store.apply([make.summary(9, bucket=now + 119 * day)], []).summaries == 1


def test_queries_by_everything(store, make):
    one = make.summary(
        0, None, make.entry(1), make.entry(2, status="Deny", resource="/bin/sh", operation=Operation.EXEC)
    )
    other = make.summary(
        0, None, make.entry(4, operation=Operation.CONNECT, address="10.0.0.1", port=53),
        identity=make.identity("abc", labels={"app": "db", "tier": "back"}, namespace="data"), bucket=make.start + 120,
    )  # fmt: skip
    store.apply([one, other], [])

    def sums(**query):
        return [row.count for row in store.totals(Query(**query))]

    assert sums() == [4, 2, 1]
    assert sums(namespace="shop") == [2, 1]
    assert sums(labels=(("app", "db"),)) == [4]
    assert sums(labels=(("app", "db"), ("tier", "front"))) == []
    assert sums(pod="web-abc") == [4]
    assert sums(container="web", limit=1) == [4]
    assert sums(uid="c0f") == [2, 1]
    assert sums(operations=(Operation.OPEN,)) == [1]
    assert sums(classes=(Class.NETWORK, Class.PROCESS)) == [4, 2]
    assert sums(status=("Deny",)) == [2]
    assert sums(since=make.start + 60) == [4]
    assert sums(until=make.start + 120) == [2, 1]
    assert sums(kinds=("host",)) == []
    assert sorted(row.count for row in store.behaviours(Query(since=make.start))) == [1, 2, 4]
    assert [
        (p.start - make.start // 300 * 300, p.cls, p.count) for p in store.series(Query(classes=(Class.FILE,)), 300)
    ] == [(0, Class.FILE, 1)]
    assert {identity.namespace for identity in store.identities(Query())} == {"shop", "data"}


def test_the_name_of_an_identity_becomes_complete_and_stays_so(store, make):
    early = make.identity(complete=False, container_name="", pod="", labels={}, namespace="")
    store.apply([make.summary(0, identity=early)], [])
    store.apply([make.summary(1)], [])
    store.apply([make.summary(2, identity=early)], [])
    (row,) = store.totals(Query(labels=(("app", "web"),)))
    assert (row.count, row.identity.pod) == (3, "web-c0ffee")


def test_alerts_are_kept_once_and_only_the_latest(path, make):
    store = SqliteStore(path, max_alerts=3)
    alerts = [make.alert(n, Operation="File" if n % 2 else "Process") for n in range(5)]
    assert store.apply([], alerts).alerts == 5
    assert store.apply([], alerts[3:]).alerts == 0
    assert store.apply([], [make.alert(4, Mode="shadow", Operation="Process")]).alerts == 1
    found = store.alerts(Query(namespace="shop", labels=(("app", "web"),)))
    assert [stored.alert.PID for stored in found] == [4, 4, 3]
    assert [stored.alert.PID for stored in store.alerts(Query(classes=(Class.FILE,)))] == [3]
    assert store.alerts(Query(), after=found[0].ident) == []
    assert store.alerts(Query(pod="other")) == []
    assert len(store.alerts(Query(since=make.start + 4, limit=1))) == 1
    store.close()


def test_a_reader_in_another_process_sees_what_was_applied(path, store, make):
    store.apply([make.summary(0, None, make.entry(7))], [])
    code = textwrap.dedent("""
        import sys
        from sinks.store.queries import SqliteReader
        from sinks.store.store import Query
        reader = SqliteReader(sys.argv[1])
        for line in sys.stdin:
            print(sum(row.count for row in reader.totals(Query())), flush=True)
    """)
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as reader:
        reader.stdin.write("\n")
        assert reader.stdout.readline() == "7\n"
        for frame in range(1, 20):
            store.apply([make.summary(frame)], [])
        reader.stdin.write("\n")
        assert reader.stdout.readline() == "26\n"
        reader.stdin.close()
        assert reader.wait(60) == 0


def test_kill_9_in_the_middle_leaves_counts_and_their_memory_together(path, make, tmp_path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from schemas.summary import decode
        from sinks.store.sqlite import SqliteStore
        store = SqliteStore(sys.argv[1])
        words = [decode(p.read_bytes()) for p in sorted(Path(sys.argv[2]).iterdir())]
        print("go", flush=True)
        for word in words:
            store.apply([word], [])
            print("applied", flush=True)
    """)
    from schemas.summary import encode

    words = [make.summary(n, None, make.entry(1), make.entry(2, resource=f"/{n}")) for n in range(400)]
    directory = tmp_path / "words"
    directory.mkdir()
    for number, word in enumerate(words):
        (directory / f"{number:04}").write_bytes(encode(word))
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", code, path, str(directory)], stdout=subprocess.PIPE) as writer:
            assert writer.stdout.readline() == b"go\n"
            for _ in range(random.randint(1, 60)):
                assert writer.stdout.readline() == b"applied\n"
            # In the middle of another one.
            deadline = time.monotonic() + random.uniform(0.0, 0.01)
            while time.monotonic() < deadline and writer.poll() is None:
                time.sleep(0.0005)
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    store = SqliteStore(path)
    done = store.apply(words, [])
    assert done.summaries + done.repeated == 400
    assert sum(row.count for row in store.totals(Query())) == 1200
    assert done.repeated > 0
    store.close()


def test_a_damaged_file_says_what_to_do_and_is_moved_only_on_request(path, make):
    store = SqliteStore(path)
    store.apply([make.summary(n, None, make.entry(1, resource=f"/{n}")) for n in range(500)], [])
    store.close()
    with open(path, "r+b") as file:
        file.seek(8192 * 3)
        # Not at random: by chance a page may look like one.
        file.write(b"\xa5" * (8192 * 8))
    with pytest.raises(DecodeError, match=r"is damaged.*move it away"):  # noqa: PT012 - either call may be the one to see it
        reader = SqliteReader(path)
        try:
            reader.totals(Query())
        finally:
            reader.close()
    assert os.path.exists(path)
    for tail in ("", "-wal", "-shm"):
        Path(path + tail).unlink(missing_ok=True)
    fresh = SqliteStore(path)
    assert fresh.totals(Query()) == []
    fresh.close()


def test_a_file_that_is_no_database(path):
    with open(path, "wb") as file:
        file.write(b"not a database at all" * 100)
    with pytest.raises(DecodeError, match="damaged"):
        SqliteStore(path)


def test_another_programs_database_is_left_alone(path):
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs(x)")
    other.close()
    with pytest.raises(Incompatible, match="another program"):
        SqliteStore(path)
    with pytest.raises(Incompatible, match="another program"):
        SqliteReader(path)


def test_a_later_schema_is_not_read(path):
    SqliteStore(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=2")
    db.commit()
    db.close()
    with pytest.raises(Incompatible, match=r"schema version 1 .* got 2"):
        SqliteStore(path)


def test_no_store_yet_no_directory_and_a_directory_in_its_place(tmp_path):
    with pytest.raises(SettingsError, match="there is none; start `hauberk up`"):
        SqliteReader(str(tmp_path / "none.db"))
    with pytest.raises(SettingsError, match="does not exist; create it"):
        SqliteStore(str(tmp_path / "no" / "s.db"))
    with pytest.raises(SettingsError, match="another kind"):
        SqliteStore(str(tmp_path))


def test_the_file_is_for_its_owner_alone(path):
    SqliteStore(path).close()
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_full_disk_is_temporary_and_loses_nothing(path, store, make):
    # A cap on pages stands for the disk: SQLite reports both with the same code.
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages + 2}")
    words = [make.summary(0, None, *[make.entry(1, resource=f"/{n}/{'x' * 500}") for n in range(300)])]
    with pytest.raises(DiskFull, match="disk is full; free space"):
        store.apply(words, [])
    assert store.totals(Query()) == []
    store._db.execute("PRAGMA max_page_count=1000000")
    assert store.apply(words, []).summaries == 1
    assert len(store.totals(Query())) == 300


def test_errors_of_sqlite_become_ours():
    locked = sqlite3.OperationalError("database is locked")
    locked.sqlite_errorcode = sqlite3.SQLITE_BUSY
    assert isinstance(layout.translate(locked, "x"), Unavailable)
    readonly = sqlite3.OperationalError("attempt to write a readonly database")
    readonly.sqlite_errorcode = sqlite3.SQLITE_READONLY
    assert isinstance(layout.translate(readonly, "x"), PermissionMissing)


def test_keep_defaults_are_in_order():
    keep = rollup.Keep()
    assert keep.minutes_days < keep.exact_days < keep.hours_days < keep.days
