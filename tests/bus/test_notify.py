# SPDX-License-Identifier: Apache-2.0
"""Hints between processes: heard, never by the sender, and the sockets of the dead are swept."""

from __future__ import annotations

import socket

import pytest

from bus.embedded.notify import LOOK_SECONDS, LOOK_SECONDS_WITHOUT_HINTS, WriteNotifier


@pytest.fixture
async def pair(tmp_path):
    heard: dict[str, list[str]] = {"one": [], "two": []}
    # Longer than a socket path may be.
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    wakes = [WriteNotifier(directory, heard[name].append) for name in heard]
    for wake in wakes:
        wake.open()
    yield wakes, heard, directory / "wake"
    for wake in wakes:
        wake.close()
    assert list((directory / "wake").iterdir()) == []


async def test_the_others_hear_and_the_sender_does_not(pair, until):
    (one, _), heard, _ = pair
    one.tell({"alerts"})
    one.tell({"alerts", "policies"})
    await until(lambda: set(heard["two"]) == {"alerts", "policies"})
    assert heard["one"] == []
    assert one.look_seconds == LOOK_SECONDS


async def test_the_socket_of_a_dead_process_is_removed(pair, until):
    (one, _), heard, directory = pair
    dead = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    one_directory = f"/proc/self/fd/{one._descriptor}"
    dead.bind(f"{one_directory}/1-dead")
    dead.close()
    one.tell({"alerts"})
    await until(lambda: heard["two"] == ["alerts"])
    assert not (directory / "1-dead").exists()


async def test_a_neighbour_that_does_not_listen_never_blocks_the_teller(pair):
    (one, _), _, _ = pair
    for _ in range(5000):
        one.tell({"alerts"})


async def test_without_sockets_readers_look_often(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError("no sockets here")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    wake = WriteNotifier(tmp_path, lambda name: None)
    wake.open()
    wake.tell({"alerts"})
    assert wake.look_seconds == LOOK_SECONDS_WITHOUT_HINTS
    wake.close()
