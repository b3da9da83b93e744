# SPDX-License-Identifier: Apache-2.0
"""Names that workloads choose, through every output: what is printed reads back as it was, and nothing gets out of its field."""

import json
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.cli import main
from hauberk.output import as_json, as_yaml, plain, printable, table
from hauberk.recommend_report import report
from policy.learn.learner import learn
from policy.learn.replay import TrainingReplay
from policy.learn.sightings import Sighting, as_judged
from policy.parse import parse
from policy.recommend.recommend import HardenedWorkload, Recommendation, recommend
from policy.recommend.templates import TemplateSet, read
from schemas.behaviour import Behaviour
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Access, Operation
from schemas.summary import Summary, SummaryEntry
from sinks.store.sqlite import SqliteStore

HOSTILE = (
    "a\nb", "a\r\nb", "a: b", "- x", "'q'", '"dq"', "<script>alert(1)</script>", "<img src=x onerror=y>", "|pipe|", "`code`", "](http://x)",
    "# h", "\x1b[31m\x07", "\x00", "\x85", "\u2028", "\u202egnp.exe", "\u2066x", "\ufeff", "\xa0", "*?[z]{a,b}\\", "%s", "&amp;", "\x7f", "null", "1e3",
    "12345e7", "0o17", "0x10", "2026-11-28", "yes", "~", " lead", "trail ", "\ttab", "é", "\U0001f600", "=", "!!python/object:os.system", "---",
    "...", "%YAML 1.1", "${x}", "{{ x }}", "\\xff", "caf\\xe9", "A" * 255, "/".join(["d" * 200] * 20),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(min_size=1, max_size=40),
    st.text("\n\r\t|`<>&'\"\x85\u202e\u2028\x1b[]():#-*!{}", min_size=1),
)
RUN = settings(max_examples=60, deadline=None)
FEW = settings(max_examples=25, deadline=None)
KNOWN = read(
    Path(__file__).parents[2].joinpath("policy/recommend/templates/hardening.yaml").read_bytes(), "hardening.yaml"
)


def shown(text: str) -> bool:
    return text.replace("\n", "").isprintable()


@RUN
@given(NAMES)
def test_yaml_and_json_read_back_and_drive_no_terminal(name: str) -> None:
    value = plain({"a": name, "b": [{name: [name]}]})
    written = as_yaml(value)
    assert yaml.safe_load(written) == value
    assert shown(written)
    assert json.loads(as_json(value)) == value


@pytest.mark.parametrize(
    "name", ["1e3", "12345e7", "0o17", "1.", ".5", "-3", "+1", "1_0", "0x1f", "12:30", "on", "null"]
)
def test_words_stay_words_for_every_reader_of_yaml(name: str) -> None:
    """YAML 1.2, as kubectl reads it, has other numbers than the library that writes."""
    assert as_yaml({"a": name}) in (f'a: "{name}"', f"a: '{name}'")


@RUN
@given(st.lists(NAMES, min_size=1, max_size=5))
def test_a_row_is_a_line(names: list[str]) -> None:
    lines = table(("A", "B"), [(name, name) for name in names]).split("\n")
    assert len(lines) == len(names) + 1
    assert all(line.isprintable() for line in lines)


def pod(number: int, **more: object) -> Identity:
    fields: dict[str, object] = {
        "kind": Kind.CONTAINER, "node": "n", "uid": f"u{number}", "namespace": "shop", "pod": f"web-{number}", "container_name": "app",
        "owner": Owner("Deployment", "web", "shop"), "labels": {"app": "web"}, "orchestrated": True, "image": "x:1",
    }  # fmt: skip
    return Identity(**(fields | more))  # type: ignore[arg-type]


def behaviour(kind: str, path: str) -> Behaviour:
    if kind == "exec":
        return Behaviour(operation=Operation.EXEC, access=Access.EXEC, resource=path, executable="/i", parent="/i")
    if kind == "source":
        return Behaviour(
            operation=Operation.OPEN, access=Access.READ, resource="/etc/shadow", executable=path, parent="/i"
        )
    access = Access.WRITE if kind == "write" else Access.READ
    return Behaviour(operation=Operation.OPEN, access=access, resource=path, executable="/usr/bin/app", parent="/i")


@FEW
@given(st.sampled_from(["exec", "read", "write", "source"]), st.lists(NAMES, min_size=1, max_size=6))
def test_a_policy_judges_the_same_after_a_round_trip(kind: str, names: list[str]) -> None:
    seen = [
        Sighting(identity=pod(number), behaviour=as_judged(behaviour(kind, f"/srv/x/{name}")), first=number, last=number)
        for name in names for number in (1, 2, 3)
    ]  # fmt: skip
    (one,) = learn(seen)
    if not one.rules:
        assert any("\0" in name or "\\x" in name for name in names)
        return
    for text in (as_yaml(one.body), as_json(one.body)):
        parsed = parse(text.encode(), "learnt")
        assert not parsed.diagnostics
        again, before = TrainingReplay(parsed.policies), TrainingReplay([one.document])
        for each in one.evidence:
            said, was = (of.scope(each.identity).judge(each.behaviour) for of in (again, before))
            assert (said.action, said.rule and said.rule.position) == (was.action, was.rule and was.rule.position)
        assert not list(TrainingReplay(parsed.policies).denied(one.evidence))


