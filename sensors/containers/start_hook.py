# SPDX-License-Identifier: Apache-2.0
"""OCI hook (`createRuntime`): has a container wait until its rules are in force, before its first program is started.

A program of its own that needs nothing but Python's library and is run as `python3 -I -S`: it may be copied to a host that has no
Hauberk. Each container waits for its start as well, so it imports little. It hands the state that the runtime gives it to the
node's agent, and decides what happens when no answer comes: `start` (the default) or `refuse`. What became of a container then is
a line in the file `unheld` beside the socket, which the agent tells and counts. Neighbours: `sensors.containers.start_socket`.
"""

import os
import select
import sys
import time

# Not `socket`, which takes longer to import than everything else here together.
from _socket import AF_UNIX, SOCK_STREAM, socket

SOCKET = "/var/lib/hauberk/start/start.sock"
SECONDS = 2.0
LONGEST = 50.0
"""Seconds that may be asked for: the agent answers within a minute."""
MOST = 64 << 20
"""Bytes of a state: what a runtime has in memory as well."""
SHORT = 128 << 10
"""Bytes that are handed on. A longer state is cut down to what the agent reads: who writes annotations must not choose who is held."""
MOST_UNHELD = 64 << 10
"""Bytes of the file of containers whose rules were not in force."""
KEPT = (
    "io.kubernetes.cri.container-name", "io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace",
    "io.kubernetes.cri.sandbox-uid", "io.kubernetes.cri.container-type", "io.kubernetes.container.name", "io.kubernetes.pod.name",
    "io.kubernetes.pod.namespace", "io.kubernetes.pod.uid", "io.container.manager",
)  # fmt: skip
NAMESPACES = ("io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace")


class Unheld(Exception):
    """Why the container's rules are not known to be in force, as a sentence."""


class Options:
    """`--socket FILE`, `--seconds N`, `--unanswered start|refuse`, `--exempt NAMESPACE` (repeated). ValueError for anything else."""

    def __init__(self, words: list[str]) -> None:
        self.socket, self.seconds, self.unanswered = SOCKET, SECONDS, "start"
        self.exempt: list[str] = []
        if len(words) % 2:
            raise ValueError(f"expected a value after each option, got {' '.join(words)}")
        for index in range(0, len(words), 2):
            name, value = words[index : index + 2]
            if name == "--socket":
                self.socket = value
            elif name == "--seconds":
                self.seconds = float(value)
            elif name == "--unanswered":
                self.unanswered = value
            elif name == "--exempt":
                self.exempt.append(value)
            else:
                raise ValueError(f"expected --socket, --seconds, --unanswered or --exempt, got `{name}`")
        if self.unanswered not in ("start", "refuse"):
            raise ValueError(f"expected `start` or `refuse` after --unanswered, got `{self.unanswered}`")
        if not 0 < self.seconds <= LONGEST:
            raise ValueError(f"expected more than 0 and at most {LONGEST:g} after --seconds, got {self.seconds:g}")


def state_of(fd: int, deadline: float) -> bytes:
    """What the runtime gives. Raises Unheld."""
    parts: list[bytes] = []
    size = 0
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        part = os.read(fd, 1 << 20)
        if not part:
            return b"".join(parts)
        parts.append(part)
        size += len(part)
        if size > MOST:
            raise Unheld(f"expected a state of at most {MOST} bytes, got more")
    raise Unheld("expected the container's state on standard input, it did not come in time")


def decoded(state: bytes) -> dict[str, object]:
    """The state as an object. Raises Unheld."""
    import json

    try:
        found = json.loads(state)
    except (ValueError, RecursionError) as error:
        raise Unheld(f"expected the container's state as JSON, got: {error}") from None
    if not isinstance(found, dict):
        raise Unheld("expected the container's state as a JSON object, got something else")
    return found


def annotations(found: dict[str, object]) -> dict[str, object]:
    """Those of a state; none where they are no object."""
    said = found.get("annotations")
    return said if isinstance(said, dict) else {}


def shortened(state: bytes) -> bytes:
    """A long state without what nobody reads. Raises Unheld."""
    import json

    found = decoded(state)
    said = annotations(found)
    kept: dict[str, object] = {name: found.get(name) for name in ("id", "pid", "bundle")}
    return json.dumps(kept | {"annotations": {name: str(said[name])[:1024] for name in KEPT if name in said}}).encode()


def ask(path: str, state: bytes, deadline: float) -> None:
    """Return once the rules are in force. Raises Unheld."""
    asking = socket(AF_UNIX, SOCK_STREAM)
    answer = b""
    try:
        asking.settimeout(max(0.001, deadline - time.monotonic()))
        asking.connect(path)
        asking.sendall(len(state).to_bytes(4, "big") + state)
        while not answer.endswith(b"\n") and len(answer) < 4096:
            asking.settimeout(max(0.001, deadline - time.monotonic()))
            part = asking.recv(4096)
            if not part:
                break
            answer += part
    except TimeoutError:
        raise Unheld(f"expected rules in force within the time, the agent at {path} did not say so") from None
    except OSError as error:
        raise Unheld(
            f"expected the agent at {path}, got: {error.strerror or error}; is `hauberk node` or `up` running?"
        ) from None
    finally:
        asking.close()
    if answer != b"held\n":
        raise Unheld(answer.decode("utf-8", "replace").strip()[:1024] or f"the agent at {path} ended meanwhile")


def record(path: str, line: str) -> None:
    """A line for the agent to tell and count. What is no plain file of ours is left alone: the directory may be another's."""
    import fcntl
    import stat

    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
        try:
            found = os.fstat(fd)
            if stat.S_ISREG(found.st_mode) and (found.st_nlink, found.st_uid) == (1, os.geteuid()):
                fcntl.flock(fd, fcntl.LOCK_EX)
                if found.st_size < MOST_UNHELD:
                    os.write(fd, " ".join(line.split())[:500].encode("utf-8", "replace") + b"\n")
        finally:
            os.close(fd)
    except OSError as error:
        print(f"hauberk: expected to write {path}, got: {error.strerror}", file=sys.stderr)


def unheld(given: Options, state: bytes, why: str) -> bool:
    """Whether the container starts all the same; said and recorded."""
    starts, who = given.unanswered == "start", "?"
    try:
        found = decoded(state)
        who = str(found.get("id"))[:128]
        starts = starts or any(annotations(found).get(name) in given.exempt for name in NAMESPACES)
    except Unheld:
        pass
    record(f"{os.path.dirname(given.socket)}/unheld", f"{'started' if starts else 'refused'} {who}: {why}")
    what = "starts without its rules" if starts else "is not started"
    print(f"hauberk: container {who} {what}: {why}", file=sys.stderr)
    return starts


def main(words: list[str]) -> int:
    """0: the container starts; 1: it does not."""
    try:
        given = Options(words)
    except ValueError as error:
        print(f"hauberk: the hook of the container has wrong options: {error}", file=sys.stderr)
        return 1
    deadline, state = time.monotonic() + given.seconds, b""
    try:
        state = state_of(0, deadline)
        ask(given.socket, state if len(state) <= SHORT else shortened(state), deadline)
    except Unheld as error:
        return int(not unheld(given, state, str(error)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
