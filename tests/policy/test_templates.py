# SPDX-License-Identifier: Apache-2.0
"""Every hardening template stops what it says and lets pass what it says, as the judge decides; the set covers what it claims."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

import policy.recommend
from policy.learn.sightings import Sighting
from policy.parse import parse
from policy.recommend.contents import Distribution, EntryKind, ImageContents, ImageEntry, of_paths, os_release
from policy.recommend.recommend import HardenedWorkload, recommend
from policy.recommend.templates import FRAMEWORKS, Template, read
from policy.ruleset import PostureSettings, compile_ruleset
from policy.tools.lint import lint
from schemas.behaviour import Behaviour
from schemas.errors import PolicyError
from schemas.identity import Identity, Kind
from schemas.operations import Access, Operation
from schemas.verdict import Action

FILE = Path(policy.recommend.__file__).with_name("templates") / "hardening.yaml"
SET = read(FILE.read_bytes(), "hardening.yaml")
TEMPLATES = {one.name: one for one in SET.templates}
POD = Identity(
    kind=Kind.CONTAINER,
    node="n",
    uid="u",
    namespace="shop",
    pod="web-1",
    container_name="app",
    labels={"app": "web"},
    orchestrated=True,
)
WEB = HardenedWorkload(namespace="shop", name="web", labels={"app": "web"}, container="app")


def event(text: str) -> Behaviour:
    """`exec PATH [by PATH]`, `read PATH`, `write PATH`, `socket WORD`."""
    what, value, *rest = text.split()
    by = rest[1] if rest else "/init"
    match what:
        case "exec":
            return Behaviour(operation=Operation.EXEC, access=Access.EXEC, resource=value, executable=by, parent=by)
        case "read" | "write":
            access = Access.READ if what == "read" else Access.WRITE | Access.CREATE
            return Behaviour(
                operation=Operation.OPEN, access=access, resource=value, executable="/usr/bin/app", parent="/init"
            )
    kind, protocol = {"raw": (3, 1), "tcp": (1, 6), "udp": (2, 17)}[value]
    return Behaviour(
        operation=Operation.SOCKET,
        family=2,
        socket_type=kind,
        protocol=protocol,
        executable="/usr/bin/app",
        parent="/init",
    )


def image_of(template: Template) -> ImageContents:
    """An image that has every program and place of the template."""
    paths = [
        f"/usr/{where}/{name}"
        for name in (*template.programs, *template.needs, *template.sources, "app")
        for where in ("bin", "sbin")
    ]
    paths += [path.rstrip("!") for path in (*template.read_only, *template.closed, *template.no_exec)]
    return of_paths(paths)


def test_the_set_is_large_enough_and_every_one_says_why() -> None:
    assert len(TEMPLATES) >= 45
    for one in SET.templates:
        assert one.stops, one.name
        assert one.passes, one.name
        assert one.title, one.name
        assert one.why.endswith("."), one.name
        assert one.frameworks, one.name
        for technique in one.frameworks.get("MITRE", ()):
            assert re.fullmatch(r"T\d{4}(\.\d{3})?", technique), technique
    for framework in FRAMEWORKS:
        assert sum(framework in one.frameworks for one in SET.templates) >= 15, framework


@pytest.mark.parametrize("name", sorted(TEMPLATES))
def test_it_stops_what_it_says_and_nothing_that_it_says_not(name: str) -> None:
    template = TEMPLATES[name]
    found = recommend(WEB, [template], image_of(template))
    (one,) = found.policies
    (document,) = parse(msgspec.json.encode(one.body), name).policies
    assert not [finding for finding in lint(compile_ruleset([document])) if finding.level == "error"]
    scope = compile_ruleset([document], PostureSettings(untracked_namespaces=())).scope(POD)
    wanted = Action.BLOCK if template.action == "Block" else Action.AUDIT
    for text in template.stops:
        assert scope.judge(event(text)).action is wanted, text
    for text in template.passes:
        assert scope.judge(event(text)).action is Action.ALLOW, text


def test_programs_are_enforced_where_the_image_really_has_them() -> None:
    link = lambda target: ImageEntry(EntryKind.SYMLINK, 0o777, target)  # noqa: E731
    contents = ImageContents({
        "/bin": link("usr/bin"), "/usr": ImageEntry(EntryKind.DIRECTORY), "/usr/bin": ImageEntry(EntryKind.DIRECTORY),
        "/usr/bin/busybox": ImageEntry(EntryKind.FILE), "/usr/bin/wget": link("/bin/busybox"), "/usr/bin/sh": link("busybox"),
        "/etc": ImageEntry(EntryKind.DIRECTORY), "/etc/alternatives": ImageEntry(EntryKind.DIRECTORY),
        "/usr/bin/nc": link("/etc/alternatives/nc"), "/etc/alternatives/nc": link("/usr/bin/nc.openbsd"), "/usr/bin/nc.openbsd": ImageEntry(EntryKind.FILE),
        "/opt": ImageEntry(EntryKind.DIRECTORY), "/opt/curl": ImageEntry(EntryKind.FILE), "/opt/curl.txt": ImageEntry(EntryKind.FILE, 0o644),
        "/usr/bin/loop": link("loop"), "/usr/bin/gone": link("/nowhere"), "/usr/bin/scp": ImageEntry(EntryKind.FILE, 0o644),
    })  # fmt: skip
    assert contents.programs(["curl", "wget"]) == (["/opt/curl"], [("wget", "/usr/bin/busybox")])
    assert contents.programs(["nc"]) == (["/usr/bin/nc.openbsd"], [])
    assert contents.programs(["loop", "gone", "scp"]) == ([], [])
    assert contents.resolve("/bin/../bin/nc") == "/usr/bin/nc.openbsd"
    found = recommend(WEB, [TEMPLATES["download-tools"], TEMPLATES["compilers"]], contents)
    assert found.policies[0].notes == ("wget is /usr/bin/busybox, which has other names too: not blocked",)
    assert found.policies[0].body["spec"]["process"] == {"matchPaths": [{"path": "/opt/curl"}]}
    assert [(one.template, one.reason) for one in found.left_out] == [("compilers", "the image has nothing of it")]
    # Names by which Debian 12 has them.
    for template, target, names in (
        ("compilers", "/usr/bin/x86_64-linux-gnu-gcc-12", ("gcc-12", "gcc", "cc")), ("compilers", "/usr/bin/x86_64-linux-gnu-ld.bfd", ("ld",)),
        ("kernel-modules", "/usr/bin/kmod", ("lsmod", "modinfo", "modprobe", "insmod")), ("process-discovery", "/usr/bin/pgrep", ("pkill", "pidwait")),
        ("remote-shells", "/usr/bin/ssh", ("slogin",)), ("account-tools", "/usr/sbin/vipw", ("vigr",)), ("account-tools", "/usr/sbin/deluser", ("delgroup",)),
        ("firewall-tools", "/usr/sbin/xtables-nft-multi", ("iptables-nft", "ip6tables-nft-save", "ebtables-translate", "arptables-nft", "xtables-monitor")),
    ):  # fmt: skip
        entries = {"/usr": ImageEntry(EntryKind.DIRECTORY), target.rpartition("/")[0]: ImageEntry(EntryKind.DIRECTORY), target: ImageEntry(EntryKind.FILE)}  # fmt: skip
        debian = ImageContents(entries | {f"{target.rpartition('/')[0]}/{name}": link(target) for name in names})
        (made,) = recommend(WEB, [TEMPLATES[template]], debian).policies
        assert ({"path": target} in made.body["spec"]["process"]["matchPaths"], made.notes) == (True, ()), target
    hard = ImageContents(
        {"/bin/busybox": ImageEntry(EntryKind.FILE), "/bin/wget": ImageEntry(EntryKind.FILE, same="/bin/busybox")}
    )
    assert hard.programs(["wget"])[0] == [], "hard links are one file"


def test_what_contradicts_recorded_behaviour_is_left_out_and_the_rest_is_replayed() -> None:
    some = [
        "exec /usr/bin/curl",
        "write /etc/app.conf",
        "read /run/secrets/kubernetes.io/serviceaccount/token",
        "exec /usr/bin/app",
    ]
    sightings = [Sighting(identity=POD, behaviour=event(text), count=7) for text in some]
    sightings.append(Sighting(identity=POD, behaviour=event("exec /tmp/x"), status="Deny"))
    contents = of_paths(["/usr/bin/curl", "/usr/bin/app", "/usr/bin/apt", "/etc/app.conf", "/etc/ssl/"])
    found = recommend(WEB, SET.templates, contents, sightings)
    reasons = {one.template: one.reason for one in found.left_out}
    assert reasons["download-tools"] == "it would block exec of /usr/bin/curl by /init, seen 7 times"
    assert "serviceaccount/token" in reasons["service-account-token"]
    assert (found.behaviours, found.denied) == (4, 0)
    names = {one.template.name for one in found.policies}
    assert {"package-managers", "temporary-programs", "configuration-read-only"} <= names, (
        "what only audits denies nothing; denied events are no evidence"
    )
    assert len({one.body["metadata"]["name"] for one in found.policies}) == len(found.policies)
    assert found == recommend(WEB, SET.templates, contents, sightings[::-1])


def test_asked_together_each_template_is_left_out_for_what_it_would_block_alone() -> None:
    texts = sorted({text for one in SET.templates for text in (*one.stops, *one.passes)})
    sightings = [Sighting(identity=POD, behaviour=event(text)) for text in texts]
    alone = {}
    for template in SET.templates:
        for made in recommend(WEB, [template], None).policies:
            (document,) = parse(msgspec.json.encode(made.body), template.name).policies
            scope = compile_ruleset([document], PostureSettings(untracked_namespaces=())).scope(POD)
            alone[template.name] = {
                one.behaviour.resource or "a socket"
                for one in sightings
                if scope.judge(one.behaviour).action is Action.BLOCK
            }
    found = recommend(WEB, SET.templates, None, sightings)
    assert {one.template.name for one in found.policies} == {name for name, blocked in alone.items() if not blocked}
    told = {one.template: one.reason for one in found.left_out if one.reason.startswith("it would block")}
    assert told.keys() == {name for name, blocked in alone.items() if blocked}
    assert all(any(f" of {what} by " in told[name] for what in blocked) for name, blocked in alone.items() if blocked)
    assert (len(told) > 40, len(found.policies) > 5, found.denied) == (True, True, 0)


def test_without_an_image_programs_are_named() -> None:
    found = recommend(WEB, [TEMPLATES["netcat"], TEMPLATES["java-shells"]], None)
    (one,) = found.policies
    assert {"execname": "nc"} in one.body["spec"]["process"]["matchPaths"]
    assert "without the image" in found.left_out[0].reason


def test_services_of_s6_overlay_run_from_run() -> None:
    """Its init and its services are started from /run/s6 and /run/service: a rule on /run would keep the container from starting."""
    (left,) = recommend(
        WEB, [TEMPLATES["run-programs"]], of_paths(["/init", "/package/admin/s6-overlay/etc/"])
    ).left_out
    assert left.reason == "the image has /package/admin/s6-overlay/"
    assert not recommend(WEB, [TEMPLATES["run-programs"]], None).policies, "nobody knows"
    assert recommend(WEB, [TEMPLATES["run-programs"]], of_paths(["/init"])).policies


def test_distributions() -> None:
    assert os_release('NAME="Wolfi"\nID=wolfi\nVERSION_ID="20230201"\nPRETTY_NAME=\'Wolfi\'\n# x\nbad') == Distribution(
        "wolfi", "20230201", "Wolfi"
    )
    assert os_release("") == Distribution()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("version: 1", "got"), ("[", "got"), ("version: '2026.1.1'\ntemplates: [{name: a}]", "missing required field"),
        ("version: '2026.1.1'\ntemplates: [{name: a, title: t, why: w, severity: 5, action: Block}]", "to have a rule"),
        ("version: '2026.1.1'\ntemplates: [{name: a, title: t, why: w, severity: 5, action: Block, programs: [../x]}]", "got"),
        ("version: '2026.1.1'\ntemplates: [{name: a, title: t, why: w, severity: 5, action: Block, closed: [/a/../b]}]", "without"),
        ("version: '2026.1.1'\ntemplates: [{name: a, title: t, why: w, severity: 5, action: Block, programs: [x], frameworks: {XY: [a]}}]", "expected frameworks"),
    ],
)  # fmt: skip
def test_what_is_no_template_is_said(text: str, says: str) -> None:
    with pytest.raises(PolicyError, match=says):
        read(text.encode(), "mine.yaml")
