# SPDX-License-Identifier: Apache-2.0
"""Settings text of any depth, size and kind is a table or one sentence; every number of the settings has a range."""

from __future__ import annotations

import random
import time
import typing
from typing import Annotated, Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.settings import check, merge
from hauberk.settings_text import DEPTH, parse
from schemas.errors import SettingsError

BAD = {
    "yaml": {
        "brackets": b"[" * 200_000, "braces": b"a: " + b"{a: " * 100_000, "not text": b"a: \xff", "nul": b"a: \0",
        "bomb": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 9)) for n in range(12)
        ),
        "number as key": b"1: 2\n", "list as key": b"? [a]\n: b\n", "tag": b"a: !!python/object/apply:os.system [id]\n",
        "two documents": b"a: 1\n---\nb: 2\n", "date": b"state: 2001-12-14\n", "set": b"a: !!set {x, y}\n", "bytes": b"a: !!binary aGk=\n",
        "infinite": b"a: .inf\n", "list": b"- a\n", "text": b"just text\n", "year 0": b"a: 0000-00-00\n", "alias": b"a: *b\n",
    },
    "toml": {
        "brackets": b"a = " + b"[" * 100_000, "tables": b"a = " + b"{a = " * 20_000, "dots": b".".join([b"a"] * 200_000) + b" = 1",
        "steps": b"[" + b".".join([b"a"] * 100) + b"]\nb = 1\n", "nan": b"a = nan\n", "date": b"state = 1979-05-27T07:32:00Z\n",
        "digits": b"a = " + b"9" * 5000, "not text": b"a = '\xff'", "twice": b"a = 1\na = 2\n",
    },
    "json": {"brackets": b"[" * 1_000_000, "braces": b'{"a":' * 100_000, "list": b"[]", "cut": b'{"a"', "nothing": b"", "not text": b'{"a": "\xff"}'},
}  # fmt: skip


@pytest.mark.parametrize(("form", "name"), [(form, name) for form, every in BAD.items() for name in every])
def test_bad_text_is_one_sentence(form: str, name: str) -> None:
    started = time.process_time()
    with pytest.raises(SettingsError) as said:
        parse(BAD[form][name], form, f"x.{form}")
    assert "\n" not in str(said.value)
    assert len(str(said.value)) < 600
    assert time.process_time() - started < 10


def test_what_is_deep_enough_is_read() -> None:
    text = b'{"a":' * (DEPTH - 1) + b"1" + b"}" * (DEPTH - 1)
    assert parse(text, "json", "x") == msgspec.json.decode(text)
    with pytest.raises(SettingsError, match="levels"):
        parse(b'{"a":' * DEPTH + b"1" + b"}" * DEPTH, "json", "x")


@given(st.sampled_from(("toml", "yaml", "json")), st.binary(max_size=200))
def test_any_bytes_are_a_table_or_an_error_of_ours(form: str, data: bytes) -> None:
    try:
        assert isinstance(parse(data, form, "x"), dict)
    except SettingsError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right


@pytest.mark.parametrize("seed", range(3))
def test_mutated_settings(seed: int) -> None:
    from hauberk.sections import Configuration

    chance = random.Random(seed)
    base = b'[bus]\ntype = "embedded"\nsegment_bytes = 65536\n[sensor.load]\nscopes = 5\n[[sinks]]\ntype = "file"\npath = "/x"\n'
    for _ in range(300):
        raw = bytearray(base)
        for _ in range(chance.randint(1, 6)):
            raw[chance.randrange(len(raw))] = chance.choice(b'[]{}=.",\n0aZ-\xff')
        try:
            loaded = merge(None, (), {})
            loaded.tree.update(parse(bytes(raw), "toml", "x"))
            check(loaded, Configuration)
        except SettingsError:
            continue


@pytest.mark.parametrize("text", [
    ".".join(["a"] * 20_000) + "=1", "sensor.load.scopes=" + "[" * 20_000, "bus.type=" + "{" * 300, "a=\udcff", "a=" + "9" * 5000,
])  # fmt: skip
def test_set_and_the_environment_are_held_to_it_too(text: str) -> None:
    from hauberk.sections import Configuration

    with pytest.raises(SettingsError):
        check(merge(None, (text,), {}), Configuration)
    dotted, _, value = text.partition("=")
    with pytest.raises(SettingsError):
        check(merge(None, (), {"HAUBERK__" + dotted.replace(".", "__").upper(): value}), Configuration)


def numbers(kind: Any, where: str, seen: set[Any], metas: tuple[Any, ...] = ()) -> list[tuple[str, tuple[Any, ...]]]:
    """(path, annotations) of every number below a settings struct."""
    if get_origin(kind) is Annotated:
        inner, *rest = get_args(kind)
        return numbers(inner, where, seen, (*metas, *[one for one in rest if isinstance(one, msgspec.Meta)]))
    if kind in (int, float):
        return [(where, metas)]
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind in seen:
            return []
        seen.add(kind)
        hints = typing.get_type_hints(kind, include_extras=True)
        return [
            one for field in msgspec.structs.fields(kind)
            for one in numbers(hints[field.name], f"{where}.{field.name}", seen)
        ]  # fmt: skip
    return [one for inner in get_args(kind) if inner is not ... for one in numbers(inner, where, seen)]


def test_every_number_has_a_range() -> None:
    from bus.spool_settings import SpoolSettings
    from hauberk.node_sections import NodeConfiguration
    from hauberk.sections import Configuration
    from sensors.recordings.replay import ReplaySettings

    seen: set[Any] = set()
    found = [
        one for kind in (Configuration, NodeConfiguration, ReplaySettings, SpoolSettings)
        for one in numbers(kind, kind.__name__, seen)
    ]  # fmt: skip
    assert len(found) > 80
    open_ended = [
        where for where, metas in found
        if all(one.ge is None and one.gt is None for one in metas) or all(one.le is None and one.lt is None for one in metas)
    ]  # fmt: skip
    assert not open_ended


@pytest.mark.parametrize("text", [
    "sensor.load.scopes=-1", "sensor.load.scopes=0", "sensor.load.scopes=99999999999999999999", "sensor.load.occurrence_pages=3",
    "sensor.load.host_visibility=-1", "sensor.rings.pressure=2", "bus.segment_age=-1", "bus.retention_hours_of={\"alerts\":-1}",
    "processor.parking.max_seconds=1e300", "enforcement.grace_seconds=-0.1", "page.port=-1", "sensor.load.timeout=0",
    "state=3", "state=[]", "node=a/b", "node=a\nb",
])  # fmt: skip
def test_out_of_range(text: str) -> None:
    from argparse import Namespace

    from hauberk.configuration import configuration

    with pytest.raises(SettingsError) as said:
        configuration(Namespace(config=None, set=[text], state=None))
    assert text.split("=")[0].split(".")[-1].split("_of")[0] in str(said.value)
