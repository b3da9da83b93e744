# SPDX-License-Identifier: Apache-2.0
"""What the fields of a stats struct are to whoever renders metrics; declared in the struct, with the type.

A number is a counter: it only grows, and begins again with the process. `Gauge`, `Gauges` and `Level` are latest values and may fall; so
is a `bool`. A `Label` becomes a label of every metric of the struct. A mapping of numbers gives one series for each key. Other
text is for people and is no metric. A field in milliseconds ends in `_ms`, in nanoseconds in `_ns`; it is exported in seconds.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_GAUGE = Meta(extra={"metric": "gauge"})
Gauge = Annotated[int, _GAUGE]
"""A latest whole number."""
Gauges = Annotated[dict[str, int], _GAUGE]
"""Latest whole numbers, one for each key."""
Level = Annotated[float, _GAUGE]
"""A latest value of any kind."""
Label = Annotated[str, Meta(extra={"metric": "label"})]
"""Who the numbers are of."""

Kind = Literal["counter", "gauge", "label", "text"]


@functools.cache
def declared(struct: type[msgspec.Struct]) -> dict[str, Kind]:
    """Field -> what it is, in the order of the struct."""
    return {field.name: _kind(field.type) for field in msgspec.structs.fields(struct)}


def _kind(annotation: Any) -> Kind:
    for meta in getattr(annotation, "__metadata__", ()):
        kind: Kind | None = (meta.extra or {}).get("metric")
        if kind is not None:
            return kind
    if annotation is bool:
        return "gauge"
    return "text" if annotation is str else "counter"
