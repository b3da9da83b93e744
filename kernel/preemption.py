# SPDX-License-Identifier: Apache-2.0
"""Whether this kernel takes the processor from a program that is attached to one of its functions, found by trying.

Why it matters: such a program runs with migration off and preemption on (__bpf_prog_enter_recur, kernel/bpf/trampoline.c). Where the
kernel preempts itself (PREEMPT_FULL, PREEMPT_LAZY, PREEMPT_RT), another task of the same processor makes its calls meanwhile: the
kernel then leaves the same program out, and others would use the same scratch. Where it does not (PREEMPT_NONE, PREEMPT_VOLUNTARY),
a call's program runs to its end. The mode is chosen at boot and named nowhere that may always be read, so one thread is kept busy in
a program, and another of the same processor, of higher priority, tries to run at that time. Neighbours: `call_exits` (who asks).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
import time
from typing import Final

from kernel import bpf
from kernel.btf import Btf
from kernel.instructions import END, MAP_VALUE, helper, instruction, wide
from schemas.syscalls import number

TRACING: Final = 26
TRACE_FEXIT: Final = 25
"""BPF_PROG_TYPE_TRACING, BPF_TRACE_FEXIT (include/uapi/linux/bpf.h)."""
TRIED: Final = "__x64_sys_getpgid"
"""The function that the test is attached to: a small one, which a compiler would be the first to inline."""

_KTIME, _PROBE_READ_KERNEL, _NS_PID_TGID = 5, 113, 120
_ARRAY: Final = 2
_BLOCK: Final = 1 << 20
"""Bytes that one step of the busy program copies: 0.1 to 0.3 ms."""
_STEPS, _MANY_STEPS = 24, 240
"""Steps for a thread of real-time priority to get in, and for one without: a lazy kernel gives way at the next tick but one."""
_LEAST: Final = 1_000_000
"""ns that a busy program must have taken for its answer to count."""
_NAP: Final = 0.0002
_ROUNDS: Final = 3


def why_not() -> str:
    """Why programs attached to functions are not to be used here; "" when the kernel lets them run to their end. Takes 0.2 s, most
    of it for the kernel to detach the program that was tried. Raises HauberkError when none can be attached."""
    target = Btf.of_kernel().function_id(TRIED)
    if target is None:
        return f"`{TRIED}` is not in this kernel's BTF"
    intruder = _Intruder(min(os.sched_getaffinity(0)))
    try:
        windows = _busy_windows(target, intruder)
    finally:
        intruder.end()
    told = [(began, ended) for began, ended in windows if ended - began >= _LEAST]
    if any(began < at < ended for began, ended in told for at in intruder.seen):
        return (
            "this kernel preempts programs of functions (preempt=full, lazy or real-time), and leaves them out for calls that are made "
            "meanwhile; with preempt=none or voluntary it does not"
        )
    return "" if told else "whether this kernel preempts programs of functions could not be found out"


class _Intruder:
    """A thread of `processor` that runs every 0.2 ms, with real-time priority where it may (`real_time`), and notes when (`seen`)."""

    def __init__(self, processor: int) -> None:
        self.processor = processor
        self.seen: list[int] = []
        self.real_time = False
        self._ready, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()

    def _run(self) -> None:
        os.sched_setaffinity(0, {self.processor})
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
            self.real_time = True
        self._ready.set()
        while not self._over.is_set():
            self.seen.append(time.clock_gettime_ns(time.CLOCK_MONOTONIC))
            time.sleep(_NAP)

    def end(self) -> None:
        """It has ended."""
        self._over.set()
        self._thread.join()


def _busy_windows(target: int, intruder: _Intruder) -> list[tuple[int, int]]:
    """(begin, end) in ns of CLOCK_MONOTONIC of each time that a program kept the intruder's processor busy."""
    thread: list[int] = []
    windows: list[tuple[int, int]] = []
    known, go = threading.Event(), threading.Event()

    def call() -> None:
        thread.append(threading.get_native_id())
        known.set()
        go.wait()
        os.sched_setaffinity(0, {intruder.processor})
        if not intruder.real_time:
            with contextlib.suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, thread[0], 19)
        for _ in range(_ROUNDS):
            # Time for the other to be seen; then by ctypes, which lets go of the interpreter's lock that it needs to say that it ran.
            time.sleep(5 * _NAP)
            ctypes.CDLL(None).syscall(ctypes.c_long(number("getpgid") or 0), ctypes.c_long(0))
            windows.append(struct.unpack_from("=QQ", _value(table)))

    with contextlib.ExitStack() as undo:
        table = bpf.map_create(_ARRAY, 4, 16 + 2 * _BLOCK, 1, name="hauberk_test")
        undo.callback(os.close, table)
        caller = threading.Thread(target=call)
        caller.start()
        undo.callback(caller.join)
        undo.callback(go.set)
        known.wait()
        # Attached by this thread, not by the one that may have the least priority: the kernel holds a lock of all tracers for it.
        code = _busy_program(table, thread[0], _STEPS if intruder.real_time else _MANY_STEPS)
        program = bpf.program_load(TRACING, code, name="hauberk_test", attach_type=TRACE_FEXIT, target=target)
        undo.callback(os.close, program)
        link = bpf.target_attach(program, TRIED)
        undo.callback(os.close, link)
        go.set()
        caller.join()
    return windows


def _busy_program(table: int, thread: int, steps: int) -> bytes:
    """Instructions that write when they begin and end into the first 16 bytes of `table`, for a call of `thread`."""
    here = os.stat("/proc/self/ns/pid")
    body = wide(6, table, MAP_VALUE) + helper(_KTIME) + instruction(0x7B, 6, 0, 0)
    for _ in range(steps):
        body += instruction(0xBF, 1, 6) + instruction(0x07, 1, value=16) + instruction(0xB7, 2, value=_BLOCK)
        body += instruction(0xBF, 3, 1) + instruction(0x07, 3, value=_BLOCK) + helper(_PROBE_READ_KERNEL)
    body += helper(_KTIME) + instruction(0x7B, 6, 0, 8)
    past = len(body) // 8
    # bpf_get_ns_current_pid_tgid(dev, ino, stack - 8, 8): the thread's number where this process is counted.
    code = wide(1, os.major(here.st_dev) << 20 | os.minor(here.st_dev)) + wide(2, here.st_ino)
    code += (
        instruction(0xBF, 3, 10) + instruction(0x07, 3, value=-8) + instruction(0xB7, 4, value=8) + helper(_NS_PID_TGID)
    )
    code += instruction(0x55, 0, offset=past + 2) + instruction(0x61, 0, 10, -8)
    return code + instruction(0x55, 0, offset=past, value=thread) + body + END


def _value(table: int) -> bytes:
    key, value = ctypes.create_string_buffer(4), ctypes.create_string_buffer(16 + 2 * _BLOCK)
    bpf.check(
        bpf.MAP_LOOKUP,
        struct.pack("=IIQQQ", table, 0, ctypes.addressof(key), ctypes.addressof(value), 0),
        "hauberk_test",
    )
    return value.raw[:16]