def test_a_name_that_is_not_utf_8_is_allowed_as_the_kernel_has_it_and_as_text() -> None:
    """Stores tell a byte as `\\xe9`; the node judges the byte. A program with such a name cannot be named exactly, and is told."""
    stored = behaviour("write", "/srv/x/caf\\xe9")
    seen = [Sighting(identity=pod(n), behaviour=as_judged(stored), first=n, last=n) for n in (1, 2)]
    (one,) = learn(seen)
    (policy,) = parse(as_yaml(one.body).encode(), "learnt").policies
    replay = TrainingReplay([policy]).scope(pod(1))
    asked = {path: str(replay.judge(behaviour("write", f"/srv/x/{path}")).action) for path in ("caf\udce9", "caf\\xe9", "cafx", "caf", "cafxy")}  # fmt: skip
    assert asked == {"caf\udce9": "Allow", "caf\\xe9": "Allow", "cafx": "Allow", "caf": "Block", "cafxy": "Block"}
    run = Sighting(identity=pod(1), behaviour=as_judged(behaviour("exec", "/srv/x/caf\\xe9")))
    (told,) = learn([run])
    assert [(item.reason, printable(item.resource)) for item in told.apart] == [("no rule can name it", "/srv/x/caf\\xe9")]  # fmt: skip


class _Reading(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def recommended(name: str, few: TemplateSet) -> Recommendation:
    of = HardenedWorkload(namespace="shop", name=name, container=name, image=name, labels={"app": name})
    return recommend(of, few.templates, None, [])


@FEW
@given(NAMES)
def test_reports_keep_names_in_their_fields(name: str) -> None:
    few = TemplateSet(version=KNOWN.version, templates=KNOWN.templates[:2])
    said = printable(f"shop/{name}/{name}: {name}")
    one, plainly = recommended(name, few), recommended("web", few)

    page, harmless = _Reading(), _Reading()
    text = report([one], few, ".html")
    assert shown(text)
    page.feed(text)
    harmless.feed(report([plainly], few, ".html"))
    assert page.tags == harmless.tags
    assert said in page.texts

    assert json.loads(report([one], few, ".json"))["workloads"][0]["name"] == plain(name)
    (run,) = json.loads(report([one], few, ".sarif"))["runs"]
    places = {
        place["fullyQualifiedName"]
        for each in run["results"]
        for at in each["locations"]
        for place in at["logicalLocations"]
    }
    assert places == {plain(f"shop/{name}/{name}")}

    for form in (".txt", ".md"):
        text, other = report([one], few, form), report([plainly], few, form)
        assert shown(text)
        assert text.count("\n") == other.count("\n")
    (heading,) = (line for line in report([one], few, ".md").split("\n") if line.startswith("## "))
    assert heading[3] == heading[-1] == "`"
    assert "`" not in heading[4:-1]
    assert "|" not in heading


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """One ordinary workload, one whose namespace leads out of every directory, one with hostile names of everything."""
    made = tmp_path / "state"
    made.mkdir()
    store = SqliteStore(str(made / "summary.db"))
    at = time.time_ns() - 3600 * 10**9
    evil = "<b>\n|`\u202e\x1b[31m\x85"
    for number, of in enumerate((
        pod(1), pod(2, namespace="../../out-of-it", owner=Owner("Deployment", "e", "../../out-of-it")),
        pod(3, owner=Owner("Deployment", f"../{evil}", "shop"), container_name=f"c{evil}", pod=f"p{evil}", image=f"i{evil}", labels={"app": "12345e7"}),
    )):  # fmt: skip
        seen = [
            behaviour("exec", "/usr/bin/app"),
            behaviour("read", f"/srv/{evil}"),
            behaviour("write", "/srv/caf\\xe9"),
        ]
        entries = tuple(SummaryEntry(behaviour=one, status="Allow", count=1, first=at, last=at) for one in seen)
        store.apply([Summary(node="n", run=f"r{number}", first_frame=1, last_frame=1, bucket=at // 10**9 // 60 * 60, identity=of, entries=entries)], [])  # fmt: skip
    store.close()
    return made


@pytest.mark.parametrize(
    "words",
    [
        ["discover"], ["discover", "-f", "json"], ["discover", "--explain"], ["discover", "--review"], ["discover", "--outdir", "OUT"],
        ["recommend"], ["recommend", "-r", "-"], ["recommend", "-o", "OUT", "-r", "OUT/r.md"], ["summary"], ["summary", "--agg"],
        ["summary", "--diff", "STATE", "STATE"], ["summary", "--diff", "image=x:1", "STATE", "-o", "markdown"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_one_hostile_workload_hinders_no_other(
    capsys: pytest.CaptureFixture[str], state: Path, tmp_path: Path, words: list[str]
) -> None:
    out = tmp_path / "below" / "out"
    given = [word.replace("OUT", str(out)).replace("STATE", str(state)) for word in words]
    capsys.readouterr()
    code = main([*given, "--state", str(state)])
    said = capsys.readouterr()
    assert code in (0, 1), said.err
    assert shown(said.out.replace("\t", "")) or "json" in words
    assert shown(said.err)
    if words[0] != "summary":
        assert (
            "1 container is in a namespace that Kubernetes refuses (`../../out-of-it`), and has no policy" in said.err
        )
    written = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(state)]
    assert all(path.is_relative_to(out) for path in written)
    if words == ["discover"]:
        parsed = parse(said.out.encode(), "learnt")
        assert not parsed.diagnostics
        assert len(parsed.policies) == 2
