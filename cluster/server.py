# SPDX-License-Identifier: Apache-2.0
"""One API server: requests with the credentials of a kubeconfig or a pod, answers as bytes, refusals as sentences.

kubernetes-asyncio finds the configuration, renews tokens and holds the TLS session; bodies stay bytes, because its objects cost
675 us a pod where a partial struct costs 3. A call ends within its deadline, with an answer or an error of
`schemas.errors`. Neighbours: `reflector` (lists and watches), `lease`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec

from cluster.credentials import Credentials
from cluster.settings import ServerSettings
from schemas.errors import HauberkError, Incompatible, Refused, Temporary, Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

MOST_LINE: Final = 8 << 20
"""Bytes of one event of a watch: etcd takes objects of 1.5 MiB, a list of managed fields may triple them."""
CLOCK_OFF: Final = 10
"""Seconds that clocks may differ untold; the header has whole seconds, and an answer may be a few late."""
_GOODBYE: Final = 0.1
"""Seconds for connections that are closing; by feel, an answer of the server away."""


class ApiStatus(msgspec.Struct, frozen=True):
    """`Status` of the API server, which every refusal has as its body."""

    message: str = ""
    reason: str = ""
    code: int = 0


class Conflict(Temporary):
    """Somebody else wrote the object since it was read, or made it first: read it again."""


class TooLarge(Refused):
    """The object would be larger than etcd takes (1.5 MiB) once this is written."""


class Gone(Temporary):
    """The version that a list or watch goes on from is not kept any more (410): list again."""


class Server:
    """Use `connected`. `where`: the address, for sentences. `clock_off`: seconds that the server's clock is ahead of this machine's.

    Credentials that the server does not take any more (401) are read again where they came from. Where they are the same still, every
    watch ends with that: the server goes on with one that began before, and nobody would hear of the others for minutes."""

    def __init__(self, credentials: Credentials, settings: ServerSettings) -> None:
        self._credentials = credentials
        self._settings = settings
        self._watched: set[aiohttp.ClientResponse] = set()
        self._unauthorized = False
        self.clock_off = 0.0

    @property
    def where(self) -> str:
        return self._credentials.where

    @property
    def settings(self) -> ServerSettings:
        return self._settings

    async def get(self, path: str, query: Mapping[str, str] | None = None, accept: str = "application/json") -> bytes:
        """The body of an answer."""
        return await self._whole("GET", path, query, accept)

    async def send(
        self,
        method: str,
        path: str,
        body: object,
        query: Mapping[str, str] | None = None,
        content: str = "application/json",
    ) -> bytes:
        """POST, PUT, PATCH or DELETE of `body` (what JSON has); the body of the answer. Conflict at 409."""
        return await self._whole(method, path, query, "application/json", body, content)

    @asynccontextmanager
    async def lines(
        self, path: str, query: Mapping[str, str], accept: str, seconds: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The lines of a watch, which ends by itself before `seconds` are over. Unavailable when it does not, or breaks."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=self._settings.timeout_seconds)
        answer = await self._asked("GET", path, query, accept, None, "application/json", timeout)
        try:
            if answer.status != 200:
                raise self._refusal("watch", path, answer.status, await self._read(answer))
            self._watched.add(answer)
            yield self._split(answer.content, path)
        finally:
            self._watched.discard(answer)
            # Not closed with TLS's goodbye: the other side still sends, and would be waited for.
            if answer.connection is not None and answer.connection.transport is not None:
                answer.connection.transport.abort()
            answer.close()

    async def _split(self, stream: aiohttp.StreamReader, path: str) -> AsyncIterator[bytes]:
        rest = bytearray()
        try:
            async for data in stream.iter_any():
                rest += data
                *lines, last = rest.split(b"\n")
                for line in lines:
                    if line:
                        yield bytes(line)
                rest = bytearray(last)
                if len(rest) > MOST_LINE:
                    raise Unavailable(
                        f"expected events of at most {MOST_LINE} bytes from {self.where}, got a longer one; asked again"
                    )
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if self._unauthorized:
                raise self._refusal("watch", path, 401, b'{"message":"Unauthorized"}') from error
            raise self._away(error) from error

    async def _whole(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None,
        accept: str,
        body: object = None,
        content: str = "application/json",
    ) -> bytes:
        timeout = aiohttp.ClientTimeout(
            total=self._settings.timeout_seconds * 3, sock_read=self._settings.timeout_seconds
        )
        answer = await self._asked(method, path, query or {}, accept, body, content, timeout)
        try:
            data = await self._read(answer)
            if not 200 <= answer.status < 300:
                raise self._refusal(_verb(method, path), path, answer.status, data)
            return data
        finally:
            answer.release()

    async def _asked(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        accept: str,
        body: object,
        content: str,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        headers = {"Accept": accept, "Content-Type": content}
        pairs: Sequence[tuple[str, str]] = list(query.items())
        while True:
            api = self._credentials.api
            try:
                async with asyncio.timeout(self._settings.timeout_seconds):
                    answer: aiohttp.ClientResponse = await api.call_api(
                        path, method, query_params=pairs, header_params=dict(headers), body=body, auth_settings=["BearerToken"],
                        _preload_content=False, _request_timeout=timeout,
                    )  # fmt: skip
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                raise self._away(error) from error
            self._compare(answer.headers.get("Date", ""))
            if answer.status != 401:
                self._unauthorized = False
                return answer
            if not await self._credentials.renewed(api):
                self._end_watches()
                return answer
            answer.close()

    def _end_watches(self) -> None:
        self._unauthorized = True
        for one in self._watched:
            if one.connection is not None and one.connection.transport is not None:
                one.connection.transport.abort()

    def _compare(self, date: str) -> None:
        """Tell when the clocks differ: pods start by the server's, events are of the nodes' and this machine's."""
        try:
            there = parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        now = time.time()
        before, self.clock_off = self.clock_off, there - now
        if abs(self.clock_off) > CLOCK_OFF and abs(self.clock_off - before) > CLOCK_OFF:
            log.warning(
                "expected the clock of the API server %s within %d s of this machine's, got %s there and %s here; rules are in force as ever, but "
                "who had an address when, and times in statuses, are told wrongly: set the clocks right (NTP)",
                self.where, CLOCK_OFF, _utc(there), _utc(now),
            )  # fmt: skip

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        try:
            return await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._away(error) from error

    def _away(self, error: BaseException) -> HauberkError:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            if any(words in str(error) for words in ("has expired", "not yet valid")):
                return Refused(
                    f"expected the API server {self.where} to show a certificate that is valid now ({_utc(time.time())} by this machine's "
                    f"clock), got: {error}; set the clock right, or renew the server's certificate"
                )
            return Refused(
                f"expected the API server {self.where} to show a certificate of the kubeconfig's authority, got: {error}; "
                "renew `certificate-authority-data` of the kubeconfig"
            )
        return Unavailable(
            f"expected an answer of the API server {self.where}, got {type(error).__name__}: {error}; tried again"
        )

    def _refusal(self, verb: str, path: str, status: int, body: bytes) -> HauberkError:
        try:
            said = msgspec.json.decode(body, type=ApiStatus)
        except (msgspec.MsgspecError, ValueError):
            said = ApiStatus(message=body[:200].decode("utf-8", "replace").strip())
        got = f"got {status}: {said.message or said.reason}"
        asked = f"to {verb} {path} at {self.where}"
        if status == 401:
            return Refused(
                f"expected {asked}, {got}; the token or certificate is wrong or expired: renew the kubeconfig"
            )
        if status == 403:
            return Refused(
                f"expected {asked}, {got}; give the account that right (deploy/kubernetes lists what each role needs)"
            )
        if status == 404:
            return Incompatible(f"expected {asked}, {got}; the cluster does not have this kind or object")
        if status == 409:
            return Conflict(f"expected {asked}, {got}")
        if status == 410:
            return Gone(f"expected {asked}, {got}")
        if status == 413 or "request is too large" in said.message:
            return TooLarge(f"expected {asked}, {got}; etcd takes objects of 1.5 MiB: write a smaller one")
        if status == 429 or status >= 500:
            return Unavailable(f"expected {asked}, {got}; tried again")
        return Refused(f"expected {asked}, {got}")


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _verb(method: str, path: str) -> str:
    return {"GET": "read", "POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}[method]


@asynccontextmanager
async def connected(settings: ServerSettings) -> AsyncIterator[Server]:
    """A server by `settings`, whether or not it is there now. SettingsError when there is no usable configuration."""
    credentials = Credentials(settings)
    await credentials.open()
    try:
        yield Server(credentials, settings)
    finally:
        # Of calls that were cancelled just now the connections say goodbye to the server first.
        await asyncio.sleep(_GOODBYE)
        await credentials.close()
