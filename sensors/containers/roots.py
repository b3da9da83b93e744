# SPDX-License-Identifier: Apache-2.0
"""Paths inside the root of another process's mount namespace, resolved as from there, without ever leaving that root.

That root is where the paths that the kernel tells end (`kernel/programs/path.c`); one that a process set with chroot(2) lies
below it.

`openat2` with RESOLVE_IN_ROOT where the kernel has it (5.6), a walk by components elsewhere. O_PATH descriptors, so devices and
FIFOs do nothing; only `open` reads, and only regular files. Must never follow a magic link of /proc. Neighbours: `symlinks`,
`hashes`.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from types import TracebackType
from typing import Final

_OPENAT2: Final = 437
"""The same number on every architecture."""
_NO_MAGIC: Final = 0x02
_IN_ROOT: Final = 0x10
_HOPS: Final = 40
"""Links followed for one path, as the kernel does (MAXSYMLINKS)."""
_ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG, errno.EXDEV})


class _CallRefused(Exception):
    """This kernel (before 5.6) or a seccomp filter does not know openat2(2): the path is walked instead."""


class _How(ctypes.Structure):
    """`struct open_how`."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_libc = ctypes.CDLL(None, use_errno=True)


def _top(fd: int) -> int:
    """The topmost directory above `fd`, which is closed if it is another: ".." is free of a root that is not ours."""
    while True:
        try:
            above = os.open("..", os.O_PATH | os.O_CLOEXEC, dir_fd=fd)
        except OSError:
            # Without CAP_DAC_READ_SEARCH, or moved out of what its mount shows: nothing above it can be reached.
            return fd
        if _place(above) == _place(fd):
            os.close(above)
            return fd
        os.close(fd)
        fd = above


def _place(fd: int) -> tuple[int, int, str]:
    """Device, inode and mount: of the first two, a directory mounted below itself has the same as its parent."""
    found = os.fstat(fd)
    with open(f"/proc/self/fdinfo/{fd}") as lines:
        mount = next(line for line in lines if line.startswith("mnt_id:"))
    return found.st_dev, found.st_ino, mount


def _within(fd: int, path: str) -> int:
    """The directory at `path` below `fd`, which is closed."""
    how = _How(os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY, 0, _IN_ROOT | _NO_MAGIC)
    found = int(_libc.syscall(_OPENAT2, fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)))
    number = ctypes.get_errno()
    os.close(fd)
    if found < 0:
        raise OSError(number, os.strerror(number), path)
    return found


class Root:
    """The root of the mount namespace of host process `pid`, or the directory `below` in it; a context manager. OSError when the process, or
    that directory, is gone."""

    def __init__(self, pid: int, below: str = "") -> None:
        try:
            self._fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_CLOEXEC)
        except PermissionError:
            # Init of a confined host is out of reach, and then its root is ours.
            if pid != 1:
                raise
            self._fd = os.open("/", os.O_PATH | os.O_CLOEXEC)
        self._fd = _top(self._fd)
        if below:
            self._fd = _within(self._fd, below)
        self._prefix = os.readlink(f"/proc/self/fd/{self._fd}").rstrip("/")

    def __enter__(self) -> Root:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def other(self) -> bool:
        """Whether it is another root than that of this process."""
        mine, its = os.stat("/"), os.stat(self._fd)
        return (mine.st_dev, mine.st_ino) != (its.st_dev, its.st_ino)

    def real(self, path: str) -> str:
        """The real path of a file, or with a slash at the end of a directory; `path` itself for what is not there.

        Of a directory that is not there, the part that is there is resolved: it may be made later.
        """
        if not path.endswith("/"):
            return self.find(path) or path
        head, tail = path.rstrip("/"), ""
        while head:
            found = self.find(head, directory=True)
            if found is not None:
                return found.rstrip("/") + tail + "/"
            head, _, last = head.rpartition("/")
            tail = f"/{last}{tail}"
        return path

    def find(self, path: str, *, directory: bool = False) -> str | None:
        """The real path, or None: not there, unreadable, in /proc, or no text."""
        try:
            found = self._by_kernel(path, directory)
        except _CallRefused:
            found = self.walk(path, directory=directory)
        if found is None or found.startswith("/proc/"):
            return None
        try:
            found.encode()
        except UnicodeEncodeError:
            return None
        return found

    def open(self, path: str) -> int | None:
        """A regular file of this root, for reading; the caller closes it. None for anything else, and on kernels before 5.6."""
        how = _How(os.O_PATH | os.O_CLOEXEC, 0, _IN_ROOT | _NO_MAGIC)
        fd = _libc.syscall(_OPENAT2, self._fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if fd < 0:
            return None
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        finally:
            os.close(fd)

    def _by_kernel(self, path: str, directory: bool) -> str | None:
        flags = os.O_PATH | os.O_CLOEXEC | (os.O_DIRECTORY if directory else 0)
        how = _How(flags, 0, _IN_ROOT | _NO_MAGIC)
        fd = _libc.syscall(_OPENAT2, self._fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if fd < 0:
            number = ctypes.get_errno()
            if number in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
                raise _CallRefused
            return None
        try:
            found = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            os.close(fd)
        if found != self._prefix and not found.startswith(self._prefix + "/"):
            return None  # moved out of the root while we looked
        return None if found.endswith(" (deleted)") else found[len(self._prefix) :] or "/"

    def walk(self, path: str, *, directory: bool = False) -> str | None:
        """`find` by hand. `..` of the root is the root."""
        above = [os.dup(self._fd)]
        names: list[str] = []
        left = path.split("/")[::-1]
        hops = 0
        try:
            while left:
                name = left.pop()
                if name in ("", "."):
                    continue
                if name == "..":
                    if names:
                        os.close(above.pop())
                        names.pop()
                    continue
                fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above[-1])
                mode = os.fstat(fd).st_mode
                if not stat.S_ISLNK(mode):
                    above.append(fd)
                    names.append(name)
                    if (left or directory) and not stat.S_ISDIR(mode):
                        return None
                    continue
                try:
                    target = os.readlink("", dir_fd=fd)
                finally:
                    os.close(fd)
                hops += 1
                if hops > _HOPS or names[:1] == ["proc"]:
                    return None
                if target.startswith("/"):
                    while names:
                        os.close(above.pop())
                        names.pop()
                left += target.split("/")[::-1]
            return "/" + "/".join(names)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        finally:
            for fd in above:
                os.close(fd)
