# SPDX-License-Identifier: Apache-2.0
"""`eventually` and `until`: poll until something is so, with a deadline that a slow machine keeps. `tests/conftest.py` has
them as fixtures; classes of tests import them (`pythonpath` in pyproject.toml).

What waits for time itself takes no part in this: it is given a clock (`clock=`) that the test moves.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any


def eventually(ask: Callable[[], Any], seconds: float = 60.0, what: str = "") -> Any:
    """The first true answer of `ask`; AssertionError with the condition and the last answer after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise AssertionError(_late(ask, seconds, what, answer))
        time.sleep(0.02)
    return answer


async def until(ask: Callable[[], Any], seconds: float = 60.0, what: str = "") -> Any:
    """`eventually` for tests that run a loop; `ask` may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        answer = ask()
        if inspect.isawaitable(answer):
            answer = await asyncio.wait_for(answer, seconds)
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(_late(ask, seconds, what, answer))
        await asyncio.sleep(0.005)


def _late(ask: Callable[[], Any], seconds: float, what: str, answer: object) -> str:
    if not what:
        try:
            what = " ".join(inspect.getsource(ask).split())
        except (OSError, TypeError):
            what = repr(ask)
    return f"expected within {seconds:g} s: {what}; the last answer was {answer!r}"
