# SPDX-License-Identifier: Apache-2.0
"""Lists of container names in a selector, as they are written. Pure. Neighbours: `cross_field`, `policy.rules.select`."""

from __future__ import annotations


def container_names(value: str) -> tuple[str, ...]:
    """Names in a container list: `[a, b]`, `[a,,]`, `a`. Empty for `""`, `[]` and `[,]`, which mean every container."""
    body = value.strip()
    if body.startswith("[") and body.endswith("]"):
        body = body[1:-1]
    return tuple(name for name in (part.strip() for part in body.split(",")) if name)


def is_list(value: str) -> bool:
    """Whether a container name value is a bracketed list rather than an expression."""
    body = value.strip()
    return not body or (body[0] == "[" and body[-1] == "]" and not set("[]()*+?|\\^$") & set(body[1:-1]))
