# SPDX-License-Identifier: Apache-2.0
"""What holds for every policy and every behaviour: the judge against a slow reference, and the laws of issue and semantics.

Rules and behaviours are drawn from a small alphabet, so that they meet often.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.judge.compile import compile_judge
from policy.judge.overlap import may_overlap
from policy.judge.sockets import words
from policy.kernel_plan import plan_scope
from policy.match import glob
from policy.match.automata import Automaton
from policy.rules.specificity import rank
from policy.rules.visibility import Visibility
from policy.ruleset import Scope
from schemas.behaviour import Behaviour
from schemas.enforcement import NetworkRule, PathRule
from schemas.identity import Identity, Kind
from schemas.operations import Access, Backend, Class, Operation
from schemas.rules import Match, Policy, PolicyKey, Rule, Selection, Source, SourceKind, Target
from schemas.verdict import Action, Mode

DIRECTORIES = ["/", "/a/", "/a/b/", "/b/", "/a/b/a/"]
PATHS = ["/a", "/b", "/a/b", "/a/a", "/a/b/a", "/a/b/a/b", "/b/a", "/c"]
PATTERNS = ["/*", "/**", "/a/*", "/**/a", "/{a,b}/?", "/a/b/[ab]"]
ACTORS = ["/a/b", "/b/a", "/c"]
CONTAINER = Identity(kind=Kind.CONTAINER, node="n", uid="u")

sources = st.one_of(
    st.sampled_from(ACTORS).map(lambda value: Source(SourceKind.PATH, value)),
    st.tuples(st.sampled_from(DIRECTORIES), st.booleans()).map(lambda pair: Source(SourceKind.DIRECTORY, *pair)),
    st.sampled_from(PATTERNS).map(lambda value: Source(SourceKind.PATTERN, value)),
)
places = st.one_of(
    st.sampled_from(PATHS).map(lambda value: {"match": Match.PATH, "value": value}),
    st.tuples(st.sampled_from(DIRECTORIES), st.booleans()).map(
        lambda pair: {"match": Match.DIRECTORY, "value": pair[0], "recursive": pair[1]}
    ),
    st.sampled_from(PATTERNS).map(lambda value: {"match": Match.PATTERN, "value": value}),
    st.sampled_from(["a", "b"]).map(lambda value: {"match": Match.EXECNAME, "value": value}),
)


@st.composite
def file_rules(draw: st.DrawFn, *, limits: bool = True) -> Rule:
    place = draw(places)
    exec_only = place["match"] is Match.EXECNAME
    class_ = Class.PROCESS if exec_only else draw(st.sampled_from([Class.PROCESS, Class.FILE]))
    has_args = limits and class_ is Class.PROCESS and place["match"] is Match.PATH and draw(st.booleans())
    return Rule(
        key=PolicyKey("KubeArmorPolicy", "demo", draw(st.sampled_from(["p", "q"]))),
        index=0,
        position="",
        class_=class_,
        sources=tuple(draw(st.lists(sources, max_size=2, unique=True))) if draw(st.booleans()) else (),
        action=draw(st.sampled_from(list(Action))),
        owner_only=limits and draw(st.integers(0, 4)) == 0,
        read_only=limits and class_ is Class.FILE and draw(st.integers(0, 4)) == 0,
        pts=False if limits and draw(st.integers(0, 6)) == 0 else None,
        has_args=has_args,
        allowed_args=("-l",) if has_args else (),
        **place,
    )


def numbered(rules: Iterable[Rule]) -> list[Rule]:
    return [
        msgspec.structs.replace(rule, index=number, position=f"rules[{number}]") for number, rule in enumerate(rules)
    ]


rule_lists = st.lists(file_rules(), max_size=8).map(numbered)
plain_lists = st.lists(file_rules(limits=False), max_size=8).map(numbered)
behaviours = st.builds(
    Behaviour,
    operation=st.sampled_from([Operation.EXEC, Operation.OPEN, Operation.UNLINK]),
    access=st.sampled_from([Access.READ, Access.WRITE, Access.READ | Access.WRITE]),
    executable=st.sampled_from(ACTORS),
    parent=st.sampled_from(ACTORS),
    resource=st.sampled_from(PATHS),
    uid=st.sampled_from([0, 1]),
    owner=st.sampled_from([0, 1]),
    tty=st.booleans(),
)
arguments = st.sampled_from([("x",), ("x", "-l"), ("x", "-l", "-r")])
postures = st.sampled_from(["audit", "block", "allow"])


def matches_glob(pattern: str, path: str) -> bool:
    return bool(Automaton([glob.parse(pattern)]).match(path))


def on_directory(value: str, recursive: bool, path: str) -> bool:
    inside = path.startswith(value) and (recursive or "/" not in path[len(value) :])
    return inside or path + "/" == value


def source_holds(source: Source, actor: str) -> bool:
    if source.kind is SourceKind.PATH:
        return source.value == actor
    if source.kind is SourceKind.PATTERN:
        return matches_glob(source.value, actor)
    return actor.startswith(source.value) and (source.recursive or "/" not in actor[len(source.value) :])


def acts_by(rule: PathRule | NetworkRule, actor: str) -> bool:
    kind = SourceKind.DIRECTORY if rule.source_match.startswith("directory") else SourceKind(rule.source_match)
    return not rule.source or source_holds(Source(kind, rule.source, rule.source_match.endswith("recursive")), actor)


def resource_holds(rule: Rule, path: str) -> bool:
    if rule.match is Match.PATH:
        return rule.value == path
    if rule.match is Match.EXECNAME:
        return path.rpartition("/")[2] == rule.value
    if rule.match is Match.PATTERN:
        return matches_glob(rule.value, path)
    return on_directory(rule.value, rule.recursive, path)


def reference(rules: list[Rule], behaviour: Behaviour, argv: tuple[str, ...], posture: str) -> tuple[str, str | None]:
    """docs/semantics.md, read aloud: (action, `rules[n]` or DefaultPosture or None)."""
    class_ = Class.PROCESS if behaviour.operation is Operation.EXEC else Class.FILE
    actor = behaviour.parent if class_ is Class.PROCESS else behaviour.executable
    mine = [rule for rule in rules if rule.class_ is class_]
    said = []
    for rule in mine:
        if not resource_holds(rule, behaviour.resource):
            continue
        ranks = [rank(rule, source) for source in rule.sources if source_holds(source, actor)]
        if not rule.sources:
            ranks = [rank(rule)]
        if not ranks:
            continue
        action: Action | None = rule.action
        inside = len(argv) > 1 and set(argv[1:]) <= set(rule.allowed_args)
        writes = behaviour.operation is Operation.UNLINK or Access.WRITE in behaviour.access
        changes = class_ is Class.FILE and writes
        free = (
            not (rule.owner_only and behaviour.uid != behaviour.owner)
            and not (rule.read_only and changes)
            and not (rule.pts is False and behaviour.tty)
        )
        limited = rule.owner_only or rule.read_only or rule.pts is False
        if rule.has_args and inside:
            action = None if rule.action is Action.AUDIT else Action.ALLOW
        elif rule.has_args and rule.action is Action.ALLOW:
            action = None
        elif limited and free:
            action = None if rule.action is Action.AUDIT else Action.ALLOW
        elif limited and rule.action is Action.ALLOW:
            action = Action.BLOCK
        if action is not None:
            said.append((max(ranks), action, rule))
    deciders = [one for one in said if one[2].action is not Action.AUDIT]
    tellers = [one for one in said if one[2].action is Action.AUDIT]
    whitelist = posture != "allow" and any(rule.action is Action.ALLOW for rule in mine)
    top = max((one[0] for one in deciders), default=None)
    best = [one for one in deciders if one[0] == top]
    blocking = [one for one in best if one[1] is Action.BLOCK]
    loudest = max((one[0] for one in tellers), default=None)
    telling = [one for one in tellers if one[0] == loudest]

    def first(some: list[tuple[object, Action, Rule]]) -> str:
        return min(((one[2].key, one[2].index), one[2].position) for one in some)[1]

    if blocking:
        return "Block", first(blocking)
    if best:
        if telling and loudest is not None and top is not None and loudest >= top:
            return "Audit", first(telling)
        return "Allow", first(best)
    if whitelist and posture == "block":
        return "Block", "DefaultPosture"
    if telling:
        return "Audit", first(telling)
    return ("Audit", "DefaultPosture") if whitelist else ("Allow", None)


def judged(
    rules: Iterable[Rule], behaviour: Behaviour, argv: tuple[str, ...] | None, posture: str
) -> tuple[str, str | None]:
    verdict = compile_judge([(rule, Mode.ENFORCE) for rule in rules], {"file": posture}).judge(behaviour, argv)
    return verdict.action.value, verdict.rule.position if verdict.rule is not None else verdict.policy


@given(rule_lists, behaviours, arguments, postures)
@settings(max_examples=300, deadline=None)
def test_judge_agrees_with_the_reference(
    rules: list[Rule], behaviour: Behaviour, argv: tuple[str, ...], posture: str
) -> None:
    assert judged(rules, behaviour, argv, posture) == reference(rules, behaviour, argv, posture)


@given(rule_lists, behaviours, arguments, postures, st.randoms())
@settings(max_examples=200, deadline=None)
def test_order_does_not_matter(
    rules: list[Rule], behaviour: Behaviour, argv: tuple[str, ...], posture: str, chance: random.Random
) -> None:
    shuffled = list(rules)
    chance.shuffle(shuffled)
    assert judged(rules, behaviour, argv, posture) == judged(shuffled, behaviour, argv, posture)


@given(rule_lists, file_rules(), behaviours, arguments, postures)
@settings(max_examples=300, deadline=None)
def test_an_audit_rule_never_changes_what_is_allowed(
    rules: list[Rule], extra: Rule, behaviour: Behaviour, argv: tuple[str, ...], posture: str
) -> None:
    extra = msgspec.structs.replace(extra, action=Action.AUDIT, index=99, position="rules[99]")
    before, after = judged(rules, behaviour, argv, posture), judged([*rules, extra], behaviour, argv, posture)
    assert (before[0] == "Block") == (after[0] == "Block")


@given(
    st.sampled_from(DIRECTORIES),
    st.booleans(),
    st.sets(st.sampled_from(PATHS), min_size=1),
    st.sampled_from(list(Action)),
)
@settings(max_examples=200, deadline=None)
def test_a_directory_rule_is_the_union_of_path_rules_over_any_tree(
    directory: str, recursive: bool, tree: set[str], action: Action
) -> None:
    key = PolicyKey("KubeArmorPolicy", "demo", "p")
    whole = Rule(key=key, index=0, position="", class_=Class.FILE, match=Match.DIRECTORY, value=directory, recursive=recursive, action=action)  # fmt: skip
    covered = [path for path in sorted(tree) if on_directory(directory, recursive, path)]
    each = [
        Rule(key=key, index=number, position="", class_=Class.FILE, match=Match.PATH, value=path, action=action)
        for number, path in enumerate(covered)
    ]
    # One Allow rule elsewhere, so that both sides are whitelists even when the directory covers nothing of the tree.
    other = Rule(key=key, index=99, position="", class_=Class.FILE, match=Match.PATH, value="/zzz", action=Action.ALLOW)
    for path in tree:
        behaviour = Behaviour(operation=Operation.OPEN, resource=path)
        assert (
            judged([whole, other], behaviour, None, "block")[0] == judged([*each, other], behaviour, None, "block")[0]
        )


@given(rule_lists, behaviours, arguments, postures)
@settings(max_examples=300, deadline=None)
def test_arguments_are_asked_for_whenever_they_could_matter(
    rules: list[Rule], behaviour: Behaviour, argv: tuple[str, ...], posture: str
) -> None:
    judge = compile_judge([(rule, Mode.ENFORCE) for rule in rules], {"file": posture})
    first = judge.judge(behaviour)
    final = judge.judge(behaviour, argv)
    assert not final.needs_arguments
    if not first.needs_arguments:
        assert first == final


@given(file_rules(limits=False), file_rules(limits=False), behaviours)
@settings(max_examples=250, deadline=None)
def test_overlap_errs_on_the_safe_side(rule: Rule, other: Rule, behaviour: Behaviour) -> None:
    def holds(one: Rule) -> bool:
        class_ = Class.PROCESS if behaviour.operation is Operation.EXEC else Class.FILE
        actor = behaviour.parent if class_ is Class.PROCESS else behaviour.executable
        by = not one.sources or any(source_holds(source, actor) for source in one.sources)
        return one.class_ is class_ and by and resource_holds(one, behaviour.resource)

    if holds(rule) and holds(other):
        assert may_overlap(rule, other)


def scope_of(rules: list[Rule], posture: str) -> Scope:
    policy = Policy(
        key=PolicyKey("KubeArmorPolicy", "demo", "p"),
        selection=Selection(target=Target.CONTAINERS),
        rules=tuple(rules),
        signal=True,
    )
    return Scope(((policy, Mode.ENFORCE),), {"file": posture}, Visibility(), Mode.ENFORCE, False)


def planned(rules: tuple[PathRule, ...], behaviour: Behaviour) -> str | None:
    """What a backend does that takes the first rule that matches; None when none does."""
    class_ = Class.PROCESS if behaviour.operation is Operation.EXEC else Class.FILE
    actor = behaviour.parent if class_ is Class.PROCESS else behaviour.executable
    for rule in rules:
        match = Match.DIRECTORY if rule.match.startswith("directory") else Match(rule.match)
        key = PolicyKey("", "", "")
        same = Rule(key=key, index=0, position="", class_=rule.cls, match=match, value=rule.value, recursive=rule.match.endswith("recursive"), action=rule.action)  # fmt: skip
        if rule.cls is not class_ or not resource_holds(same, behaviour.resource) or not acts_by(rule, actor):
            continue
        changes = behaviour.operation is Operation.UNLINK or (class_ is Class.FILE and Access.WRITE in behaviour.access)
        if rule.limited:
            free = not (rule.owner_only and behaviour.uid != behaviour.owner) and not (rule.read_only and changes)
            return "Allow" if free and not (rule.no_terminal and behaviour.tty) else "Block"
        return rule.action.value
    return None


backends = st.sampled_from([Backend.SIGNAL, Backend.BPF_LSM, Backend.APPARMOR])


@given(rule_lists, behaviours, arguments, postures, backends)
@settings(max_examples=300, deadline=None)
def test_a_plan_never_denies_what_the_judge_allows(
    rules: list[Rule], behaviour: Behaviour, argv: tuple[str, ...], posture: str, backend: Backend
) -> None:
    scope = scope_of(rules, posture)
    plan, refused = plan_scope(scope, CONTAINER, backends=(backend,))
    done = planned(plan.paths, behaviour)
    if done is None:
        class_ = Class.PROCESS if behaviour.operation is Operation.EXEC else Class.FILE
        done = dict(plan.posture).get(class_, Action.ALLOW).value
    verdict = scope.judge(behaviour, argv)
    if done == "Block":
        assert verdict.action is Action.BLOCK
    elif verdict.action is Action.BLOCK:
        # Less is enforced than the policy says only where a refusal says so.
        assert refused


@given(plain_lists, behaviours, postures, backends)
@settings(max_examples=300, deadline=None)
def test_a_plan_that_refuses_nothing_is_the_judge(
    rules: list[Rule], behaviour: Behaviour, posture: str, backend: Backend
) -> None:
    scope = scope_of(rules, posture)
    plan, refused = plan_scope(scope, CONTAINER, backends=(backend,))
    if refused:
        return
    done = planned(plan.paths, behaviour)
    if done is None:
        class_ = Class.PROCESS if behaviour.operation is Operation.EXEC else Class.FILE
        done = dict(plan.posture).get(class_, Action.ALLOW).value
    assert (done == "Block") == (scope.judge(behaviour).action is Action.BLOCK)


WORDS = ["tcp", "udp", "stream", "dgram", "raw", "all", "seqpacket"]
SOCKETS = [(2, 1, 6), (10, 2, 17), (2, 3, 1), (10, 5, 132), (2, 1, 132)]
network_rules = st.lists(
    st.builds(
        Rule,
        key=st.just(PolicyKey("KubeArmorPolicy", "demo", "p")),
        index=st.just(0),
        position=st.just(""),
        class_=st.just(Class.NETWORK),
        match=st.just(Match.PROTOCOL),
        value=st.sampled_from(WORDS),
        sources=st.lists(sources, max_size=2, unique=True).map(tuple),
        action=st.sampled_from(list(Action)),
    ),
    max_size=6,
).map(numbered)


@given(network_rules, st.sampled_from(SOCKETS), st.sampled_from(ACTORS), postures)
@settings(max_examples=250, deadline=None)
def test_network_plans_never_deny_what_the_judge_allows(
    rules: list[Rule], socket: tuple[int, int, int], actor: str, posture: str
) -> None:
    policy = Policy(key=PolicyKey("KubeArmorPolicy", "demo", "p"), selection=Selection(target=Target.CONTAINERS), rules=tuple(rules))  # fmt: skip
    scope = Scope(((policy, Mode.ENFORCE),), {"network": posture}, Visibility(), Mode.ENFORCE, False)
    plan, refused = plan_scope(scope, CONTAINER)
    asked = words(*socket)
    done = dict(plan.posture).get(Class.NETWORK, Action.ALLOW)
    for rule in plan.network:
        if rule.direction == "egress" and rule.protocol in asked and acts_by(rule, actor):
            done = rule.action
            break
    behaviour = Behaviour(operation=Operation.SOCKET, family=socket[0], socket_type=socket[1], protocol=socket[2], executable=actor)  # fmt: skip
    verdict = scope.judge(behaviour)
    if done is Action.BLOCK:
        assert verdict.action is Action.BLOCK
    elif verdict.action is Action.BLOCK:
        assert refused
