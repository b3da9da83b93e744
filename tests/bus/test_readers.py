# SPDX-License-Identifier: Apache-2.0
"""Who reads a topic is seen by every process that has the log open, from the first moment to the last."""

from __future__ import annotations

import fcntl

from bus.embedded.readers import TopicReaders


def test_a_reader_is_seen_by_others_for_as_long_as_it_reads(tmp_path):
    one, other = TopicReaders(tmp_path), TopicReaders(tmp_path)
    with one.reading("events.raw"):
        assert other.elsewhere("events.raw")
        assert not other.elsewhere("telemetry")
        assert not one.elsewhere("events.raw"), "its own do not count"
    assert not other.elsewhere("events.raw")
    assert list((tmp_path / "readers").iterdir()) == []


def test_who_looks_while_a_reader_comes_does_not_hide_it(tmp_path, monkeypatch):
    """A file that is made and not locked yet looks like one that a killed process left."""
    one, other = TopicReaders(tmp_path), TopicReaders(tmp_path)
    lock, looks = fcntl.flock, 2

    def late(descriptor, how):
        nonlocal looks
        if looks:
            looks -= 1
            # The one that looks locks as well, which is its own business.
            with monkeypatch.context() as plain:
                plain.setattr(fcntl, "flock", lock)
                assert not other.elsewhere("events.raw")
        lock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with one.reading("events.raw"):
        assert looks == 0
        assert other.elsewhere("events.raw")
    assert list((tmp_path / "readers").iterdir()) == []


def test_a_directory_that_cannot_be_written_keeps_nobody_from_reading(tmp_path):
    one = TopicReaders(tmp_path)
    (tmp_path / "readers").rmdir()
    with one.reading("events.raw"):
        assert TopicReaders.elsewhere(one, "events.raw"), "it cannot be told"
