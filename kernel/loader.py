# SPDX-License-Identifier: Apache-2.0
"""Runs the short-lived child that compiles, loads and attaches; its answer, its errors as ours, its end on time-out or a stop.

Whatever happens, no child and none of its files are left. Neighbours: `loading` (who asks), `loader_child` (what runs).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from schemas.errors import Incompatible, KernelError, MissingDependency, PermissionMissing, Unavailable

_KINDS: Final = {kind.__name__: kind for kind in (Incompatible, KernelError, MissingDependency, PermissionMissing)}
HEADERS: Final = "hauberk-headers-"
_LEFT: Final = 3600.0
_KEPT_LINES: Final = 12
"""Lines of the child's stderr that go into an error: clang's or the verifier's last words fit."""


class Halt:
    """Ends a load from another thread: `now`, once and for good."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._end: Callable[[], None] | None = None
        self.asked = False

    def now(self) -> None:
        """End the load that runs, or the next one at once."""
        with self._lock:
            self.asked = True
            if self._end is not None:
                self._end()

    def ends(self, end: Callable[[], None] | None) -> None:
        """What `now` is to call; called at once when it was asked before. None: nothing any more."""
        with self._lock:
            self._end = end
            if self.asked and end is not None:
                end()


def remove_old_headers() -> None:
    """Directories of headers that a killed load of this user left: no load takes an hour."""
    for left in Path(tempfile.gettempdir()).glob(f"{HEADERS}*"):
        with contextlib.suppress(OSError):
            about = left.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.geteuid() and time.time() - about.st_mtime > _LEFT:
                shutil.rmtree(left)


def run_child(
    request: dict[str, Any],
    timeout: float,
    progress: Callable[[str, float], None] | None,
    halt: Halt | None = None,
) -> dict[str, Any]:
    """What the child answers to `request`. Raises what it says went wrong, Unavailable after `timeout` seconds or by `halt`."""
    command = [sys.executable, "-P", "-m", "kernel.loader_child"]
    last: dict[str, Any] = {}
    remove_old_headers()
    # stderr into a file: clang can say more than a pipe holds while nobody but stdout is read.
    # The headers' directory is ours, not the child's, which may be ended before it could remove it.
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        tempfile.TemporaryDirectory(prefix=HEADERS) as directory,
    ):
        request = {**request, "directory": directory}
        try:
            # In `/`: the compiler looks for headers where it runs first, and that directory may be anybody's.
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd="/"
            )
        except OSError as error:
            raise PermissionMissing(
                f"expected to run `{sys.executable}` for the loader, got: {error.strerror}; run as root, or make it readable",
                operation="exec",
                target=sys.executable,
                errno=error.errno or 0,
            ) from error
        assert child.stdin is not None
        assert child.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(timeout, give_up)
        timer.start()
        try:
            if halt is not None:
                halt.ends(child.kill)
            with contextlib.suppress(BrokenPipeError), child.stdin as pipe:
                pipe.write(json.dumps(request))
            for line in child.stdout:
                message = _message(line)
                if "step" in message and progress is not None:
                    progress(message["step"], message["seconds"])
                last = message
            child.wait()
        finally:
            timer.cancel()
            if halt is not None:
                halt.ends(None)
            child.kill()
            child.wait()
            child.stdout.close()
        errors.seek(0)
        err = errors.read()
    if halt is not None and halt.asked and "done" not in last:
        raise Unavailable("the load was ended: a stop was asked for before the programs were there")
    if late.is_set() and "done" not in last:
        raise Unavailable(
            f"the loader did not finish in {timeout} s; raise `sensor.load.timeout`, or see whether the machine is out of memory or processors"
        )
    if "done" in last:
        done: dict[str, Any] = last["done"]
        return done
    said = " / ".join(err.strip().splitlines()[-_KEPT_LINES:])
    if "error" in last:
        kind = _KINDS.get(last["kind"], KernelError)
        raise kind(last["error"] + (f"; it said: {said}" if said else ""))
    raise KernelError(
        f"the loader ended with {child.returncode} and no answer; it said: {said or 'nothing'}", operation="load"
    )


def _message(line: str) -> dict[str, Any]:
    # The last line of a child that was ended may be half a line.
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}
