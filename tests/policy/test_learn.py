# SPDX-License-Identifier: Apache-2.0
"""What the learner promises of every policy, whatever was seen: replay, order, repetition, growth; and what it never learns."""

import random

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from policy.learn import components
from policy.learn.documents import checked
from policy.learn.evidence import Evidence
from policy.learn.learner import LearnSettings, LearntPolicy, learn
from policy.learn.merge import merged
from policy.learn.places import places
from policy.learn.replay import TrainingReplay
from policy.learn.rules import word
from policy.learn.sightings import Sighting, Use, paths, use
from policy.learn.together import together
from policy.learn.unseen import selected_unseen
from policy.match import glob
from policy.match.automata import Automaton
from policy.ruleset import compile_ruleset
from policy.tools.lint import lint
from schemas.behaviour import Behaviour
from schemas.cluster import PodFact
from schemas.errors import PolicyError
from schemas.identity import Identity, Kind, Owner
from schemas.operations import Access, Backend, Class, Operation
from schemas.policy import PolicyDocument

HOUR = 3600 * 10**9


def pod(number: int, owner: str = "web", container: str = "app", **more: object) -> Identity:
    fields: dict[str, object] = {
        "kind": Kind.CONTAINER, "node": "n1", "uid": f"{owner}-{number}", "namespace": "shop", "pod": f"{owner}-{number}",
        "owner": Owner("Deployment", owner, "shop"), "container_name": container, "orchestrated": True,
        "labels": {"app": owner, "pod-template-hash": f"h{number}"},
    }  # fmt: skip
    return Identity(**(fields | more))  # type: ignore[arg-type]


def opened(path: str, access: Access = Access.READ, by: str = "/usr/bin/app", **more: object) -> Behaviour:
    fields: dict[str, object] = {
        "operation": Operation.OPEN,
        "access": access,
        "resource": path,
        "executable": by,
        "parent": by,
        "owner": 0,
    }
    return Behaviour(**(fields | more))  # type: ignore[arg-type]


def executed(path: str, parent: str = "/usr/bin/app", **more: object) -> Behaviour:
    return Behaviour(
        operation=Operation.EXEC, access=Access.EXEC, resource=path, executable=parent, parent=parent, **more
    )  # type: ignore[arg-type]


def seen(behaviour: Behaviour, instance: int = 1, hour: float = 1, **more: object) -> Sighting:
    at = int(hour * HOUR)
    return Sighting(**({"identity": pod(instance), "behaviour": behaviour, "first": at, "last": at} | more))  # type: ignore[arg-type]


def files(policy: LearntPolicy) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = policy.body["spec"].get("file", {})
    return found


def only(sightings: list[Sighting], **more: object) -> LearntPolicy:
    (policy,) = learn(sightings, LearnSettings(**more))  # type: ignore[arg-type]
    return policy


# A filesystem small enough for rules to meet: plain, numbered, random, hidden names, glob characters, deep and shallow, odd bytes.
NAMES = st.sampled_from(
    ["a", "b", "c", "dd", "x1", "x2", "x30", "log", "2026-11-28", "5f0c9a1e77d2", "tmp.Xa81kQ", "*", "[z]", "{q}", "back\\slash",
     " b", "new\nline", ".hidden", "17", "18", "ccZq81aB.o"]
)  # fmt: skip
TOPS = st.sampled_from(
    ["/srv/app", "/tmp", "/etc", "/usr/lib/py", "/proc/12", "/var/lib/x", "/root", "/home/u", "", "/dev", "/usr/bin"]
)
PATHS = st.builds(lambda top, rest: f"{top}/{'/'.join(rest)}".rstrip("/") or "/", TOPS, st.lists(NAMES, max_size=3))
READ = st.sampled_from([Access.READ, Access.READ | Access.DIRECTORY, Access.READ | Access.OWN])
WRITE = st.sampled_from([Access.WRITE, Access.WRITE | Access.CREATE, Access.READ | Access.WRITE])
PROGRAMS = st.sampled_from(["/usr/bin/app", "/usr/bin/sh", "/srv/app/a", ""])
OWNERS = st.sampled_from([0, 33, 0xFFFFFFFF])
OPENS = st.builds(
    lambda path, access, by, owner, uid: opened(path, access, by, owner=owner, uid=uid), PATHS, READ | WRITE, PROGRAMS, OWNERS, st.sampled_from([0, 33])
)  # fmt: skip
MOVES = st.builds(
    lambda one, two, operation: Behaviour(operation=operation, resource=one, resource2=two, access=Access.CREATE, executable="/usr/bin/app"),
    PATHS, PATHS, st.sampled_from([Operation.RENAME, Operation.LINK]),
)  # fmt: skip
EXECS = st.builds(
    lambda path, parent, script: executed(path, parent, resource2="/bin/sh" if script else ""),
    PATHS,
    PROGRAMS,
    st.booleans(),
)
SOCKETS = st.builds(
    lambda family, kind, protocol, by: Behaviour(operation=Operation.SOCKET, family=family, socket_type=kind, protocol=protocol, executable=by),
    st.sampled_from([1, 2, 10, 16, 17]), st.sampled_from([1, 2, 3, 5]), st.sampled_from([0, 1, 6, 17]), PROGRAMS,
)  # fmt: skip
BEHAVIOURS = st.one_of(OPENS, OPENS, MOVES, EXECS, SOCKETS)
SIGHTINGS = st.builds(
    lambda behaviour, instance, hour: seen(behaviour, instance, hour), BEHAVIOURS, st.integers(1, 5), st.integers(1, 20)
)
WHITELISTS = [
    seen(opened("/srv/always")), seen(executed("/usr/bin/always")),
    seen(Behaviour(operation=Operation.SOCKET, family=2, socket_type=5, executable="/usr/bin/app")),
]  # fmt: skip
RUN = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


