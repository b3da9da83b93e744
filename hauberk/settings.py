# SPDX-License-Identifier: Apache-2.0
"""How the configuration is read: a TOML or YAML file, then the environment (`HAUBERK__A__B`), then `--set a.b=value`.

Later wins, and each value remembers where it came from. An unknown key, a wrong type or a value out of range is a
SettingsError that holds the path. The structs themselves stand above their components, in the stages.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec

from hauberk.inputs import read
from hauberk.settings_lists import advice
from hauberk.settings_text import DEPTH, SIZE, bounded, one_line, parse, too_deep
from schemas.errors import SettingsError

ENVIRONMENT: Final = "HAUBERK__"
FILE_VARIABLE: Final = "HAUBERK_CONFIG"
STATE_VARIABLE: Final = "HAUBERK_STATE"

MOVED: Final = {
    ("enforcer",): ("planner",),
    ("sensor", "node"): ("node",),
    ("inventory", "node"): ("node",),
    ("processor", "postures"): ("postures",),
    ("planner", "postures"): ("postures",),
    ("sensor", "load", "host_visibility"): ("postures", "host_visibility"),
}
"""Old place of a setting: its place. The old one is accepted, with a line on standard error, until version 0.3. Read in order."""
_reported: Final[set[str]] = set()

T = TypeVar("T")


def state_directory(given: str | None = None) -> Path:
    """Where the bus, the stores and the last plan live: `given`, HAUBERK_STATE, /var/lib/hauberk for root, else XDG's place."""
    if chosen := given or os.environ.get(STATE_VARIABLE):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/hauberk")
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "hauberk"


def read_file(path: Path) -> dict[str, Any]:
    """The mapping in a .toml, .yaml, .yml or .json file."""
    form = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}.get(path.suffix)
    if form is None:
        raise SettingsError(f"expected a settings file that ends in .toml, .yaml or .json, got `{path.name}`")
    return parse(read(str(path), "a settings file", SIZE, "; name another with --config"), form, str(path))


def _put(tree: dict[str, Any], path: Sequence[str], value: Any, origin: str) -> None:
    if len(path) > DEPTH:
        raise too_deep(origin)
    spot = tree
    for step in path[:-1]:
        below = spot.setdefault(step, {})
        if not isinstance(below, dict):
            at = ".".join(path[: path.index(step) + 1])
            whole = f"; {advice(at, {}, (), origin, _SECRET)}" if isinstance(below, list) else ""
            raise SettingsError(
                f"expected a table at `{step}` for `{'.'.join(path)}` ({origin}), got `{type(below).__name__}`{whole}"
            )
        spot = below
    spot[path[-1]] = value


def _moved(path: list[str], value: Any, origin: str) -> list[tuple[list[str], Any]]:
    """A setting as this version has it: what stands at an old place is taken from there, and reported once per process."""
    found = [(path, value)]
    for old, new in MOVED.items():
        for index, (at, held) in enumerate(found):
            if tuple(at[: len(old)]) == old:
                found[index] = ([*new, *at[len(old) :]], _words(new, held))
            elif tuple(at) == old[: len(at)]:
                taken = _take(held, old[len(at) :])
                if taken is msgspec.UNSET:
                    continue
                found.append((list(new), _words(new, taken)))
            else:
                continue
            _report(".".join(old), ".".join(new), origin)
            break
    return found


def _take(held: Any, path: Sequence[str]) -> Any:
    """The value at `path` below `held`, removed from it; UNSET when there is none."""
    for step in path[:-1]:
        held = held.get(step) if isinstance(held, dict) else None
    return held.pop(path[-1], msgspec.UNSET) if isinstance(held, dict) else msgspec.UNSET


def _words(path: Sequence[str], value: Any) -> Any:
    """A number of an older file as the words that mean the same."""
    from schemas.visibility import words_of

    number = path[-1] == "host_visibility" and isinstance(value, int) and 0 <= value <= 0xFF
    return list(words_of(value)) if number else value


def _report(old: str, new: str, origin: str) -> None:
    if old not in _reported:
        _reported.add(old)
        what = "the section " if "." not in old else ""
        print(
            f"hauberk: settings: {what}`{old}` is now `{new}` (from {origin}); the old name ends with version 0.3",
            file=sys.stderr,
        )


def _join(tree: dict[str, Any], path: list[str], value: Any, origin: str) -> None:
    """`_put` beside what the same file says of it already; SettingsError when the two differ."""
    spot: Any = tree
    for step in path:
        spot = spot.get(step) if isinstance(spot, dict) else None
    if isinstance(spot, dict) and isinstance(value, dict):
        for name, below in value.items():
            _join(tree, [*path, name], below, origin)
    elif spot is not None and spot != value:
        raise SettingsError(
            f"settings: `{'.'.join(path)}` stands twice with different values, under its old name too (from {origin}); "
            f"keep `{'.'.join(path)}`"
        )
    else:
        _put(tree, path, value, origin)


