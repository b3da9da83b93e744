# SPDX-License-Identifier: Apache-2.0
"""Settings: order of sources, paths in errors, did-you-mean."""

import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest

from hauberk.sections import Configuration
from hauberk.settings import check, merge, read_file, state_directory
from schemas.errors import SettingsError


class Inner(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    interval_seconds: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    name: str = "x"


class Outer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    inner: Inner = Inner()
    many: list[Inner] = []


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text("[inner]\ninterval_seconds = 2.0\nname = 'file'\n")
    loaded = merge(
        str(file), ["inner.name=set"], {"HAUBERK__INNER__NAME": "env", "HAUBERK__INNER__INTERVAL_SECONDS": "3.5"}
    )
    found = check(loaded, Outer)
    assert found.inner == Inner(interval_seconds=3.5, name="set")
    assert loaded.origins["inner.name"] == "--set"
    assert loaded.origins["inner.interval_seconds"] == "HAUBERK__INNER__INTERVAL_SECONDS"


def test_the_old_name_of_a_section_is_accepted_and_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hauberk.settings._reported", set())
    path = tmp_path / "s.toml"
    path.write_text("[enforcer.plan]\nsignal = true\nhost_cgroups = ['/a']\n")
    loaded = merge(str(path), ["enforcer.plan.host_cgroups=[]"], {"HAUBERK__ENFORCER__PLAN__SIGNAL": "false"})
    assert loaded.tree == {"planner": {"plan": {"signal": False, "host_cgroups": []}}}
    assert loaded.origins["planner.plan.signal"] == "HAUBERK__ENFORCER__PLAN__SIGNAL"
    assert capsys.readouterr().err == (
        f"hauberk: settings: the section `enforcer` is now `planner` (from {path}); the old name ends with version 0.3\n"
    )
    path.write_text("[enforcer.plan]\nsignal = true\n[planner.plan]\nsignal = false\n")
    with pytest.raises(SettingsError, match=r"`planner\.plan\.signal` stands twice"):
        merge(str(path), (), {})


def test_unknown_key_names_its_path_source_and_neighbour(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("inner:\n  intervall_seconds: 2\n")
    with pytest.raises(SettingsError) as caught:
        check(merge(str(file), (), {}), Outer)
    assert "`inner.intervall_seconds`" in str(caught.value)
    assert str(file) in str(caught.value)
    assert "did you mean `interval_seconds`?" in str(caught.value)


@pytest.mark.parametrize(
    ("tree", "path"),
    [({"inner": {"interval_seconds": "x"}}, "inner.interval_seconds"), ({"inner": {"interval_seconds": 0}}, "inner.interval_seconds"),
     ({"many": [{"name": 3}]}, "many[0].name")],
)  # fmt: skip
def test_wrong_value_names_its_path(tree: dict[str, object], path: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(msgspec.json.encode(tree))
    with pytest.raises(SettingsError, match=path.replace("[", r"\[").replace("]", r"\]")):
        check(merge(str(file), (), {}), Outer)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "= 3", "TOML"),
        ("a.yaml", "a: [", "YAML"),
        ("a.json", "{", "JSON"),
        ("a.ini", "", "ends in"),
        ("b.yaml", "- 1", "table"),
    ],
)
def test_unreadable_file_is_one_sentence(tmp_path: Path, name: str, text: str, said: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(SettingsError, match=said) as caught:
        read_file(file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("sets", "environment", "parts"),
    [
        (["inner.interval_seconds=often"], {}, ("`often`", "--set", "inner.interval_seconds")),
        (["inner.interval_seconds=0"], {}, (", got `0`",)),
        ((), {"HAUBERK__INNER__NAME": "17"}, ("`17`", "HAUBERK__INNER__NAME")),
        ((), {"HAUBERK__MANY": "{bad"}, ("malformed JSON", "`{bad`", "HAUBERK__MANY")),
        (["inner.interval_seconds={bad"], {}, ("malformed JSON", "`{bad`")),
        (["inner.name=[" + "1," * 99], {}, None),
    ],
)
def test_a_wrong_value_from_a_shell_is_shown(sets: list[str], environment: dict[str, str], parts: Any) -> None:
    if parts is None:
        assert check(merge(None, sets, environment), Outer).inner.name.startswith("[1,")
        return
    with pytest.raises(SettingsError) as caught:
        check(merge(None, sets, environment), Outer)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variable_with_one_underscore_too_few_is_told() -> None:
    with pytest.raises(SettingsError, match="expected two underscores at each step: `HAUBERK__PAGE__PORT`"):
        merge(None, (), {"HAUBERK_PAGE__PORT": "1"})
    assert merge(None, (), {"HAUBERK_LOG": "DEBUG", "HAUBERK_PAGE": "true"}).tree == {}


def test_a_secret_is_not_shown() -> None:
    class Login(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
        password: str = ""

    with pytest.raises(SettingsError) as caught:
        check(merge(None, ["password=1234"], {}), Login)
    assert "1234" not in str(caught.value)
    with pytest.raises(SettingsError, match="malformed JSON") as caught:
        merge(None, (), {"HAUBERK__SINKS": '[{"password": "1234"'})
    assert "1234" not in str(caught.value)


def test_what_is_typed_where_a_secret_belongs_is_not_shown() -> None:
    from hauberk.sections import Configuration

    for tls in (
        '"1234"',
        '{"key_password": "1234"}',
        '{"key_password": {"value": "1234"}}',
        '{"key_password": {"env": ["1234"]}}',
    ):
        sinks = f'sinks=[{{"type": "syslog", "address": "a:1", "tls": {tls}}}]'
        with pytest.raises(SettingsError, match="tls") as caught:
            check(merge(None, [sinks], {}), Configuration)
        assert "1234" not in str(caught.value)


def test_settings_take_secrets_by_reference_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to mask in `hauberk settings`: no setting is a secret, each names where one is kept."""
    from hauberk.sections import Configuration
    from hauberk.verbs import settings

    for key, kind, _, _ in settings.reference(Configuration):
        name = key.rpartition(".")[2]
        if re.search("passw|passphrase|secret|token|credential|api_?key", name):
            assert kind == "table", f"`{key}` takes a secret as text: make it a `bus.secret.Secret`"
    monkeypatch.setenv("SYSLOG_PASSWORD", "1234")
    sinks = 'sinks=[{"type": "syslog", "address": "a:1", "tls": {"key_password": {"env": "SYSLOG_PASSWORD"}}}]'
    for form in ("table", "wide", "json", "yaml"):
        assert settings.main(["--set", sinks, "-o", form]) == 0
        said = capsys.readouterr().out
        assert "SYSLOG_PASSWORD" in said
        assert "1234" not in said


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="name another with --config"):
        read_file(tmp_path / "none.toml")


@pytest.mark.parametrize("text", ["a", "=3", ""])
def test_bad_set(text: str) -> None:
    with pytest.raises(SettingsError, match="expected --set"):
        merge(None, [text], {})


def test_state_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert state_directory("/x") == Path("/x")
    monkeypatch.setenv("HAUBERK_STATE", "/y")
    assert state_directory() == Path("/y")


def test_a_node_reads_the_same_sections() -> None:
    from hauberk.node_sections import NodeConfiguration
    from hauberk.sections import Configuration

    whole = {field.name: field.type for field in msgspec.structs.fields(Configuration)}
    part = {field.name: field.type for field in msgspec.structs.fields(NodeConfiguration)}
    assert whole.keys() == part.keys()
    for name in ("bus", "sensor", "inventory", "enforcement"):
        assert msgspec.inspect.type_info(whole[name]) == msgspec.inspect.type_info(part[name]) or part[name] in getattr(
            whole[name], "__args__", (whole[name],)
        )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("sensor.load.calls_by=fexti", "; expected one of auto, tracepoint, fexit; did you mean `fexit`?"),
        (
            "bus.prefix=",
            "got `` (from --set): what the names of topics and groups begin with on the broker, such as `hauberk.`; `hauberk",
        ),
        (
            "bus.bootstrap=",
            "of length >= 1, got `` (from --set): brokers to begin with, host:port, separated by commas, such as `kafka-1",
        ),
    ],
)
def test_a_text_that_does_not_fit_is_told_with_what_it_is_for(given: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        check(merge("", ["bus.type=kafka", given], {}), Configuration)
    assert said in str(caught.value)


def test_a_table_in_the_place_of_a_list_is_told_with_what_to_write(tmp_path: Path) -> None:
    """`sinks` is a list, and its tables look like sections to whoever has seen the others."""

    def said(*sets: str, file: str = "", **environment: str) -> str:
        with pytest.raises(SettingsError) as error:
            check(merge(file or None, sets, environment), Configuration)
        return str(error.value)

    port = '[{"type":"prometheus","port":9700}]'
    assert said("sinks.prometheus.port=9700") == (
        f"settings: `sinks`: Expected `array`, got `object` (from --set); it is a list, and is given whole: `--set 'sinks={port}'`, "
        "in the place of the usual ones; `hauberk settings --reference` lists the keys"
    )
    assert f"`--set 'sinks={port}'`" in said('sinks={"type": "prometheus", "port": 9700}')
    assert f"`HAUBERK__SINKS='{port}'`" in said(HAUBERK__SINKS__PROMETHEUS__PORT="9700")
    # What names no sink has an example; a list of words has none.
    assert '`--set \'sinks=[{"type":"prometheus","port":9642}]\'`' in said("sinks.0.port=1")
    assert "given whole: `--set 'enforcement.backends=[...]'`;" in said("enforcement.backends.first=cgroup")
    file = tmp_path / "a.toml"
    file.write_text("[sinks.prometheus]\nport = 9700\n")
    assert 'given whole: `[[sinks]]`, and below it `type = "prometheus"`, `port = 9700`, in' in said(file=str(file))
    file = tmp_path / "a.yaml"
    file.write_text("sinks: {syslog: {host: siem, ca_file: /secret/ca}}")
    assert '`sinks: [{"type":"syslog","host":"siem"}]`' in said(file=str(file))
    # Beside a list that is there already.
    file.write_text("sinks: [{type: prometheus}]")
    assert "got `list`; it is a list, and is given whole: `--set 'sinks=[...]'`" in said(
        "sinks.prometheus.port=1", file=str(file)
    )