@RUN
@given(st.lists(SIGHTINGS, min_size=1, max_size=30), st.booleans())
def test_a_policy_allows_everything_it_was_learnt_from(sightings: list[Sighting], patterns: bool) -> None:
    policies = learn(sightings, LearnSettings(patterns=patterns))
    apart = {item.resource for policy in policies for item in policy.apart}
    denied = list(TrainingReplay(policy.document for policy in policies).denied(sightings))
    # What it denies of them is what it said that it does not learn.
    for one in denied:
        about = {one.behaviour.resource, one.behaviour.resource2, one.behaviour.executable}
        about |= {word(one.behaviour)} if one.behaviour.cls is Class.NETWORK else set()
        assert use(one) is not Use.EVIDENCE or about & apart, one.behaviour
    assert sum(policy.sightings for policy in policies) >= len(sightings) - sum(
        item.count for policy in policies for item in policy.apart
    )


@RUN
@given(st.lists(SIGHTINGS, min_size=1, max_size=25), st.randoms(use_true_random=False))
def test_order_batches_and_repetition_change_nothing(sightings: list[Sighting], chance: random.Random) -> None:
    shuffled = [*sightings, *chance.sample(sightings, chance.randint(0, len(sightings)))]
    chance.shuffle(shuffled)
    assert [policy.body for policy in learn(sightings)] == [policy.body for policy in learn(shuffled)]
    split = [
        part for one in sightings
        for part in (msgspec.structs.replace(one, count=1), msgspec.structs.replace(one, count=5, first=one.last, last=one.last))
    ]  # fmt: skip
    assert [policy.body for policy in learn(sightings)] == [policy.body for policy in learn(split)]


@RUN
@given(
    st.lists(SIGHTINGS, min_size=1, max_size=25), st.lists(SIGHTINGS, max_size=25), st.lists(BEHAVIOURS, max_size=25)
)
def test_more_data_never_shrinks_it(before: list[Sighting], later: list[Sighting], asked: list[Behaviour]) -> None:
    # What a policy says nothing about is not kept from anybody: all three sections are there from the start.
    before = [*before, *WHITELISTS]
    end = max(one.last for one in before)
    later = [msgspec.structs.replace(one, first=one.first + end, last=one.last + end) for one in later]
    small, large = TrainingReplay([only(before).document]), TrainingReplay([only([*before, *later]).document])
    questions = [seen(behaviour) for behaviour in asked] + before + later
    lost = {id(one) for one in large.denied(questions)} - {id(one) for one in small.denied(questions)}
    assert [one.behaviour for one in questions if id(one) in lost] == []


def test_names_and_selectors_are_stable() -> None:
    first = only([seen(opened("/srv/app/a"), 1)])
    again = only([seen(opened("/srv/app/b"), 7)])
    assert first.name == again.name == first.body["metadata"]["name"]
    assert first.body["spec"]["selector"] == {"matchLabels": {"app": "web", "kubearmor.io/container.name": "[app]"}}
    assert first.document.policy == checked(first.body).policy


