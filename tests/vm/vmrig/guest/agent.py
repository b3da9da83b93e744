# SPDX-License-Identifier: Apache-2.0
"""First process of the guest after `init`: runs what the host asks for on descriptor 3, one JSON object per line.

`{"argv", "env", "cwd", "seconds"}` is answered by any number of `{"out": text}` and one `{"status": n}` (-1: out of time);
`{"off": true}` powers off. Orphans end up here and are reaped.
"""

import json
import os
import select
import signal
import subprocess
import time

PORT = 3


def say(answer: dict[str, object]) -> None:
    left = memoryview(json.dumps(answer).encode() + b"\n")
    while left:
        left = left[os.write(PORT, left[:32768]) :]


def lines():
    kept = b""
    while True:
        got = os.read(PORT, 65536)
        if not got:
            time.sleep(0.01)  # the host's end is not open at this moment
        kept += got
        while b"\n" in kept:
            line, kept = kept.split(b"\n", 1)
            yield json.loads(line)


def run(asked):
    reading, writing = os.pipe()
    try:
        child = subprocess.Popen(
            asked["argv"], stdin=subprocess.DEVNULL, stdout=writing, stderr=writing, env=dict(os.environ) | asked["env"],
            cwd=asked["cwd"], start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        os.close(reading)
        say({"out": f"{asked['argv'][0]}: {error}\n"})
        return 127
    finally:
        os.close(writing)
    end = time.monotonic() + asked["seconds"]
    late = False
    while True:
        ready, _, _ = select.select([reading], [], [], 0.1)
        if ready:
            text = os.read(reading, 32768)
            if not text:
                break
            say({"out": text.decode("utf-8", "replace")})
        # A daemon that the command left behind may hold the pipe for ever.
        elif child.poll() is not None:
            break
        if time.monotonic() > end and not late:
            late = True
            os.killpg(child.pid, signal.SIGKILL)
    os.close(reading)
    status = child.wait()
    return -1 if late else status


def main():
    # Commands start a session of their own: nothing of theirs is to end this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(PORT, False)
    say({"up": True})
    for asked in lines():
        if asked.get("off"):
            os.sync()
            with open("/proc/sysrq-trigger", "w") as trigger:
                trigger.write("o")
            time.sleep(60)
        status = run(asked)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        say({"status": status})


main()
