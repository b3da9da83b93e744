#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ASYNC240
"""Makes the recordings beside this file again: `sudo .venv/bin/python examples/recordings/make.py [DIRECTORY]`.

Two cgroups of our own are watched and nothing else, so nothing of the machine gets into the file: `shell` is known to the
inventory as a host session, `web` as a container of a deployment. What they do is in SHELL and WEB below. A newer kernel,
distribution or sensor makes another file; the tests ask only for what the scripts do.
"""

from __future__ import annotations

import asyncio
import errno
import http.server
import os
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path

from bus.contract import Record
from bus.memory import MemoryBus
from kernel.loading import LoadSettings
from schemas.identity import Identity, Kind, Owner, encode
from schemas.kernel import SCOPE
from schemas.operations import Class
from schemas.topics import INVENTORY
from sensors.node.rings import RingSettings
from sensors.node.sensor import NodeSettings, open_node
from sensors.recordings.recorder import Recorder, describe

NODE = "demo"
CLASSES = sum(1 << each for each in (Class.PROCESS, Class.FILE, Class.NETWORK, Class.SYSCALL))

SHELL = """
cat /etc/shadow > /dev/null
mkdir /tmp/demo/files
for n in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do cat /tmp/demo/notes.txt > /dev/null; done
cp /tmp/demo/notes.txt /tmp/demo/files/copy.txt
mv /tmp/demo/files/copy.txt /tmp/demo/files/moved.txt
ln -s /tmp/demo/notes.txt /tmp/demo/files/link
chmod 600 /tmp/demo/files/moved.txt
cat /tmp/demo/missing.txt
rm /tmp/demo/files/link /tmp/demo/files/moved.txt
rmdir /tmp/demo/files
id > /dev/null
"""

WEB = """
n=0
while [ $n -lt 40 ]; do
    cat /tmp/demo/site/index.html > /dev/null
    n=$((n + 1))
done
curl -q -s -o /dev/null http://127.0.0.1:PORT/index.html
curl -q -s -o /dev/null http://127.0.0.1:PORT/index.html
curl -q -s -m 1 -o /dev/null http://127.0.0.1:9/
echo access >> /tmp/demo/access.log
cat /etc/passwd > /dev/null
sh -c 'ls -l /tmp/demo/site' > /dev/null
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves without a word on stderr."""

    def log_message(self, format: str, *args: object) -> None: ...


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted."""
    unified = Path("/sys/fs/cgroup/unified")
    return unified if unified.is_dir() else Path("/sys/fs/cgroup")


async def run_in(cgroup: Path, script: str) -> None:
    """Run `script` by a shell whose parent is a shell, so that no path of this interpreter is recorded."""
    with tempfile.NamedTemporaryFile("w", dir="/tmp/demo", suffix=".sh") as file:
        file.write(f"echo $$ > {cgroup}/cgroup.procs\nsh {file.name}.run\n")
        file.flush()
        Path(file.name + ".run").write_text(script)
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "HOME": "/tmp/demo"}
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", f"/bin/sh {file.name} & wait", cwd="/tmp/demo", env=environment,
            stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        await child.wait()
        os.unlink(file.name + ".run")


async def remove(group: Path) -> None:
    """rmdir a cgroup; who was just reaped may hold it for a moment."""
    for _ in range(1000):
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
        await asyncio.sleep(0.01)
    return group.rmdir()


async def record(path: Path) -> None:
    """One recording at `path`."""
    demo = Path("/tmp/demo")
    (demo / "site").mkdir(parents=True, exist_ok=True)
    (demo / "notes.txt").write_text("notes\n")
    (demo / "site" / "index.html").write_text("<p>hello\n")
    groups = {name: cgroup_root() / f"hauberk-demo-{name}" for name in ("shell", "web")}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *args: Quiet(*args, directory=str(demo / "site")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pins = tempfile.mkdtemp(prefix="hauberk-pins-")
    node = open_node(
        NodeSettings(
            node=NODE,
            pin_dir=f"{pins}/sensor",
            load=LoadSettings(host_visibility=("none",), new_visibility=("none",)),
            rings=RingSettings(fold="never"),
        )
    )
    bus = MemoryBus()
    try:
        for group in groups.values():
            group.mkdir()
            with node.loaded.map("scopes") as scopes:
                scopes.put(struct.pack("=Q", group.stat().st_ino), SCOPE.struct.pack(0, 0, 0, CLASSES))
        started = time.time()
        identities = (
            Identity(kind=Kind.NODE, node=NODE, uid=NODE, started=started),
            Identity(
                kind=Kind.HOST, node=NODE, uid="session-1", cgroups=(groups["shell"].stat().st_ino,),
                cgroup_path="/user.slice/session-1.scope", started=started,
            ),
            Identity(
                kind=Kind.CONTAINER, node=NODE, uid="4f1c" * 16, cgroups=(groups["web"].stat().st_ino,),
                cgroup_path="/kubepods/besteffort/pod1/" + "4f1c" * 16, container_name="web", image="example/web:1.0",
                namespace="shop", pod="web-6d4cf56db6-x7k2p", pod_uid="pod1", owner=Owner("Deployment", "web", "shop"),
                labels={"app": "web"}, runtime="containerd", orchestrated=True, started=started,
            ),
        )  # fmt: skip
        await bus.publish(INVENTORY, [Record(key=each.key, value=encode(each)) for each in identities])
        header = describe("examples/recordings/make.py")
        # The build's own suffix says which machine this was, and nothing a reader needs.
        header["kernel"] = header["kernel"].partition("-")[0]
        recorder = Recorder(bus, str(path), header)
        agent = node.agent(bus)
        tasks = [asyncio.create_task(recorder.run()), asyncio.create_task(agent.run())]
        await recorder.started.wait()
        await run_in(groups["shell"], SHELL)
        await run_in(groups["web"], WEB.replace("PORT", str(server.server_address[1])))
        agent.stop()
        await tasks[1]
        recorder.stop()
        await tasks[0]
        print(f"{path}: {agent.stats.events} events in {recorder.frames} frames, {path.stat().st_size} bytes")
    finally:
        await bus.close()
        node.close()
        os.rmdir(pins)
        server.shutdown()
        server.server_close()
        for group in groups.values():
            await remove(group)
        for left in (demo / "site" / "index.html", demo / "notes.txt", demo / "access.log"):
            left.unlink(missing_ok=True)
        (demo / "site").rmdir()
        demo.rmdir()


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.abspath(__file__))) / "host.hbrk"
    target.unlink(missing_ok=True)
    asyncio.run(record(target))