def test_containers_of_one_pod_have_policies_of_their_own() -> None:
    app = seen(opened("/srv/a"))
    sidecar = seen(opened("/srv/b"), identity=pod(1, container="sidecar", uid="other"))
    assert [files(policy)["matchPaths"][0]["path"] for policy in learn([app, sidecar])] == ["/srv/a", "/srv/b"]


def test_prefix_paths_are_kept() -> None:
    """The leaf-only trie of the engine that this goes past lost the directory as soon as a file below it was seen."""
    found = only(
        [seen(opened("/usr/lib/locale/C", Access.READ | Access.DIRECTORY)), seen(opened("/usr/lib/locale/C/LC_TIME"))]
    )
    assert {item["path"] for item in files(found)["matchPaths"]} == {"/usr/lib/locale/C", "/usr/lib/locale/C/LC_TIME"}


def test_paths_with_blanks_and_truncate_are_whole() -> None:
    found = only(
        [seen(opened("/srv/My Files/a b.txt")), seen(executed("/usr/bin/truncate")), seen(opened("/srv/runc/x"))]
    )
    assert {item["path"] for item in files(found)["matchPaths"]} == {"/srv/My Files/a b.txt", "/srv/runc/x"}
    assert found.body["spec"]["process"]["matchPaths"][0]["path"] == "/usr/bin/truncate"


def test_programs_are_exact_however_many() -> None:
    found = only([seen(executed(f"/usr/bin/tool{number}")) for number in range(40)])
    assert set(found.body["spec"]["process"]) == {"matchPaths"}
    assert len(found.body["spec"]["process"]["matchPaths"]) == 40


def test_a_set_complete_at_the_start_stays_a_list_and_an_open_one_becomes_its_directory() -> None:
    closed = [seen(opened(f"/srv/app/{name}", Access.WRITE), run, run) for run in range(1, 6) for name in "abcdefgh"]
    assert "matchDirectories" not in files(only(closed))
    grown = [seen(opened(f"/srv/app/{name}", Access.WRITE), run, run) for run, name in enumerate("abcdefgh", 1)]
    assert files(only(grown)) == {"matchDirectories": [{"dir": "/srv/app/"}]}
    assert files(only(grown, patterns=False)) == files(only(grown))


@pytest.mark.parametrize("top", ["/etc", "/usr/bin", "/proc/self", "/dev", "/root/.ssh", "/run/secrets/x", "/var", ""])
def test_some_directories_are_never_opened(top: str) -> None:
    found = only([seen(opened(f"{top}/{'abcdefghijklmnopqrst'[run]}"), run, run) for run in range(20)] * 2)
    assert "matchDirectories" not in files(found)
    assert "matchPatterns" not in files(found)


def test_reading_and_changing_are_apart() -> None:
    found = files(
        only(
            [
                *(seen(opened(f"/srv/app/{name}"), run, run) for run, name in enumerate("abcdefgh", 1)),
                seen(opened("/srv/app/b", Access.WRITE)),
            ]
        )
    )
    assert found == {
        "matchPaths": [{"path": "/srv/app/b"}],
        "matchDirectories": [{"dir": "/srv/app/", "readOnly": True}],
    }


def test_owner_only_where_all_of_it_is_the_callers() -> None:
    mine, others = opened("/home/u/a", uid=7, owner=7), opened("/home/u/b", uid=7, owner=8)
    assert files(only([seen(mine), seen(others)]))["matchPaths"] == [
        {"path": "/home/u/a", "readOnly": True, "ownerOnly": True}, {"path": "/home/u/b", "readOnly": True},
    ]  # fmt: skip


def test_own_proc_only_is_kept_to_by_a_preset() -> None:
    own = seen(opened("/proc/12/stat", Access.READ | Access.OWN))
    assert only([own]).body["spec"]["presets"] == [{"name": "protectProc", "action": "Block"}]
    assert "presets" not in only([own, seen(opened("/proc/13/stat"))]).body["spec"]


