# SPDX-License-Identifier: Apache-2.0
"""Hardening templates as data: what they say, and reading them. Pure; the set that comes with Hauberk is `templates/hardening.yaml`."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.errors import PolicyError
from schemas.file_text import not_utf8

FRAMEWORKS: Final = ("MITRE", "NIST", "CIS", "PCI-DSS")
_NAME: Final = r"^[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?$"
_PATH: Final = r"^/[^\x00]*!?$"
Placed = Annotated[str, Meta(pattern=_PATH, max_length=512)]
Program = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.+-]+$", max_length=64)]


class Template(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`programs`: names, enforced where an image has them, when started by one of `sources` if there are any. `named`: names, wherever they
    come from. `no_exec`: directories. `read_only`, `closed`: paths, directories with a slash at the end; with `!` also where an image has
    none. `needs`: one of these programs must be there; `unless`: none of these paths may, since what has them does what is to be stopped. `stops`, `passes`: what its tests do."""

    name: Annotated[str, Meta(pattern=_NAME)]
    title: str
    why: str
    severity: Annotated[int, Meta(ge=1, le=10)]
    action: Literal["Block", "Audit"]
    frameworks: dict[str, tuple[str, ...]] = {}
    needs: tuple[Program, ...] = ()
    unless: tuple[Placed, ...] = ()
    programs: tuple[Program, ...] = ()
    sources: tuple[Program, ...] = ()
    named: tuple[Program, ...] = ()
    no_exec: tuple[Placed, ...] = ()
    read_only: tuple[Placed, ...] = ()
    closed: tuple[Placed, ...] = ()
    protocols: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()

    @property
    def tags(self) -> tuple[str, ...]:
        """As alerts carry them."""
        return tuple(f"{framework} {one}" for framework in FRAMEWORKS for one in self.frameworks.get(framework, ()))


class TemplateSet(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file of them. `version`: year, month and number, newer ones are greater."""

    version: Annotated[str, Meta(pattern=r"^[0-9]{4}\.[0-9]{1,2}\.[0-9]+$")]
    templates: tuple[Template, ...]

    @property
    def order(self) -> tuple[int, ...]:
        """For comparing versions."""
        return tuple(int(part) for part in self.version.split("."))


def read(text: bytes, origin: str) -> TemplateSet:
    """The templates in `text`. PolicyError for anything that is none, with where and why."""
    try:
        found = msgspec.yaml.decode(text.decode("utf-8-sig"), type=TemplateSet)
    except UnicodeDecodeError as error:
        raise PolicyError(f"expected a file of templates in `{origin}`, got {not_utf8(error)}", ()) from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise PolicyError(
            f"expected a file of templates in `{origin}`, got: {' '.join(str(error).split())}", ()
        ) from error
    names = [one.name for one in found.templates]
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise PolicyError(f"expected every template of `{origin}` once, got `{twice}` twice", ())
    for one in found.templates:
        if unknown := set(one.frameworks) - set(FRAMEWORKS):
            raise PolicyError(
                f"expected frameworks {', '.join(FRAMEWORKS)} in `{one.name}` of `{origin}`, got `{min(unknown)}`", ()
            )
        if not (
            one.programs or one.named or one.no_exec or one.read_only or one.closed or one.protocols or one.presets
        ):
            raise PolicyError(f"expected `{one.name}` of `{origin}` to have a rule, it has none", ())
        if any(re.search(r"(^|/)\.\.?(/|$)", path) for path in (*one.no_exec, *one.read_only, *one.closed)):
            raise PolicyError(f"expected absolute paths without `.` and `..` in `{one.name}` of `{origin}`", ())
    return found
