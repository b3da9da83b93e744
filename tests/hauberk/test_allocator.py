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