@pytest.mark.parametrize("by", ["/usr/bin/a", "/usr/bin/b"])
@pytest.mark.parametrize("place", ["/srv/x", "/home/u/x"])
def test_what_one_service_of_a_host_reads_another_may_change(by: str, place: str) -> None:
    def of(service: str, behaviour: Behaviour) -> Sighting:
        identity = Identity(kind=Kind.HOST, node="n", uid=service, cgroup_path=f"/system.slice/{service}.service")
        return Sighting(identity=identity, behaviour=behaviour, first=1, last=1)

    reads = [of("a", opened(place, by="/usr/bin/a", uid=7, owner=7)), of("a", opened("/srv/only", by="/usr/bin/a"))]
    writes = [
        of("b", opened(place, Access.WRITE, by=by, uid=8, owner=7)),
        of("b", msgspec.structs.replace(opened(place, Access.DELETE, by=by), operation=Operation.UNLINK)),
    ]
    found = learn([*reads, *writes])
    assert not list(TrainingReplay(one.document for one in found).denied([*reads, *writes]))
    assert [one.body for one in found] == [one.body for one in learn([*writes[::-1], *reads[::-1]])]
    assert {"path": "/srv/only", "readOnly": True} in files(found[0])["matchPaths"]


def test_what_one_process_reads_of_its_own_environment_opens_no_others() -> None:
    own = [seen(opened(f"/proc/{pid}/environ", Access.READ | Access.OWN)) for pid in (12, 345)]
    looked = [seen(opened(f"/proc/{pid}/stat")) for pid in (1, 12)]
    found = only([*own, *looked, seen(opened("/proc/1/environ"))])
    assert [(item.resource, item.reason) for item in found.apart] == [("/proc/1/environ", "a secret")]
    asked = [
        opened("/proc/1/environ"),
        opened("/proc/678/environ", Access.READ | Access.OWN),
        opened("/proc/678/stat"),
    ]
    (denied,) = TrainingReplay([found.document]).denied(map(seen, asked))
    assert denied.behaviour == asked[0], "set apart, and denied as what it is"
    both = only([*own, *looked, *(seen(opened("/proc/1/environ"), run) for run in (1, 2))])
    assert "presets" not in both.body["spec"]


@pytest.mark.parametrize("operation", [Operation.CHMOD, Operation.MKNOD])
def test_a_file_that_becomes_set_user_id_waits_for_a_second_instance(operation: Operation) -> None:
    def made(mode: int, run: int = 1) -> Sighting:
        return seen(
            msgspec.structs.replace(opened("/srv/b", Access.METADATA), operation=operation, args=(mode, 0)), run
        )

    assert [(item.resource, item.reason) for item in only([*WHITELISTS, made(0o4755)]).apart] == [
        ("/srv/b", "a file becomes set-user-ID")
    ]
    assert not only([*WHITELISTS, made(0o4755), made(0o4755, 2)]).apart
    assert not only([*WHITELISTS, made(0o755)]).apart


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"status": "Audit"}, "told as Audit"),
        ({"status": "Deny"}, "told as Deny"),
        ({"shadowed": True}, "a shadow policy or a baseline spoke against it"),
        ({"behaviour": opened("/srv/x", result=-13)}, "denied"),
        ({"behaviour": opened("/srv/x", result=-1, enforcer=Backend.SIGNAL)}, "denied"),
        ({"behaviour": opened("/srv/x/...", Access.READ | Access.PARTIAL)}, "no rule can name it"),
        ({"behaviour": executed("memfd:x")}, "no rule can name it"),
        (
            {"behaviour": opened("/srv/many/", Access.READ | Access.UNTOLD)},
            "told without names, for there were too many new ones",
        ),
    ],
)
def test_what_is_never_learnt_is_told(change: dict[str, object], why: str) -> None:
    (item,) = only([msgspec.structs.replace(seen(opened("/srv/x")), **change), seen(opened("/srv/ok"))]).apart
    assert item.reason == why
    accepted = only(
        [msgspec.structs.replace(seen(opened("/srv/x")), **change), seen(opened("/srv/ok"))], accept=(item.ident,)
    )
    assert accepted.apart == (() if "shadowed" in change else (item,))


def test_what_failed_by_itself_is_nothing() -> None:
    found = only([seen(opened("/srv/missing", result=-2)), seen(opened("/srv/ok"))])
    assert not found.apart
    assert [item["path"] for item in files(found)["matchPaths"]] == ["/srv/ok"]


def test_odd_things_wait_for_a_second_instance_or_an_accept() -> None:
    base = [seen(opened("/srv/ok"), run) for run in (1, 2)]
    theft = seen(opened("/etc/shadow"), 1)
    (item,) = only([*base, theft]).apart
    assert (item.reason, item.resource, item.pods) == ("a secret", "/etc/shadow", ("web-1",))
    for found in (only([*base, theft], accept=(item.ident,)), only([*base, theft, seen(opened("/etc/shadow"), 2)])):
        assert not found.apart
        assert {"path": "/etc/shadow", "readOnly": True, "fromSource": [{"path": "/usr/bin/app"}]} in files(found)[
            "matchPaths"
        ]


