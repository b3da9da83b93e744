# SPDX-License-Identifier: Apache-2.0
"""The address of an API server and the credentials for it, of a kubeconfig or of a pod's account; read again when they are refused.

Whoever renews a kubeconfig, or the program that it names, need not start Hauberk again. Neighbours: `server` (who asks with them).
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path
from typing import Any, Final

from cluster.client_library import light
from cluster.settings import ServerSettings
from schemas.errors import SettingsError
from schemas.file_text import not_utf8

log = logging.getLogger(__name__)

AGAIN: Final = 5.0
"""Seconds between readings of credentials that were refused: a program that the kubeconfig names may take a second of its own."""
_LATE: Final = 60.0
"""Seconds after which the connections of credentials that were replaced are closed, beyond those that a watch may take."""


class Credentials:
    """`open`, then `api` is the client of kubernetes-asyncio by them and `where` the address; `close` in the end."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._one = asyncio.Lock()
        self._read = -AGAIN
        self._mark: object = None
        self._closing: set[asyncio.Task[None]] = set()
        self.api: Any = None
        self.where = ""

    async def open(self) -> None:
        """SettingsError when there is no usable configuration."""
        made, self.where = await configured(self._settings)
        from kubernetes_asyncio import client

        self._mark = _mark(made)
        self.api = client.ApiClient(made)

    async def close(self) -> None:
        """Close every connection."""
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self.api.close()

    async def renewed(self, refused: Any) -> bool:
        """Whether there are others by now than those of the client `refused`, whom the server answered with 401."""
        async with self._one:
            if self.api is not refused:
                return True
            clock = asyncio.get_running_loop().time
            if clock() - self._read < AGAIN:
                return False
            self._read = clock()
            try:
                made, where = await configured(self._settings)
            except SettingsError as error:
                log.warning("the credentials for the API server are refused, and cannot be read again: %s", error)
                return False
            if (mark := _mark(made)) == self._mark:
                return False
            from kubernetes_asyncio import client

            self._mark, self.where, self.api = mark, where, client.ApiClient(made)
            log.warning(
                "the credentials for the API server %s were refused, and are read again: others are there by now", where
            )
            task = asyncio.create_task(_close(refused, self._settings.watch_seconds * 1.25 + _LATE))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
            return True


async def _close(api: Any, seconds: float) -> None:
    try:
        await asyncio.sleep(seconds)
    finally:
        await api.close()


def _mark(made: Any) -> object:
    """What tells credentials apart: the address, tokens, and what files of certificates hold."""
    files = [_content(name) for name in (made.ssl_ca_cert, made.cert_file, made.key_file)]
    return made.host, dict(made.api_key), made.username, made.password, files


def _content(name: str | None) -> bytes:
    try:
        return Path(name).read_bytes() if name else b""
    except OSError:
        return b""


async def configured(settings: ServerSettings) -> tuple[Any, str]:
    """The client's configuration and the server's address. SettingsError when there is none that can be used."""
    light()
    from kubernetes_asyncio import client, config
    from kubernetes_asyncio.config import ConfigException
    from yaml import YAMLError

    made = client.Configuration()
    file, source = _found(settings)
    try:
        if file:
            await config.load_kube_config(config_file=file, context=settings.context or None, client_configuration=made)
        else:
            config.load_incluster_config(client_configuration=made)  # type: ignore[no-untyped-call]
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, KeyError, AttributeError, ImportError) as error:
        raise SettingsError(
            f"expected a cluster's address and credentials in {source}, got: {_why(error, file)}; set `cluster.server.kubeconfig`, or $KUBECONFIG"
        ) from error
    return made, str(made.host)


def _why(error: Exception, files: str) -> str:
    if isinstance(error, UnicodeDecodeError):
        # The loader reads in pieces, and its places are those in a piece.
        for one in files.split(os.pathsep):
            try:
                Path(one).read_bytes().decode()
            except UnicodeDecodeError as whole:
                return f"in `{one}` {not_utf8(whole)}"
            except OSError:
                continue
    return " ".join(str(error).split())


def _found(settings: ServerSettings) -> tuple[str, str]:
    """The kubeconfig to read, "" in a pod; and its name for sentences. SettingsError when there is none."""
    usual = Path("~/.kube/config").expanduser()
    named = settings.kubeconfig or os.environ.get("KUBECONFIG", "")
    if not named and not usual.is_file() and "KUBERNETES_SERVICE_HOST" in os.environ:
        return "", "the pod's service account"
    file = named or str(usual)
    # $KUBECONFIG may name several, of which not all need be there.
    if not any(Path(one).is_file() for one in file.split(os.pathsep)):
        raise SettingsError(
            f"expected a cluster's address and credentials in the kubeconfig `{file}`, there is no such file; "
            "set `cluster.server.kubeconfig`, or $KUBECONFIG"
        )
    return file, f"the kubeconfig `{file}`"
