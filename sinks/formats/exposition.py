# SPDX-License-Identifier: Apache-2.0
"""Metrics as Prometheus reads them: the text format 0.0.4 and OpenMetrics 1.0, written by hand.

Pure. Any stage's stats struct of plain integers becomes metrics without that stage knowing: `from_stats`. Label values may
come from workloads, so they are escaped here and counted in `capped`: a series set never grows past its cap.
Neighbour: `sinks.prometheus` serves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from schemas.stats import declared

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

OTHER: Final = "other"

_ESCAPES: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_HELP_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\n": "\\n"})
_SCALED: Final = (("_ns", 1e-9), ("_us", 1e-6), ("_ms", 1e-3))

Labels = tuple[tuple[str, str], ...]
Sample = tuple[Labels, float]
Kind = Literal["counter", "gauge"]


class Family(msgspec.Struct, kw_only=True):
    """One metric: name without `_total`, what it means, and its samples."""

    name: str
    kind: Kind
    help: str
    samples: Sequence[Sample]


class ExposedStats(msgspec.Struct, frozen=True, kw_only=True):
    """A stage's counts, to be shown as `hauberk_<part>_<field>`; `schemas.stats` says what each field is. A mapping of numbers
    gives a label `kind`, a sequence of numbers a label `index`."""

    part: str
    values: msgspec.Struct
    labels: Labels = ()


class Capped:
    """Counts by label values, at most `most` series; what comes after that is counted under `other`."""

    def __init__(self, names: Sequence[str], most: int) -> None:
        self._names = tuple(names)
        self._most = most
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, values: tuple[str, ...], count: int = 1) -> None:
        """Count. `values` in the order of the names."""
        if values not in self._counts and len(self._counts) >= self._most:
            values = (OTHER,) * len(self._names)
        self._counts[values] = self._counts.get(values, 0) + count

    def samples(self) -> list[Sample]:
        """In the order they were first seen."""
        return [(tuple(zip(self._names, values, strict=True)), count) for values, count in self._counts.items()]


def metric_name(part: str, field: str, kind: str) -> str:
    """The name a scrape shows: a counter ends in `_total`, times are in seconds."""
    return f"hauberk_{part}_{_named(field)[0]}" + ("_total" if kind == "counter" else "")


def from_stats(every: Iterable[ExposedStats]) -> list[Family]:
    """Families of all stats, those of one name joined."""
    families: dict[str, Family] = {}
    for stats in every:
        struct = type(stats.values)
        fields = declared(struct)
        labels = stats.labels + tuple(
            (field, str(getattr(stats.values, field))) for field, kind in fields.items() if kind == "label"
        )
        about = (struct.__doc__ or struct.__name__).split("\n", 1)[0].strip()
        for field, kind in fields.items():
            if kind not in ("counter", "gauge"):
                continue
            name, scale = _named(field)
            full = f"hauberk_{stats.part}_{name}"
            samples = _samples(getattr(stats.values, field), labels, scale)
            family = families.get(full)
            if family is None:
                families[full] = Family(name=full, kind=kind, help=f"{field}: {about}", samples=samples)
            else:
                # A series told twice would make the whole scrape invalid: the later one counts.
                family.samples = list((dict(family.samples) | dict(samples)).items())
    return list(families.values())


def render(families: Iterable[Family], *, openmetrics: bool) -> bytes:
    """The page. Families without samples still show HELP and TYPE, so that a rule may name them from the start."""
    lines = []
    for family in families:
        name = family.name
        total = f"{name}_total" if family.kind == "counter" else name
        # OpenMetrics names a counter's family without `_total`; the older format knows only sample names.
        head = name if openmetrics else total
        lines.append(f"# HELP {head} {family.help.translate(_HELP_ESCAPES)}\n# TYPE {head} {family.kind}\n")
        for labels, value in family.samples:
            told = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in labels)
            lines.append(f"{total}{{{told}}} {_number(value)}\n" if told else f"{total} {_number(value)}\n")
    if openmetrics:
        lines.append("# EOF\n")
    return "".join(lines).encode("utf-8", "backslashreplace")


def wants_openmetrics(accept: str) -> bool:
    """Whether the `Accept` header asks for OpenMetrics before anything else we have."""
    best, found = 0.0, False
    for part in accept.split(","):
        kind, *parameters = (piece.strip() for piece in part.split(";"))
        quality = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    quality = float(parameter[2:])
                except ValueError:
                    quality = 0.0
        if kind in ("application/openmetrics-text", "text/plain", "*/*", "text/*") and quality > best:
            best, found = quality, kind == "application/openmetrics-text"
    return found


def _named(field: str) -> tuple[str, float]:
    for suffix, scale in _SCALED:
        if field.endswith(suffix):
            return f"{field.removesuffix(suffix)}_seconds", scale
    return field.removesuffix("_total"), 1.0


def _samples(value: object, labels: Labels, scale: float) -> list[Sample]:
    if isinstance(value, int | float):
        return [(labels, value * scale if scale != 1.0 else value)]
    if isinstance(value, Mapping):
        return [((*labels, ("kind", str(key))), each * scale) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return [((*labels, ("index", str(at))), each * scale) for at, each in enumerate(value)]
    raise TypeError(f"expected a number, a mapping or a sequence of numbers as a metric, got {type(value).__name__}")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(int(value))
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else ("+Inf" if value > 0 else "-Inf")
