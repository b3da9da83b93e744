# SPDX-License-Identifier: Apache-2.0
"""A freed blob is given back, in the loop's thread and in others."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import threading
from hauberk.allocator import settle
if not settle():
    print("no mallopt"); raise SystemExit
def rss():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
def work():
    for size in (1 << 17, 1 << 19, 1 << 21):
        blobs = [bytes(size) for _ in range((1 << 25) // size)]
        del blobs
before = rss()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(rss() - before)
"""


def test_a_freed_blob_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=90)
    if done.stdout.startswith("no mallopt"):
        pytest.skip("this C library has no mallopt(3)")
    assert int(done.stdout) < 4096, "KiB kept of 192 MiB freed"


HOLES = """
from hauberk.allocator import free_bytes, give_back, settle
if not settle() or not free_bytes():
    print("no mallinfo2"); raise SystemExit
def rss():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon"))
before = rss()
blobs = [b"x" * 60_000 for _ in range(1000)]
# The last one stays: what is free lies below it.
kept = blobs[-1]
del blobs
held, free = rss() - before, free_bytes()
gave = give_back()
print(held, free, gave, rss() - before)
"""


def test_what_is_free_below_something_that_stays_is_given_back_on_request() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True, timeout=90)
    if done.stdout.startswith("no mallinfo2"):
        pytest.skip("this C library has no mallinfo2(3)")
    held, free, gave, after = done.stdout.split()
    assert int(held) > 50_000
    assert int(free) > 50_000_000
    assert gave == "True"
    assert int(after) < 4096, "KiB kept of 60 MB freed"
