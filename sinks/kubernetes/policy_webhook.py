# SPDX-License-Identifier: Apache-2.0
"""A validating webhook for policies: refuses what `hauberk policy check` refuses, in its words, when somebody applies it.

It decides nothing else: a policy that came in while this was away is told with its errors in its status. Every replica of
`hauberk cluster` answers. Whoever reaches the port may ask, and gets findings about what they sent themselves; bodies, connections and
time are bounded. Neighbours: `teller` (the status), `sinks.listener`, `cluster.policy_object`.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cluster.policy_object import KINDS, PolicyFindings, author_document
from schemas.errors import SettingsError
from sinks.kubernetes.settings import ClusterWebhookSettings
from sinks.listener import HEADER_SECONDS, Listener, why

if TYPE_CHECKING:
    from aiohttp import web

log = logging.getLogger(__name__)

PATH: Final = "/validate"
MOST_BODY: Final = 8 << 20
"""Bytes of a review: the new and the old object, of which the API server takes 3 MiB each, and what is around them."""
_AT_ONCE: Final = 4
"""Reviews that are read and checked at a time: their bodies are what this holds most of."""
_MOST_MESSAGE: Final = 8192
"""Characters of a refusal: kubectl prints it whole."""
_LOOK_SECONDS: Final = 30.0
"""Between looks at the certificate's files: a Secret is renewed weeks before its end."""


class PolicyWebhookStats(msgspec.Struct):
    """Plain counts since start: reviews that were `allowed` and `refused`, and requests that were no review, too large or too slow."""

    allowed: int = 0
    refused: int = 0
    unreadable: int = 0


class _ReviewedMeta(msgspec.Struct, rename="camel"):
    deletion_timestamp: str | None = None


class _ReviewedObject(msgspec.Struct):
    metadata: _ReviewedMeta


class _ReviewedKind(msgspec.Struct):
    kind: str


class _ReviewRequest(msgspec.Struct):
    uid: str
    kind: _ReviewedKind
    object: msgspec.Raw = msgspec.Raw()


class _Review(msgspec.Struct):
    request: _ReviewRequest


_review = msgspec.json.Decoder(_Review).decode
_object = msgspec.json.Decoder(_ReviewedObject).decode


def answer(body: bytes, check: Callable[[bytes], PolicyFindings]) -> tuple[bool, bytes]:
    """Whether the object of an AdmissionReview (admission.k8s.io/v1) may be written, and the AdmissionReview that says so. ValueError
    when `body` is none."""
    try:
        request = _review(body).request
        found = PolicyFindings()
        # What is being deleted is written once more, without its finalizers: refused, it would never go.
        if request.kind.kind in KINDS.values() and not _object(request.object).metadata.deletion_timestamp:
            found = check(author_document(request.kind.kind, request.object)[1])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(f"expected an AdmissionReview of admission.k8s.io/v1, got: {error}") from error
    said: dict[str, Any] = {"uid": request.uid, "allowed": not found.errors}
    if found.errors:
        message = f"hauberk policy check: {'; '.join(found.errors)}"
        said["status"] = {"code": 422, "reason": "Invalid", "message": message[:_MOST_MESSAGE]}
    if found.warnings:
        said["warnings"] = found.warnings
    made = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": said}
    return not found.errors, msgspec.json.encode(made)


class PolicyWebhook:
    """`await open()`, then `await close()`. `port` is known after `open`. `check`: what is wrong with a policy as JSON; may take long, so
    it is called in a thread."""

    def __init__(self, settings: ClusterWebhookSettings, check: Callable[[bytes], PolicyFindings]) -> None:
        self._settings = settings
        self._check = check
        self._listener = Listener("policy-webhook", settings.host, settings.port)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._files: tuple[float, ...] = ()
        self._renewing: asyncio.Task[None] | None = None
        self.stats = PolicyWebhookStats()
        self.listening = self._listener.stats

    @property
    def port(self) -> int:
        return self._listener.port

    async def open(self) -> None:
        """Listen. SettingsError when the certificate cannot be read, or the port is somebody else's."""
        from aiohttp import web

        settings = self._settings
        try:
            self._renew()
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"`cluster_webhook`: expected a certificate in `{settings.cert_file}` and its key in `{settings.key_file}`, got: {error}; "
                "the Secret of type kubernetes.io/tls has both"
            ) from error
        application = web.Application(client_max_size=MOST_BODY)
        application.router.add_post(PATH, self._answer)
        try:
            await self._listener.open(application, tls=self._tls)
        except OSError as error:
            raise SettingsError(
                f"`cluster_webhook.port`: expected to listen on {settings.host}, port {settings.port}, got: {why(error)}; choose another"
            ) from error
        self._renewing = asyncio.create_task(self._keep(), name="policy-webhook-certificate")

    async def close(self) -> None:
        """Let go of the port. Twice is once."""
        renewing, self._renewing = self._renewing, None
        if renewing is not None:
            renewing.cancel()
            await asyncio.wait({renewing})
        await self._listener.close()

    async def _answer(self, request: web.Request) -> web.Response:
        from aiohttp import web

        try:
            async with asyncio.timeout(HEADER_SECONDS), self._at_once:
                body = await request.read()
                allowed, made = await asyncio.to_thread(answer, body, self._check)
        except TimeoutError:
            self.stats.unreadable += 1
            return web.Response(status=408, text=f"expected a whole review within {HEADER_SECONDS:g} s\n")
        except web.HTTPRequestEntityTooLarge:
            self.stats.unreadable += 1
            return web.Response(status=413, text=f"expected a review of at most {MOST_BODY} bytes\n")
        except ValueError as error:
            self.stats.unreadable += 1
            return web.Response(status=400, text=f"{error}\n")
        self.stats.allowed += allowed
        self.stats.refused += not allowed
        return web.Response(body=made, content_type="application/json")

    def _renew(self) -> bool:
        """Read the certificate when its files are others than before. Handshakes from now on show it."""
        names = self._settings.cert_file, self._settings.key_file
        files = tuple(Path(name).stat().st_mtime for name in names)
        if files == self._files:
            return False
        self._tls.load_cert_chain(*names)
        self._files = files
        return True

    async def _keep(self) -> None:
        told = ""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            try:
                if self._renew():
                    log.info("the webhook's certificate was renewed")
                told = ""
            except (OSError, ssl.SSLError) as error:
                if told != str(error):
                    log.warning("the webhook's certificate cannot be read again, the one before stays: %s", error)
                told = str(error)
