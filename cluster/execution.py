# SPDX-License-Identifier: Apache-2.0
"""A command run in a pod through the API server, as `kubectl exec` runs one: its output as it comes, and its exit code.

The API server hands the connection on to the pod's kubelet. Channels (v4.channel.k8s.io): the first byte of a message is 1 for
standard output, 2 for standard error, 3 for the end. Neighbours: `server`, `hauberk.in_cluster`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import aiohttp
import msgspec

from cluster.credentials import configured
from cluster.settings import ServerSettings
from schemas.errors import Refused, Unavailable

OUT: Final = 1
ERROR: Final = 2
_END: Final = 3
_HEARTBEAT: Final = 30.0
"""Seconds between pings: a command that says nothing for long is not taken for a connection that broke."""


class _Cause(msgspec.Struct):
    reason: str = ""
    message: str = ""


class _Details(msgspec.Struct):
    causes: list[_Cause] = []


class _End(msgspec.Struct):
    """`Status` of the end of a command."""

    status: str = ""
    message: str = ""
    details: _Details = msgspec.field(default_factory=_Details)


async def execute(
    settings: ServerSettings,
    namespace: str,
    pod: str,
    container: str,
    words: Sequence[str],
    out: Callable[[int, bytes], None],
) -> int:
    """The exit code of `words` in that container; `out` gets OUT or ERROR and bytes. Refused when it may not be or cannot be started,
    Unavailable when nobody answers or the connection breaks, SettingsError without a usable kubeconfig."""
    made, where = await configured(settings)
    from kubernetes_asyncio.stream import WsApiClient

    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/exec"
    query = [("container", container), ("stdout", "true"), ("stderr", "true"), *(("command", word) for word in words)]
    async with WsApiClient(made, heartbeat=_HEARTBEAT) as api:
        try:
            opening: Any = await api.call_api(
                path, "GET", query_params=query, auth_settings=["BearerToken"], _preload_content=False
            )
            async with opening as stream:
                return await _carry(stream, out, where)
        except aiohttp.WSServerHandshakeError as error:
            asked = f"expected to run `{words[0]}` in pod {namespace}/{pod} at {where}, got {error.status}"
            if error.status in (401, 403):
                what = (
                    "`get` and `create` on `pods/exec`"
                    if error.status == 403
                    else "a token or certificate that is valid"
                )
                raise Refused(f"{asked}; the account of the kubeconfig needs {what}") from error
            raise Unavailable(f"{asked}; does the kubelet of its node answer? `kubectl exec` says more") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(
                f"expected an answer of the API server {where}, got {type(error).__name__}: {error}"
            ) from error


async def _carry(stream: Any, out: Callable[[int, bytes], None], where: str) -> int:
    async for message in stream:
        data = message.data if isinstance(message.data, bytes) else str(message.data).encode()
        if message.type not in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT) or not data:
            continue
        if data[0] in (OUT, ERROR):
            out(data[0], data[1:])
        elif data[0] == _END:
            return _code(data[1:])
    raise Unavailable(f"expected the end of a command in a pod from {where}, the connection broke before it")


def _code(data: bytes) -> int:
    try:
        end = msgspec.json.decode(data, type=_End)
    except (msgspec.MsgspecError, ValueError) as error:
        raise Unavailable(f"expected the end of a command as a Status, got: {error}") from error
    if end.status == "Success":
        return 0
    for cause in end.details.causes:
        if cause.reason == "ExitCode" and cause.message.isdigit():
            return int(cause.message)
    raise Refused(f"expected the command to be started in the pod, got: {end.message or 'no reason'}")