@pytest.mark.parametrize(
    "path", ["/var/log/wtmp", "/var/log/auth.log", "/run/utmp", "/var/log/journal/1/system.journal"]
)
def test_a_record_of_the_system_that_is_emptied_waits_for_a_second_instance(path: str) -> None:
    emptied = Access.WRITE | Access.CREATE | Access.TRUNCATE
    alone = only([*WHITELISTS, seen(opened(path, emptied))])
    assert [(item.resource, item.reason) for item in alone.apart] == [(path, "a record of the system is emptied")]
    assert not only([*WHITELISTS, seen(opened(path, emptied), 1), seen(opened(path, emptied), 2)]).apart
    assert not only([*WHITELISTS, seen(opened(path, Access.WRITE | Access.APPEND))]).apart, (
        "to add to it is what it is for"
    )


@pytest.mark.parametrize("name", ["python3.11", "perl", "perl5.36.0", "node", "php8.2", "ip", "ss"])
def test_interpreters_and_tools_that_look_at_the_network_wait_unless_the_container_is_for_them(name: str) -> None:
    run, loaded = executed(f"/usr/bin/{name}"), opened("/usr/lib/x.so", by=f"/usr/bin/{name}")
    begun = seen(executed("/usr/bin/app", parent="/init"), 1, 0.5)
    policy = only([begun, seen(run, 1), seen(loaded, 1)])
    assert {item.resource for item in policy.apart} == {f"/usr/bin/{name}", "/usr/lib/x.so"}
    again = [msgspec.structs.replace(begun, identity=pod(2)), seen(run, 2)]
    assert only([begun, seen(run, 1), *again]).apart == ()
    assert only([seen(run, 1), seen(loaded, 1)]).apart == (), "what it was started with"
    for other in ("sh", "pythonic", "my-node", "cp"):
        assert only([begun, seen(executed(f"/usr/bin/{other}"), 1)]).apart == ()


def test_a_late_program_and_what_it_did_wait() -> None:
    base = [seen(executed("/usr/bin/app", "/usr/bin/init"), run, run) for run in range(1, 5)]
    late = [seen(executed("/usr/bin/id"), 4, 4), seen(opened("/srv/loot", Access.WRITE, "/usr/bin/id"), 4, 4)]
    found = only([*base, *late])
    assert [item.resource for item in found.apart] == ["/usr/bin/id", "/srv/loot"]
    assert "file" not in found.body["spec"]


def test_what_is_new_after_a_quiet_day_waits_and_known_kinds_go_on() -> None:
    known = [seen(opened(f"/srv/app/job-{hour}", Access.WRITE), 1, hour) for hour in range(1, 60)]
    found = only([*known, seen(opened("/srv/other/x", Access.WRITE), 1, 50)])
    assert [item.resource for item in found.apart] == ["/srv/other/x"]
    assert files(found) == {"matchPatterns": [{"pattern": "/srv/app/job-[0-9]*"}]}
    assert found.completeness.state.value == "Stable"


def test_jobs_of_a_cron_job_are_one_workload() -> None:
    some = [seen(opened("/srv/a"), identity=pod(n, owner=f"backup-2839182{n}", uid=str(n))) for n in range(3)]
    jobs = [msgspec.structs.replace(one, identity=msgspec.structs.replace(one.identity, owner=Owner("Job", one.identity.owner.name, "shop"), labels={"app": "backup", "job-name": "x"})) for one in some]  # fmt: skip
    (found,) = learn(jobs)
    assert found.workload.owner == "backup"
    assert found.completeness.instances == 3


def test_services_of_a_host_have_policies_limited_to_what_they_run() -> None:
    host = Identity(kind=Kind.HOST, node="n1", uid="cg1", cgroup_path="/system.slice/nginx.service")
    found = learn(
        [
            seen(opened("/srv/a", by="/usr/sbin/nginx"), identity=host),
            seen(executed("/usr/sbin/nginx", "/usr/lib/systemd/systemd"), identity=host),
        ]
    )
    assert [policy.body["kind"] for policy in found] == ["KubeArmorHostPolicy"]
    assert found[0].body["spec"]["nodeSelector"] == {"matchLabels": {"kubernetes.io/hostname": "n1"}}
    assert found[0].workload.label == "n1/nginx"


