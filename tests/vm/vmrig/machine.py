# SPDX-License-Identifier: Apache-2.0
"""One guest: started cold or from a template, asked to run commands, powered off; nothing of it is left, however the run ends.

A template is a guest frozen where `guest/init` waits: its memory in a file, the rest of its state in another. Guests made of
one share the file copy-on-write, any number at once. It holds until the next boot of this machine (the guest's clock runs
with the host's).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vmrig.debian import NoPackage
from vmrig.initramfs import initramfs
from vmrig.kernels import Kernel

CHECKOUT = Path(__file__).parents[3]
MEMORY = "1536M"
PROCESSORS = 2
PROGRAM = "qemu-system-x86_64"
# Ends when the run's end of its pipe is closed, also by a SIGKILL; and qemu with it.
_GUARD = """
place=$1; shift
"$@" </dev/null >"$place/qemu.log" 2>&1 3<&- &
machine=$!
cat >/dev/null
kill -9 $machine 2>/dev/null
wait $machine 2>/dev/null
rm -rf --one-file-system "$place"
"""
_APPEND = "console=ttyS0 quiet mitigations=off nokaslr no_timer_check tsc=reliable panic=-1 random.trust_cpu=on"
_SHARED = {"execute": "migrate-set-capabilities", "arguments": {"capabilities": [{"capability": "x-ignore-shared", "state": True}]}}  # fmt: skip


class GuestFailed(Exception):
    """The guest did not start, or ended by itself. The message ends with what its console and qemu said last."""


def why_not() -> str | None:
    """Why no guest can be started here; None when one can."""
    if shutil.which(PROGRAM) is None:
        return f"no `{PROGRAM}` here; run `deploy/packages.sh test` as root"
    if os.geteuid():
        return "needs root: the guest's root reads the host's files"
    return None


class Guest:
    """A running guest. `run` and `lines` ask it for something; `off` ends it."""

    _parameters = ""
    _counted = False

    def __init__(self, kernel: Kernel, *, template: bool = True, parameters: str = "", counted: bool = False) -> None:
        """Boots, or thaws a template (made first when there is none). `parameters`: more on the kernel's command line; `counted`: one
        processor, whose clock goes on by a nanosecond with each instruction, so that a time is a number of instructions. Both need a
        boot. Raises GuestFailed, NoPackage."""
        assert template is False or not (parameters or counted)
        if (reason := why_not()) is not None:
            raise NoPackage(reason)
        self.kernel = kernel
        self._parameters = parameters
        self._counted = counted
        self.place = Path(tempfile.mkdtemp(prefix="hauberk-vm-"))
        self.room = self.place / "room"
        """A directory that the host and the guest see under the same path, and both may write."""
        self.programs = kernel.home / "programs"
        self._guard: subprocess.Popen[bytes] | None = None
        for directory in (self.room, self.programs):
            directory.mkdir(mode=0o700, exist_ok=True)
        try:
            if template:
                self._thaw(_template(kernel, self._words))
            else:
                self._start(self._words())
                self._connect()
                self._ready()
            self._go()
        except BaseException:
            self.kill()
            raise

    def run(self, words: Sequence[str], *, seconds: float = 120, **environment: str) -> tuple[int, str]:
        """Exit status (-1: ended after `seconds`) and output (both streams) of a command in the checkout."""
        said: list[str] = []
        status = self.lines(words, said.append, seconds=seconds, **environment)
        return status, "".join(said)

    def lines(self, words: Sequence[str], say: Callable[[str], Any], *, seconds: float, **environment: str) -> int:
        """The same with each piece of output given to `say` as it comes."""
        environment.setdefault("HAUBERK_TEST_EMULATED", "1")
        asked = {"argv": list(words), "env": environment, "cwd": str(CHECKOUT), "seconds": seconds}
        for answer in self._ask(asked, seconds + 60):
            if "status" in answer:
                return int(answer["status"])
            say(answer["out"])
        raise self._failed("the guest ended")

    def off(self) -> None:
        """Powers it off and removes what belongs to it."""
        with contextlib.suppress(OSError, GuestFailed):
            for _ in self._ask({"off": True}, 60):
                pass
        self.kill()

    def kill(self) -> None:
        """The same without asking."""
        for name in ("_from_agent", "_from_control", "_agent", "_control"):  # a socket is open while its file is
            if hasattr(self, name):
                getattr(self, name).close()
        if self._guard is not None:
            assert self._guard.stdin is not None
            self._guard.stdin.close()
            self._guard.wait(60)
        shutil.rmtree(self.place, ignore_errors=True)

    def _words(self, memory: str = "", more: Sequence[str] = ()) -> list[str]:
        kernel, place = self.kernel, self.place
        share = "local,security_model=none,multidevs=remap"
        # What counts instructions takes one thread for all processors (qemu, docs/devel/tcg-icount.rst).
        how = ["single", "1", "-icount", "shift=0"] if self._counted else ["multi", str(PROCESSORS)]
        words = [
            PROGRAM, "-M", "pc", "-accel", f"tcg,thread={how[0]},tb-size=256", "-cpu", "max", "-smp", *how[1:],
            "-m", MEMORY, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-kernel", str(kernel.image), "-initrd", str(initramfs(kernel)), "-append", f"{_APPEND} {self._parameters}",
            "-chardev", f"file,id=console,path={place}/console", "-serial", "chardev:console",
            "-chardev", f"socket,id=control,path={place}/control", "-mon", "chardev=control,mode=control",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={place}/agent",
            "-device", "virtserialport,chardev=agent,name=agent", "-device", "virtio-rng-pci",
            "-fsdev", f"{share},id=root,path=/,readonly=on", "-device", "virtio-9p-pci,fsdev=root,mount_tag=root",
            "-fsdev", f"{share},id=room,path={self.room}", "-device", "virtio-9p-pci,fsdev=room,mount_tag=room",
            "-fsdev", f"{share},id=programs,path={self.programs}",
            "-device", "virtio-9p-pci,fsdev=programs,mount_tag=programs",
        ]  # fmt: skip
        if memory:
            words += ["-object", f"memory-backend-file,id=memory,size={MEMORY},mem-path={memory}"]
            words += ["-machine", "memory-backend=memory"]
        return words + list(more)

    def _start(self, words: Sequence[str]) -> None:
        self._listeners = {}
        for name in ("agent", "control"):
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(f"{self.place}/{name}")
            listener.listen(1)
            self._listeners[name] = listener
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(self.place), *words], stdin=subprocess.PIPE, start_new_session=True
        )

    def _connect(self) -> None:
        made = {}
        for name, listener in self._listeners.items():
            # qemu connects before the guest's first instruction.
            listener.settimeout(60)
            try:
                made[name], _ = listener.accept()
            except OSError as error:
                raise self._failed(f"qemu did not connect `{name}`") from error
            finally:
                listener.close()
        self._agent, self._control = made["agent"], made["control"]
        self._from_agent, self._from_control = self._agent.makefile("rb"), self._control.makefile("rb")
        self._read(self._control, self._from_control, 60)
        self._command({"execute": "qmp_capabilities"})

    def _ready(self) -> None:
        line = self._read(self._agent, self._from_agent, 300)
        if line != b"ready\n":
            raise self._failed(f"expected the guest to say `ready`, got {line!r}")

    def _go(self) -> None:
        python = os.path.realpath(sys.executable)
        self._agent.sendall(f"{int(time.time())} {self.room} {self.kernel.modules} {python} {CHECKOUT}\n".encode())
        answer = json.loads(self._read(self._agent, self._from_agent, 120))
        if answer != {"up": True}:
            raise self._failed(f"expected the agent to say that it is up, got {answer}")

    def _ask(self, asked: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
        self._agent.sendall(json.dumps(asked).encode() + b"\n")
        while True:
            yield json.loads(self._read(self._agent, self._from_agent, seconds))

    def _read(self, sock: socket.socket, stream: Any, seconds: float) -> bytes:
        sock.settimeout(seconds)
        try:
            line: bytes = stream.readline()
        except OSError as error:
            raise self._failed(f"no answer within {seconds:.0f} s") from error
        if not line:
            raise self._failed("the guest ended")
        return line

    def _command(self, *commands: dict[str, Any]) -> Any:
        answer: dict[str, Any] = {}
        for command in commands:
            self._control.sendall(json.dumps(command).encode() + b"\n")
            while not answer.keys() & {"return", "error"}:
                answer = json.loads(self._read(self._control, self._from_control, 60))
            if "error" in answer:
                raise self._failed(f"qemu refused `{command['execute']}`: {answer['error']['desc']}")
            result, answer = answer["return"], {}
        return result

    def freeze(self, state: Path) -> None:
        """Writes everything but the memory to `state` and ends the guest: a template."""
        self._command({"execute": "stop"}, _SHARED)
        self._command({"execute": "migrate", "arguments": {"uri": f"exec:cat >{state}"}})
        self._status("query-migrate", "completed", "failed")
        self.kill()

    def _thaw(self, template: Path) -> None:
        self._start(self._words(f"{template}/memory,share=off", ["-incoming", "defer"]))
        self._connect()
        self._command(_SHARED)
        self._command({"execute": "migrate-incoming", "arguments": {"uri": f"exec:cat {template}/state"}})
        self._status("query-status", "paused", "internal-error")
        self._command({"execute": "cont"})

    def _status(self, query: str, good: str, bad: str) -> None:
        deadline = time.monotonic() + 60
        while (status := self._command({"execute": query}).get("status")) != good:
            if status == bad or time.monotonic() > deadline:
                raise self._failed(f"{query}: {status}")
            time.sleep(0.005)

    def _failed(self, what: str) -> GuestFailed:
        said = []
        for name in ("console", "qemu.log"):
            with contextlib.suppress(OSError):
                said.append((self.place / name).read_text(errors="replace")[-3000:])
        return GuestFailed(f"{what}; it said last:\n" + "\n".join(said))


def _template(kernel: Kernel, words: Callable[[str], list[str]]) -> Path:
    """The template's directory (`memory`, `state`), made by a cold boot when there is none that fits."""
    qemu = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True).stdout
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    # Paths of this run differ each time and are not part of a guest's state.
    devices = [word for word in words("") if "path=" not in word]
    key = hashlib.blake2b("\0".join([qemu, boot, *devices]).encode(), digest_size=8).hexdigest()
    made = kernel.home / f"template-{key}"
    if not made.exists():
        for old in kernel.home.glob("template-*"):
            shutil.rmtree(old, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=kernel.home, prefix="making-") as beside:
            guest = object.__new__(_Frozen)
            guest.__init__(kernel, Path(beside))
            with contextlib.suppress(OSError):
                os.rename(beside, made)
            Path(beside).mkdir(exist_ok=True)
    return made


class _Frozen(Guest):
    """A guest that was booted to the point where `init` waits, and frozen there into `beside`."""

    def __init__(self, kernel: Kernel, beside: Path) -> None:
        self.kernel = kernel
        self.place = Path(tempfile.mkdtemp(prefix="hauberk-vm-"))
        self.room, self.programs = self.place / "room", self.place / "programs"
        self.room.mkdir()
        self.programs.mkdir()
        self._guard = None
        try:
            self._start(self._words(f"{beside}/memory,share=on"))
            self._connect()
            self._ready()
            self.freeze(beside / "state")
        except BaseException:
            self.kill()
            raise
