# SPDX-License-Identifier: Apache-2.0
"""OpenSSL left out of a process until something asks for TLS or for a password's hash: 4 MB resident that a node on its own machine's
bus, or on brokers without TLS and without accounts, never uses.

asyncio, `hashlib` and `hmac` import what binds OpenSSL when they are imported, and do without it where an interpreter was built without.
`leave_out` has them imported so; `take_in` gives it to them afterwards. Neighbours: `tls` and `kafka.security` (which take it in),
`hauberk.cli` (which leaves it out).
"""

from __future__ import annotations

import sys
from importlib import import_module, reload
from typing import Any, Final

_BOUND: Final = ("ssl", "_hashlib")
"""What asyncio, and what `hashlib` and `hmac`, ask for."""


def leave_out() -> bool:
    """Before anything of the above is imported; whether it was early enough."""
    if not sys.modules.keys().isdisjoint((*_BOUND, "asyncio", "hashlib", "hmac")):
        return False
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(_BOUND))
    try:
        for name in ("asyncio", "hashlib", "hmac"):
            import_module(name)
    finally:
        for name in _BOUND:
            del modules[name]
    return True


def take_in() -> None:
    """From here on as if it had never been left out. Nothing to do where it was not."""
    asyncio = [module for name, module in sys.modules.items() if name.startswith("asyncio.")]
    without = [module for module in asyncio if getattr(module, "ssl", module) is None]
    if not without:
        return
    ssl = import_module("ssl")
    for module in without:
        module.__dict__["ssl"] = ssl
    # These three decide at their import what they offer.
    for name in ("asyncio.sslproto", "hashlib", "hmac"):
        reload(sys.modules[name])