def test_a_learnt_policy_has_nothing_that_lint_calls_a_mistake() -> None:
    found = only([seen(opened(f"/srv/app/{name}", Access.WRITE), run, run) for run, name in enumerate("abcdefgh", 1)])
    assert not [one for one in lint(compile_ruleset([found.document])) if one.level == "error"]


@pytest.mark.parametrize(
    ("name", "glob"),
    [
        ("4711", "[0-9]*"),
        ("6fa459ea-ee8a-3ca4-894e-db77e160355e", "[0-9a-f]*-[0-9a-f]*-[0-9a-f]*-[0-9a-f]*-[0-9a-f]*"),
        ("backup-2026-11-28.tar.gz", "backup-[0-9]*.tar.gz"),
        ("app.20261128", "app.[0-9]*"),
        ("9f86d081884c7d659a2feaa0c55ad015a3bf4f1b", "[0-9a-f]*"),
        ("tmp.Xa81kQ2bZz", "tmp.??????????"),
        ("reportXk29Qa1z", "report????????"),
        ("run.aBcDeF", "run.??????"),
        ("lua_b6kSZr", "lua_??????"),
        ("JsonParser", ""),
        ("LC_MESSAGES", ""),
        ("passwd", ""),
        ("libc.so.6", ""),
        ("x86_64-linux-gnu", ""),
        ("python3.11", ""),
        ("README", ""),
        ("index.html", ""),
    ],
)
def test_kinds_of_names(name: str, glob: str) -> None:
    assert components.strong(name) == glob


@given(st.lists(st.tuples(PATHS, st.integers(1, 3), st.integers(0, 40)), max_size=30))
@settings(max_examples=40, deadline=None)
def test_every_path_has_a_place_that_holds_it_in_any_order(seen_paths: list[tuple[str, int, int]]) -> None:
    def table(some: list[tuple[str, int, int]]) -> dict[str, Evidence]:
        made: dict[str, Evidence] = {}
        for path, instance, slot in some:
            made.setdefault(path, Evidence()).add(1, slot * HOUR, slot * HOUR, f"u{instance}", "/bin/x")
        return made

    place, again = places(table(seen_paths)), places(table(seen_paths[::-1]))
    for path, _, _ in seen_paths:
        found = place(path)
        assert found == again(path)
        assert found == path or path.startswith(found) or Automaton([glob.parse(found)]).match(path)


def test_places_are_kinds_and_open_directories() -> None:
    table: dict[str, Evidence] = {}
    for number in range(6):
        table.setdefault(f"/srv/app/job-{number}00", Evidence()).add(1, number * HOUR, number * HOUR, "u1", "/bin/x")
        table.setdefault(f"/srv/data/{'abcdef'[number]}", Evidence()).add(
            1, number * HOUR, number * HOUR, "u1", "/bin/x"
        )
    table["/etc/app.conf"] = table["/srv/data/a"]
    place = places(table)
    assert [place(path) for path in ("/srv/app/job-300", "/srv/data/c", "/etc/app.conf", "relative")] == [
        "/srv/app/job-[0-9]*", "/srv/data/", "/etc/app.conf", "relative",
    ]  # fmt: skip


def test_what_a_container_was_started_with_is_learnt_from_one_instance() -> None:
    """A job whose program is a tool has rules on programs from its first run: without any, that class would be no whitelist."""
    found = only(
        [
            seen(executed("/usr/bin/curl", "/usr/bin/runc"), hour=1),
            seen(executed("/usr/bin/nc", "/usr/bin/curl"), hour=2),
        ]
    )
    assert [rule.value for rule in found.rules if rule.section == "process"] == ["/usr/bin/curl"]
    assert [item.resource for item in found.apart] == ["/usr/bin/nc"]
    odd = only([seen(executed("/tmp/x", "/usr/bin/runc"))])
    assert [item.resource for item in odd.apart] == ["/tmp/x"], "not from a directory for temporary files"


def test_a_script_put_where_a_web_server_runs_it_is_set_apart_until_a_second_instance_does() -> None:
    put = opened("/var/www/html/shell.php", Access.WRITE | Access.CREATE)
    once = only([seen(executed("/usr/bin/app")), seen(put)])
    assert [(item.resource, item.reason) for item in once.apart] == [
        ("/var/www/html/shell.php", "a script where a web server runs it")
    ]
    assert list(
        TrainingReplay([only([seen(executed("/usr/bin/app")), seen(opened("/srv/x")), seen(put)]).document]).denied(
            [seen(put)]
        )
    )
    assert only([seen(executed("/usr/bin/app")), seen(put), seen(put, instance=2)]).apart == ()
    fine = [
        opened("/var/www/html/a.php"),
        opened("/var/www/html/upload.jpg", Access.WRITE),
        opened("/var/cache/a.php", Access.WRITE),
    ]
    assert only([seen(one) for one in fine]).apart == ()


