# SPDX-License-Identifier: Apache-2.0
"""Runs in a cgroup of a test: makes the calls that its argument lists (JSON) and prints what each came to: `ok`, or an errno."""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import struct
import subprocess
import sys

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
EXEC, ANONYMOUS = 4, 0x22


def check(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "")
    return result


def opened(path, flags=os.O_RDONLY):
    fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        return os.read(fd, 1) if not flags & 3 else b""
    finally:
        os.close(fd)


def kept(path, write, flags=os.O_RDWR):
    """A descriptor that was there before."""
    fd = os.open(path, flags)
    try:
        write(fd)
    finally:
        os.close(fd)


def mapped(path, first=1 | EXEC, then=0):
    fd = os.open(path, os.O_RDONLY)
    try:
        place = check(libc.mmap(None, 4096, first, 2, fd, 0))
        if then:
            check(libc.mprotect(place, 4096, then))
    finally:
        os.close(fd)


def anonymous(first, then=0):
    place = check(libc.mmap(None, 4096, first, ANONYMOUS, -1, 0))
    if then:
        check(libc.mprotect(place, 4096, then))


def run(*command):
    """Its status is 0, or this is why it could not be executed."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        raise OSError(errno.EPERM if done.returncode in (126, 127) else errno.ECHILD, "")


def memfd(path):
    fd = os.memfd_create("image", 0)
    with open(path, "rb") as file:
        os.write(fd, file.read())
    subprocess.run([f"/proc/{os.getpid()}/fd/{fd}"], check=True)


def made(family, kind, protocol=0):
    socket.socket(family, kind, protocol).close()


def connected(host, port, kind=1, protocol=0):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, kind, protocol) as one:
        one.settimeout(20)
        one.connect((host, port))


def fast_open(host, port):
    with socket.socket() as one:
        one.settimeout(20)
        one.sendto(b"x", 0x20000000, (host, port))


def bound(port):
    with socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        one.bind(("127.0.0.1", port))


def listening(accept):
    """A socket that listens without bind, and a connection to it that is accepted."""
    with socket.socket() as one, socket.socket() as other:
        one.listen()
        if accept:
            other.connect(("127.0.0.1", one.getsockname()[1]))
            one.accept()[0].close()


def accepted(port):
    with socket.socket() as other, socket.socket(fileno=int(port)) as one:
        other.connect(one.getsockname())
        one.accept()[0].close()


def terminal(program, *command):
    """The command by `program` on a terminal of its own."""
    pid, fd = os.forkpty()
    if not pid:
        os.execv(program, [program, "-c", " ".join(command)])
    with contextlib.suppress(OSError):
        while os.read(fd, 1024):
            pass
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(fd)
    if status:
        raise OSError(errno.EPERM if status == 126 else errno.ECHILD, "")


def on_terminal(name, *arguments):
    """The call `name` in a process with a terminal of its own."""
    pid, fd = os.forkpty()
    if not pid:
        code = 0
        try:
            CALLS[name](*arguments)
        except OSError as error:
            code = error.errno
        os._exit(code)
    with contextlib.suppress(OSError):
        while os.read(fd, 1024):
            pass
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(fd)
    if code:
        raise OSError(code, "")


def userns():
    pid = os.fork()
    if not pid:
        code = 0 if libc.unshare(0x10000000) == 0 else ctypes.get_errno()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code:
        raise OSError(code, "")


def mounted(source, target, flags=0x1000):
    check(libc.mount(source.encode(), target.encode(), None, flags, None))
    libc.umount2(target.encode(), 2)


def open_tree(source, target):
    fd = check(libc.syscall(428, -100, source.encode(), 1))
    try:
        check(libc.syscall(429, fd, b"", -100, target.encode(), 4))
        libc.umount2(target.encode(), 2)
    finally:
        os.close(fd)


def pivot(path):
    check(libc.syscall({"x86_64": 155, "aarch64": 41}[os.uname().machine], path.encode(), path.encode()))


def deep(directory, name, many):
    """Opens a file below `many` directories, one by one."""
    here = os.open("/", os.O_RDONLY)
    try:
        os.chdir(directory)
        for _ in range(many):
            os.chdir(name)
        opened("file")
    finally:
        os.fchdir(here)
        os.close(here)


def victim(attach):
    """What `attach(pid)` does to a process of our own that sleeps."""
    pid = os.fork()
    if not pid:
        signal.pause()
    try:
        attach(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def ptraced(pid):
    check(libc.ptrace(0x4206, pid, None, None))  # PTRACE_SEIZE


def read_memory(pid):
    room = ctypes.create_string_buffer(b"secret")
    into = ctypes.create_string_buffer(8)
    here, there = ((ctypes.c_size_t * 2)(ctypes.addressof(one), 6) for one in (into, room))
    check(libc.process_vm_readv(pid, here, 1, there, 1, 0))


def taken_descriptor(pid):
    fd = os.pidfd_open(pid)
    try:
        os.close(check(libc.syscall(438, fd, 0, 0)))  # pidfd_getfd
    finally:
        os.close(fd)


def hammer(denied, free, end):
    """Opens both until `end` is there; passed when it ever got one answer that it should not have."""
    rounds = wrong = missed = 0
    while not os.path.exists(end):
        for _ in range(50):
            rounds += 1
            try:
                os.close(os.open(denied, os.O_RDONLY))
                missed += 1
            except PermissionError:
                pass
            try:
                os.close(os.open(free, os.O_RDONLY))
            except PermissionError:
                wrong += 1
        if rounds == 150:
            open(end + "-begun", "w").close()
    with open(end, "w") as file:
        json.dump([rounds, missed, wrong], file)


CALLS = {
    "hammer": hammer,
    "read": opened,
    "write": lambda path: opened(path, os.O_WRONLY),
    "append": lambda path: opened(path, os.O_WRONLY | os.O_APPEND),
    "creat": lambda path: opened(path, os.O_WRONLY | os.O_CREAT),
    "trunc": lambda path: opened(path, os.O_WRONLY | os.O_TRUNC),
    "tmpfile": lambda path: opened(path, os.O_WRONLY | os.O_TMPFILE),
    "mknod": lambda path: os.mknod(path, 0o600),
    "mkfifo": lambda path: os.mkfifo(path),
    "mkdir": os.mkdir,
    "symlink": lambda path: os.symlink("target", path),
    "link": os.link,
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "rename": os.rename,
    "exchange": lambda one, other: check(
        libc.renameat2(-100, one.encode(), -100, other.encode(), 2)
    ),  # RENAME_EXCHANGE
    "chmod": lambda path: os.chmod(path, 0o644),
    "chown": lambda path: os.chown(path, 1, 1),
    "truncate": lambda path: os.truncate(path, 0),
    "ftruncate": lambda path: kept(path, lambda fd: os.ftruncate(fd, 0)),
    "fchmod": lambda path: kept(path, lambda fd: os.fchmod(fd, 0o644), os.O_RDONLY),
    "deep": deep,
    "run": run,
    "memfd": memfd,
    "mmap": mapped,
    "mprotect": lambda path: mapped(path, 1, 1 | EXEC),
    "anonymous": lambda: anonymous(3 | EXEC),
    "anonymous-later": lambda: anonymous(3, 1 | EXEC),
    "anonymous-data": lambda: mmap.mmap(-1, 4096).close(),
    "socket": made,
    "connect": connected,
    "fast-open": fast_open,
    "bind": bound,
    "listen": listening,
    "accept": accepted,
    "ptrace": lambda: victim(ptraced),
    "read-memory": lambda: victim(read_memory),
    "take-descriptor": lambda: victim(taken_descriptor),
    "open-memory": lambda: victim(lambda pid: os.close(os.open(f"/proc/{pid}/mem", os.O_RDONLY))),
    "terminal": terminal,
    "on-terminal": on_terminal,
    "userns": userns,
    "mount": mounted,
    "open-tree": open_tree,
    "pivot": pivot,
    "sethostname": lambda: socket.sethostname(socket.gethostname()),
    "module": lambda: check(libc.syscall({"x86_64": 313, "aarch64": 273}[os.uname().machine], -1, b"", 0)),
    # An array of one entry: newer kernels look at what is asked for before they ask who asks.
    "bpf": lambda: check(
        libc.syscall({"x86_64": 321, "aarch64": 280}[os.uname().machine], 0, struct.pack("7I", 2, 4, 4, 1, 0, 0, 0), 28)
    ),
}


def outcome(name, *arguments):
    try:
        CALLS[name](*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    except subprocess.CalledProcessError:
        return "ECHILD"
    return "ok"


print(json.dumps([outcome(*call) for call in json.loads(sys.argv[1])]))