def _flat(tree: Mapping[str, Any], origin: str, prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(value, origin, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = origin
    return found


def _literal(text: str, path: Sequence[str], origin: str) -> Any:
    """A value from the environment or `--set`: JSON where it is JSON, else the text itself. A whole section is never text."""
    try:
        value = msgspec.json.decode(text.encode("utf-8", "surrogateescape"))
        bounded(value, origin)
        return value
    except RecursionError as error:
        raise too_deep(origin) from error
    except ValueError as error:
        if len(path) == 1 and path[0] != "state" and text.lstrip().startswith(("{", "[")):
            raise SettingsError(
                f"settings: `{path[0]}`: expected JSON, got malformed JSON{_quoted(text)}: {one_line(error)} (from {origin})"
            ) from error
        return text


_SECRET: Final = re.compile(r"password|secret|token|key|credential", re.IGNORECASE)


def _quoted(text: str, most: int = 60) -> str:
    """A blank and the text in quotes, cut; nothing when it may hold a secret."""
    if _SECRET.search(text):
        return ""
    shown = text if len(text) <= most else text[: most - 1] + "\u2026"
    return f" `{shown}`"


class LoadedSettings(msgspec.Struct, frozen=True):
    """The merged raw tree and, for each dotted path given, where it came from."""

    tree: dict[str, Any]
    origins: dict[str, str]


def merge(
    file: str | None = None, sets: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> LoadedSettings:
    """File, environment and `--set` merged, not yet checked against structs."""
    environment = os.environ if environment is None else environment
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if chosen := file or environment.get(FILE_VARIABLE):
        for section, value in read_file(Path(chosen)).items():
            for path, part in _moved([section], value, chosen):
                _join(tree, path, part, chosen)
        origins |= _flat(tree, chosen)
    for name in sorted(environment):
        if name.startswith(ENVIRONMENT):
            path = name[len(ENVIRONMENT) :].lower().split("__")
            for at, part in _moved(path, _literal(environment[name], path, name), name):
                _put(tree, at, part, name)
                origins[".".join(at)] = name
        elif name.startswith("HAUBERK_") and "__" in name:
            raise SettingsError(
                f"settings: `{name}` is not a setting, expected two underscores at each step: "
                f"`{ENVIRONMENT}{name.removeprefix('HAUBERK_')}`"
            )
    for text in sets:
        dotted, equals, value = text.partition("=")
        if not equals or not dotted:
            raise SettingsError(f"expected --set a.b=value, got `{text}`")
        path = dotted.split(".")
        for at, part in _moved(path, _literal(value, path, "--set"), "--set"):
            _put(tree, at, part, "--set")
            origins[".".join(at)] = "--set"
    return LoadedSettings(tree, origins)


def check(loaded: LoadedSettings, kind: type[T]) -> T:
    """The tree as `kind`; SettingsError with the path of the first value that does not fit."""
    try:
        return msgspec.convert(loaded.tree, kind)
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise SettingsError(_explain(one_line(error), loaded, kind)) from error


def _explain(message: str, loaded: LoadedSettings, kind: Any) -> str:
    match = re.search(r" - at `\$(.*)`$", message)
    where = match.group(1).lstrip(".") if match else ""
    text = message[: match.start()] if match else message
    unknown = re.search(r"unknown field `([^`]+)`", text)
    path = ".".join(part for part in (where, unknown.group(1) if unknown else "") if part)
    origin = loaded.origins.get(path) or next(
        (by for key, by in loaded.origins.items() if path and key.startswith(path)), ""
    )
    if not origin and path:
        # A list comes whole from one place.
        origin = loaded.origins.get(path.split("[")[0], "")
    if (origin == "--set" or origin.startswith(ENVIRONMENT)) and "Invalid value '" not in text:
        shown = _got(_value(loaded.tree, where), where, _at(where, loaded.tree, kind))
        bare = shown.startswith(" ") and ", got " not in text
        text += ", got" * bare + shown
    if unknown:
        text = f"expected a key of this table, got `{unknown.group(1)}`"
    said = f"settings: `{path or '$'}`: {text}" + (f" (from {origin})" if origin else "")
    if "matching regex" in text or "of length" in text:
        said += _described(where, loaded.tree, kind)
    if unknown and (near := _near(unknown.group(1), where, loaded.tree, kind)):
        said += f"; did you mean `{near}`?"
    if wrong := re.search(r"Invalid (?:enum )?value '(.*)'", text):
        known = _tags(where, loaded.tree, kind) or _choices(_at(where, loaded.tree, kind))
        said += f"; expected one of {', '.join(known)}" if known else ""
        if near := _nearest(wrong.group(1), known):
            said += f"; did you mean `{near}`?"
    if isinstance(table := _value(loaded.tree, where), dict) and text.startswith("Expected `array`"):
        items = [option for one in _at(where, loaded.tree, kind) for item in get_args(one) for option in _options(item)]
        tags = [str(one.__struct_config__.tag) for one in items if _is_struct(one)]
        said += f"; {advice(where, table, tags, origin, _SECRET)}"
    return said + "; `hauberk settings --reference` lists the keys"


def _described(where: str, tree: Any, kind: Any) -> str:
    """What the setting at `where` is, with an example: a pattern alone tells few people what to write."""
    parent, _, name = where.rpartition(".")
    for one in filter(_is_struct, _at(parent, tree, kind)):
        for field in msgspec.structs.fields(one):
            for about in getattr(field.type, "__metadata__", ()) if field.encode_name == name else ():
                if isinstance(about, msgspec.Meta) and about.description:
                    example = f", such as `{about.examples[0]}`" if about.examples else ""
                    return f": {about.description[0].lower()}{about.description[1:].rstrip('.')}{example}"
    return ""


def _value(tree: Any, where: str) -> Any:
    for step in re.findall(r"\[\d+\]|[^.\[\]]+", where):
        if step.startswith("["):
            tree = tree[int(step[1:-1])] if isinstance(tree, list) and int(step[1:-1]) < len(tree) else None
        else:
            tree = tree.get(step) if isinstance(tree, dict) else None
    return tree


def _got(value: Any, where: str, kinds: Sequence[Any]) -> str:
    """The value that did not fit, as it was typed; nothing of tables and of what may be a secret."""
    if value is None or isinstance(value, dict | list) or _SECRET.search(where) or any(map(_holds_secret, kinds)):
        return ""
    shown = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    malformed = isinstance(value, str) and value.lstrip().startswith(("{", "["))
    return f"{', malformed JSON' * malformed}{_quoted(shown)}"


def _holds_secret(kind: Any) -> bool:
    """Whether a value of this type is a secret or has one somewhere in it."""
    from bus.secret import Secret

    if not _is_struct(kind):
        return False
    return kind is Secret or any(
        _holds_secret(one) for field in msgspec.structs.fields(kind) for one in _options(field.type)
    )


def _near(name: str, where: str, tree: Any, kind: Any) -> str | None:
    found = [struct for struct in _at(where, tree, kind) if _is_struct(struct)]
    return _nearest(name, [field.encode_name for struct in found for field in msgspec.structs.fields(struct)])


def _nearest(name: str, names: Sequence[str]) -> str | None:
    import difflib

    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def _tags(where: str, tree: Any, kind: Any) -> list[str]:
    """The tags of the union whose tag field lies at `where`."""
    above, _, field = where.rpartition(".")
    structs = [struct for struct in _at(above, tree, kind, tagged=False) if _is_struct(struct)]
    configs = [struct.__struct_config__ for struct in structs]
    return [str(config.tag) for config in configs if config.tag_field == field]


def _choices(kinds: Sequence[Any]) -> list[str]:
    """The texts that a setting of one of `kinds` may be, where they are few."""
    return [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]


def _at(where: str, tree: Any, kind: Any, *, tagged: bool = True) -> list[Any]:
    """The types that a value at the path `where` may have; of a tagged union only the one the tree says, if `tagged`."""
    kinds, value = _options(kind), tree
    steps = re.findall(r"\[(?:\d+|\.\.\.)\]|[^.\[\]]+", where)
    for position, step in enumerate(steps):
        below: list[Any] = []
        if step.startswith("["):
            index = step[1:-1]
            value = (
                value[int(index)] if index.isdigit() and isinstance(value, list) and int(index) < len(value) else None
            )
            for one in kinds:
                below += [option for item in get_args(one) if item is not ... for option in _options(item)]
        else:
            value = value.get(step) if isinstance(value, dict) else None
            for one in filter(_is_struct, kinds):
                below += [
                    option
                    for field in msgspec.structs.fields(one)
                    if field.encode_name == step
                    for option in _options(field.type)
                ]
        kinds = _said(below, value) if tagged or position < len(steps) - 1 else below
    return kinds


def _said(kinds: list[Any], value: Any) -> list[Any]:
    if not isinstance(value, dict):
        return kinds
    fits = [
        one
        for one in kinds
        if _is_struct(one)
        and one.__struct_config__.tag is not None
        and value.get(one.__struct_config__.tag_field) == one.__struct_config__.tag
    ]
    return fits or kinds


def _options(kind: Any) -> list[Any]:
    """`Annotated` and unions taken off."""
    if get_origin(kind) is Annotated:
        return _options(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [option for one in get_args(kind) for option in _options(one)]
    return [kind]


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)