def test_workloads_are_learnt_together_only_where_a_policy_of_one_selects_the_other() -> None:
    """So that learning them apart changes nothing: each policy is the one that all of them together give."""
    plain = [pod(number) for number in (1, 2)]
    other = [
        msgspec.structs.replace(
            pod(9), uid=f"o{n}", owner=Owner("Deployment", "other", "shop"), labels={**pod(9).labels, "extra": "yes"}
        )
        for n in (1, 2)
    ]
    far = [
        msgspec.structs.replace(
            pod(9), uid="f", namespace="far", owner=Owner("Deployment", "far", "far"), labels={"app": "far"}
        )
    ]
    goes = together([*far, *other, *plain])
    assert [sorted(one.uid for one in go) for go in goes] == [["f"], sorted(one.uid for one in (*plain, *other))]
    every = [seen(opened(f"/srv/{one.uid}/x"), identity=one) for one in (*plain, *other, *far)]
    whole = [one.body for one in learn(every)]
    apart = [
        one.body for go in goes for one in learn([each for each in every if each.identity.uid in {of.uid for of in go}])
    ]
    assert sorted(map(str, apart)) == sorted(map(str, whole))


def test_whom_a_policy_selects_that_nothing_was_seen_of() -> None:
    """Other workloads of the same labels, by their containers where a node has told of them, else by their pods."""
    (policy,) = learn([seen(opened("/srv/x"), number) for number in (1, 2)])
    learnt = [(policy.workload, policy.body["spec"]["selector"]["matchLabels"])]

    def box(owner: str, container: str = "app", **more: object) -> Identity:
        return pod(5, owner, container, **({"labels": {"app": "web", "x": "y"}, "pod_uid": f"{owner}-p"} | more))

    def fact(owner: str, **more: object) -> PodFact:
        fields: dict[str, object] = {"uid": f"{owner}-p", "namespace": "shop", "name": f"{owner}-5", "labels": {"app": "web"}, "owner": Owner("Deployment", owner, "shop")}  # fmt: skip
        return PodFact(**(fields | more))  # type: ignore[arg-type]

    seen_pods = [pod(1), pod(2)]
    there = [
        *seen_pods, pod(7), box("batch"), box("proxy", "envoy"), box("far", namespace="far"), box("over", ended=5.0), box("else", labels={"app": "else"}),
        msgspec.structs.replace(box("job"), owner=Owner("Job", "job-28912345", "shop")),
    ]  # fmt: skip
    facts = [
        fact("batch"), fact("proxy"), fact("web"), fact("new"), fact("gone", ended=5.0), fact("away", namespace="away"), fact("other", labels={"app": "other"}),
    ]  # fmt: skip
    expected = ("shop/batch/app", "shop/job/app", "shop/new")
    for order in (1, -1):
        assert selected_unseen(learnt, seen_pods, there[::order], facts[::order]) == {"shop/web/app": expected}
    assert selected_unseen(learnt, [*seen_pods, box("batch"), box("new"), there[-1]], there, facts) == {}
    # Pods without labels of their own are known by their container's name alone, which selects every pod's.
    (bare,) = learn([seen(opened("/srv/x"), identity=pod(1, labels={"pod-template-hash": "h"}))])
    assert selected_unseen([(bare.workload, bare.body["spec"]["selector"]["matchLabels"])], [pod(1)], [box("else", labels={"app": "else"})], []) == {"shop/web/app": ("shop/else/app",)}  # fmt: skip


SMALL = st.builds(
    lambda top, name, access: opened(f"{top}/{name}", access),
    st.sampled_from(["/srv/app", "/var/lib/x/y"]),
    st.sampled_from(
        ["a", "b", "c", "dd", "ee", "ff", "gg", "hh", "sub/a", "sub/b", "sub/c", "sub/d", "sub/e", "x/y/z"]
    ),
    READ | WRITE,
)
ANY = st.one_of(SMALL, SMALL, EXECS, BEHAVIOURS)
BEFORE = st.lists(st.builds(seen, ANY, st.integers(1, 4), st.integers(10, 40)), min_size=6, max_size=30)
LATE = st.lists(st.builds(seen, ANY, st.integers(1, 7), st.integers(1, 60)), min_size=1, max_size=15)
"""Between, before and after the others, of the same instances and of new ones."""


