# SPDX-License-Identifier: Apache-2.0
"""The part of a kubelet that the API server hands `exec` on to: TLS on loopback, WebSocket with `v4.channel.k8s.io`, a real process.

A container's runtime is not here: the command runs on this machine, with the environment that the test gives. Everything before it is
real: client, API server, its authorization and its proxy.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from aiohttp import web

OUT, ERROR, END = b"\1", b"\2", b"\3"


class Kubelet:
    """`port`: of the node's `kubeletEndpoint`. `asked`: (path, words) of each command. `programs`: first word -> what is run for it."""

    def __init__(self, programs: Mapping[str, Sequence[str]], environment: Mapping[str, str]) -> None:
        self.port = 0
        self.asked: list[tuple[str, list[str]]] = []
        self._programs = programs
        self._environment = dict(environment)

    async def exec(self, request: web.Request) -> web.WebSocketResponse:
        words = request.query.getall("command")
        self.asked.append((request.path, words))
        stream = web.WebSocketResponse(protocols=("v4.channel.k8s.io",))
        await stream.prepare(request)
        program = self._programs.get(words[0])
        if program is None:
            status = {"status": "Failure", "message": f'exec: "{words[0]}": executable file not found in $PATH'}
            await stream.send_bytes(END + json.dumps(status).encode())
            await stream.close()
            return stream
        process = await asyncio.create_subprocess_exec(
            *program, *words[1:], env=self._environment, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

        async def carry(channel: bytes, source: asyncio.StreamReader) -> None:
            while data := await source.read(4096):
                await stream.send_bytes(channel + data)

        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.gather(carry(OUT, process.stdout), carry(ERROR, process.stderr))
        code = await process.wait()
        causes = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
        status = (
            {"status": "Success"}
            if code == 0
            else {"status": "Failure", "reason": "NonZeroExitCode", "details": causes}
        )
        await stream.send_bytes(END + json.dumps({"metadata": {}, **status}).encode())
        await stream.close()
        return stream


@asynccontextmanager
async def serving(kubelet: Kubelet, directory: Path) -> AsyncIterator[Kubelet]:
    """Listen on loopback until the end of the block."""
    await asyncio.to_thread(
        subprocess.run,
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=kubelet",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", directory / "kubelet.key", "-out", directory / "kubelet.crt"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "kubelet.crt", directory / "kubelet.key")
    made = web.Application()
    made.router.add_route("*", "/exec/{namespace}/{pod}/{container}", kubelet.exec)
    runner = web.AppRunner(made)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        kubelet.port = runner.addresses[0][1]
        yield kubelet
    finally:
        await runner.cleanup()
