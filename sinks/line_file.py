# SPDX-License-Identifier: Apache-2.0
"""A file of lines that grows, rotates and repairs itself. Blocking; callers use a thread.

It must never leave half a batch behind: after a short write (full disk) the file is cut back to where the batch began, so
that sending again neither doubles lines nor joins two halves. Neighbour: `file`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
import time

from schemas.errors import DiskFull, PermissionMissing, SettingsError, Temporary, Unavailable

_MODE = 0o600
"""Events hold paths and arguments of every workload of the node: for the owner alone."""

_TAIL_BYTES = 1 << 16


class LineFile:
    """`repaired_bytes`: partial line cut off at open. `rotations`: since construction."""

    def __init__(
        self, path: str, *, rotate_bytes: int, rotate_seconds: int, keep: int, sync_each: bool, sync_rotate: bool
    ) -> None:
        self.path = path
        self.repaired_bytes = 0
        self.rotations = 0
        self._rotate_bytes = rotate_bytes
        self._rotate_seconds = rotate_seconds
        self._keep = keep
        self._sync_each = sync_each
        self._sync_rotate = sync_rotate
        self._fd = -1
        self._size = 0
        self._inode = (0, 0)
        self._born = 0.0
        # A cancelled `send` leaves its thread running; the next call must wait for it, not write beside it.
        self._lock = threading.Lock()

    @property
    def ages(self) -> bool:
        """Whether it rotates by age."""
        return self._rotate_seconds > 0

    def check(self) -> None:
        """SettingsError or PermissionMissing with a sentence when the file cannot be one of ours."""
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            raise SettingsError(
                f"file sink: expected directory `{directory}` for `{self.path}`, it does not exist; create it or change `path`"
            )
        try:
            info = os.stat(self.path)
        except FileNotFoundError:
            if not os.access(directory, os.W_OK | os.X_OK):
                raise self._denied("create") from None
            return
        except OSError as error:
            raise self._denied("look at") from error
        if not stat.S_ISREG(info.st_mode):
            raise SettingsError(f"file sink: expected a regular file at `{self.path}`, got another kind; change `path`")
        if not os.access(self.path, os.R_OK | os.W_OK):
            raise self._denied("write")
        with open(self.path, "rb") as file:
            first = file.read(1)
        if first not in (b"", b"{"):
            raise SettingsError(
                f"file sink: expected JSON lines in `{self.path}`, its first byte is {first!r}; it is not ours, change `path`"
            )

    def open(self) -> None:
        """Open for appending and cut off a partial last line. Raises as `check`, or Temporary."""
        with self._lock:
            if self._fd < 0:
                self._open()

    def append(self, data: bytes) -> None:
        """All of `data` (whole lines) or none of it; DiskFull or Unavailable when it did not go."""
        if not data:
            return
        with self._lock:
            self._follow_rename()
            if self._fd < 0:
                self._open()
            too_big = self._size and self._size + len(data) > self._rotate_bytes
            if too_big or self._too_old():
                self._rotate()
            self._write(data)

    def rotate_if_old(self) -> None:
        """Rotate by age although nothing is written."""
        with self._lock:
            if self._fd >= 0 and self._size and self._too_old():
                self._rotate()

    def close(self) -> None:
        """Sync and close. Twice is once."""
        with self._lock:
            self._close()

    def _open(self) -> None:
        self.check()
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, _MODE)
        except PermissionError as error:
            raise self._denied("open") from error
        except OSError as error:
            raise self._failed("open", error) from error
        info = os.fstat(fd)
        self._fd, self._size, self._inode = fd, info.st_size, (info.st_dev, info.st_ino)
        self._born = info.st_mtime if info.st_size else time.time()
        keep = _whole_lines(fd, info.st_size)
        if keep < info.st_size:
            os.ftruncate(fd, keep)
            self.repaired_bytes += info.st_size - keep
            self._size = keep

    def _write(self, data: bytes) -> None:
        start = self._size
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
            if self._sync_each:
                os.fdatasync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, start)
            raise self._failed("write", error) from error
        self._size = start + len(data)

    def _too_old(self) -> bool:
        return bool(self._rotate_seconds) and self._size > 0 and time.time() - self._born >= self._rotate_seconds

    def _rotate(self) -> None:
        if self._fd >= 0 and self._sync_rotate:
            os.fdatasync(self._fd)
        self._close()
        try:
            if self._keep == 0:
                os.unlink(self.path)
            else:
                # From the oldest down, so that a crash in between loses no file but the one that was due to go.
                for number in range(self._keep - 1, 0, -1):
                    with contextlib.suppress(FileNotFoundError):
                        os.replace(f"{self.path}.{number}", f"{self.path}.{number + 1}")
                os.replace(self.path, f"{self.path}.1")
        except FileNotFoundError:
            pass
        except OSError as error:
            raise self._failed("rotate", error) from error
        self.rotations += 1
        self._open()

    def _follow_rename(self) -> None:
        # logrotate or a person may have moved the file away: write to the path, not to the moved inode.
        try:
            info = os.stat(self.path)
        except FileNotFoundError:
            self._close()
            return
        except OSError as error:
            raise self._failed("look at", error) from error
        if self._fd >= 0 and (info.st_dev, info.st_ino) != self._inode:
            self._close()
        else:
            # Truncated from outside: append lands at the new end, the counter has to follow.
            self._size = info.st_size

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._size = 0

    def _failed(self, what: str, error: OSError) -> Temporary:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(
                f"file sink: expected room to {what} `{self.path}`, the disk is full; free space, nothing is lost meanwhile"
            )
        return Unavailable(f"file sink: expected to {what} `{self.path}`, got {error.strerror}")

    def _denied(self, what: str) -> PermissionMissing:
        return PermissionMissing(
            f"file sink: expected permission to {what} `{self.path}`, this user has none; change `path` or its owner",
            operation=what,
            target=self.path,
            errno=errno.EACCES,
        )


def _whole_lines(fd: int, size: int) -> int:
    """Offset just after the last newline: where a partial line begins, or `size`."""
    end = size
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        at = os.pread(fd, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