def batch(some: list[Sighting], chance: random.Random) -> list[Sighting]:
    """The same evidence as it may come: in any order, some of it twice, some in parts."""
    parts = [
        part for one in some
        for part in ([msgspec.structs.replace(one, count=1), one] if chance.random() < 0.3 else [one])
    ]  # fmt: skip
    chance.shuffle(parts)
    return parts


def lost(before: LearntPolicy, after: PolicyDocument, questions: list[Sighting]) -> list[Sighting]:
    """What the first lets pass and the other does not."""
    small, large = TrainingReplay([before.document]), TrainingReplay([after])
    denied = {id(one) for one in small.denied(questions)}
    return [one for one in large.denied(questions) if id(one) not in denied]


@RUN
@given(BEFORE, LATE, st.lists(ANY, max_size=25), st.randoms(use_true_random=False))
def test_a_policy_that_is_extended_never_shrinks_however_old_the_evidence(
    before: list[Sighting], late: list[Sighting], asked: list[Behaviour], chance: random.Random
) -> None:
    """`--merge`, which is what keeps a policy that is in force."""
    before = [*before, *WHITELISTS]
    first, every = only(before), only(batch([*before, *late], chance))
    assert every.body == only([*late, *before]).body
    try:
        body, _ = merged(first.body, every)
    except PolicyError:
        # A preset of it keeps what was seen since from everybody: told, and nothing is written.
        assert first.body["spec"].get("presets")
        return
    questions = [seen(behaviour) for behaviour in asked] + before + late
    assert [one.behaviour for one in lost(first, checked(body), questions)] == []
    assert list(TrainingReplay([checked(body)]).denied(every.evidence)) == []


@RUN
@given(BEFORE, LATE, st.lists(ANY, max_size=25), st.randoms(use_true_random=False))
def test_what_a_policy_gives_up_for_late_evidence_is_told_or_was_never_seen(
    before: list[Sighting], late: list[Sighting], asked: list[Behaviour], chance: random.Random
) -> None:
    """Learnt anew, it gives up what was seen only where `--review` says so; of what was not seen only what lay in a directory that was open."""
    before = [*before, *WHITELISTS]
    first, every = only(before), only(batch([*before, *late], chance))
    apart = {item.resource for item in every.apart}
    whole = [rule.value for rule in first.rules if rule.kind == "dir"]
    shown = {id(one) for one in before}
    for one in lost(first, every.document, [seen(behaviour) for behaviour in asked] + before):
        about = {*paths(one.behaviour), one.behaviour.executable}
        about |= {word(one.behaviour)} if one.behaviour.cls is Class.NETWORK else set()
        open_before = any(path.startswith(tuple(whole)) for path in paths(one.behaviour))
        assert about & apart or (id(one) not in shown and open_before), one.behaviour


def test_one_set_of_evidence_is_two_histories() -> None:
    """Why a policy that is learnt anew cannot keep all of what it allowed: the same sightings are an open set, and then old evidence of
    the names that were new in it; and a set that was complete after its first look, and then looks that repeat some of it. The second is a
    list for good. So is the first from then on, where an answer does not depend on the order in which evidence comes."""
    old = [seen(opened(f"/srv/app/{name}"), 9, 1) for name in ("ab", "bb", "cb", "db", "eb", "fb")]
    start = [seen(opened(f"/srv/app/{name}"), 1, 10) for name in ("ab", "bb", "cb", "db")]
    news = [seen(opened(f"/srv/app/{name}"), 1, 12) for name in ("eb", "fb")]
    was_open, complete = only([*start, *news]), only(old)
    assert files(was_open)["matchDirectories"][0]["dir"] == "/srv/app/"
    assert "matchDirectories" not in files(complete)
    assert only([*start, *news, *old]).body == only([*old, *start, *news]).body == complete.body
    question = [seen(opened("/srv/app/zb"))]
    assert lost(was_open, complete.document, question) == question
    # And a program that was the first's is that of a fourth, where the first three come late.
    ran = [seen(executed("/usr/bin/x"), 4, 10)]
    earlier = [seen(opened("/srv/app/ab"), number, number) for number in (1, 2, 3)]
    assert only(ran).apart == ()
    assert [item.reason for item in only([*ran, *earlier]).apart] == [
        "a program that the first 3 instances did not run"
    ]
