#!/opt/hauberk/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Whether the stage in this container does its work: `health node|processor|planner|sink`. Exit 0 when it does, 1 with a
sentence.

It asks the stage's own `/readyz` (settings section `metrics`), which names what is not ready: a process that hangs does not answer.
Standard library alone: it runs every half minute.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request
from typing import Final

STAGES: Final = ("node", "processor", "planner", "sink", "enforcer")
"""`enforcer`: the planner in a compose file of the version before."""
SECONDS: Final = 10.0
"""Longest wait for an answer; the engine gives the whole check 15."""


def url() -> str:
    """Where the stage says whether it is ready: `metrics.port` of its settings, 9644 unless set."""
    return os.environ.get("HAUBERK_HEALTH_URL") or (
        f"http://127.0.0.1:{os.environ.get('HAUBERK__METRICS__PORT', '9644')}/readyz"
    )


def problem(asked: str) -> str:
    """What is not ready, as one line; "" when all is."""
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        text = error.read().decode("utf-8", "replace").strip()
        try:
            return "; ".join(f"{name}: {why}" for name, why in json.loads(text)["not_ready"].items())
        except (ValueError, KeyError, TypeError, AttributeError):
            return text or str(error)
    except OSError as error:
        return f"expected an answer at {asked}, got: {error}"
    return ""


def main(words: list[str]) -> int:
    """The check of the one stage given."""
    if len(words) != 1 or words[0] not in STAGES:
        print(f"usage: health {'|'.join(STAGES)}", file=sys.stderr)
        return 2
    try:
        wrong = problem(url())
    except Exception as error:  # noqa: BLE001 - whatever it is, the answer is no, and Docker keeps this line
        wrong = f"{type(error).__name__}: {error}"
    print(f"{words[0]}: {wrong or 'well'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
