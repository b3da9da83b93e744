# SPDX-License-Identifier: Apache-2.0
"""The parser as a whole: any bytes in, policies and diagnostics out, never an exception, never out of bounds."""

from __future__ import annotations

import json
import time

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policy import documents
from policy.parse import SIZE, Parsed, parse
from policy.rules.normalise import normalise
from policy.text import json_lines, struct_fields, yaml_lines
from policy.text.diagnostics import Report
from policy.text.yaml_nodes import Mapping, Node, Scalar, Sequence, plain, plain_kind
from schemas.errors import PolicyError
from schemas.policy import KINDS, PolicyDocument

POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: demo
  namespace: shop
  annotations:
    hauberk.io/mode: shadow
spec:
  severity: 5
  tags: [A, "B"]
  selector:
    matchLabels:
      app: web
      kubearmor.io/container.name: "[a, b]"
    matchExpressions:
    - key: label
      operator: NotIn
      values: [tier=front]
  process:
    matchPaths:
    - path: /usr/bin/curl
      fromSource:
      - path: /bin/sh
    - execname: nc
    matchDirectories:
    - dir: /tmp/
      recursive: true
    matchPatterns:
    - pattern: /**/*miner*
  file:
    action: Audit
    matchDirectories:
    - dir: /etc/
      readOnly: true
  network:
    matchProtocols:
    - protocol: tcp, UDP
    matchDNSQueries:
    - domain: example.com
  capabilities:
    matchCapabilities:
    - capability: net_raw
  syscalls:
    matchSyscalls:
    - syscall: [ptrace]
  presets:
  - name: filelessExec
  action: Block
"""
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def only(text: str | bytes) -> PolicyDocument:
    parsed = parse(text, "demo.yaml")
    assert parsed.ok, [str(found) for found in parsed.diagnostics]
    (document,) = parsed.policies
    return document


def sound(parsed: Parsed) -> None:
    """What holds of every answer, whatever was asked."""
    assert parsed.ok is (not any(found.level == "error" for found in parsed.diagnostics))
    for found in parsed.diagnostics:
        assert found.line >= 1
        assert found.column >= 1
        assert found.message
        assert "\n" not in str(found)
    for document in parsed.policies:
        normalise(document)
        assert documents.from_json(documents.to_json(document)).policy == document.policy


@FUZZ
@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    sound(parse(data, "f"))


@FUZZ
@given(st.text(max_size=300))
def test_any_text(text: str) -> None:
    sound(parse(text, "f"))


@FUZZ
@given(st.text(alphabet="[]{}:,-&*!|>'\"%@#?~<= \n\tabckind012.", max_size=200))
def test_text_made_of_yaml_signs(text: str) -> None:
    sound(parse(text, "f"))


@FUZZ
@given(st.data())
def test_a_valid_policy_with_pieces_cut_moved_and_replaced(data: st.DataObject) -> None:
    lines = POLICY.splitlines()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.sampled_from(["drop", "double", "swap", "dedent", "indent", "value", "byte"])):
            case "drop":
                lines.pop(at)
            case "double":
                lines.insert(at, lines[at])
            case "swap":
                other = data.draw(st.integers(0, len(lines) - 1))
                lines[at], lines[other] = lines[other], lines[at]
            case "dedent":
                lines[at] = lines[at][2:]
            case "indent":
                lines[at] = "  " + lines[at]
            case "value":
                value = data.draw(st.sampled_from(["", "null", "[]", "{}", "5", "-1", "true", "*x", "'", "/", "[[a]]", "1e9", "0x", "!!binary aa", "é"]))  # fmt: skip
                lines[at] = lines[at].partition(":")[0] + ": " + value
            case _:
                lines[at] += data.draw(st.characters())
        if not lines:
            break
    sound(parse("\n".join(lines), "f"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


SPEC_FIELDS = sorted(
    {name for kind in KINDS.values() for name in struct_fields.fields(struct_fields.fields(kind)["spec"].shape.struct)}
)


@FUZZ
@given(st.dictionaries(st.sampled_from(SPEC_FIELDS), VALUES), st.sampled_from(sorted(KINDS)))
def test_any_json_in_the_place_of_a_spec(spec: dict[str, object], kind: str) -> None:
    body = {"apiVersion": "security.kubearmor.com/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec}
    sound(parse(json.dumps(body), "f"))


@FUZZ
@given(st.data())
def test_any_value_in_any_place_of_a_valid_policy(data: st.DataObject) -> None:
    body = yaml.safe_load(POLICY)
    holder, key = body, "spec"
    while True:
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if not isinstance(holder[key], dict | list) or data.draw(st.booleans()):
            break
        holder = holder[key]
    holder[key] = data.draw(VALUES)
    sound(parse(json.dumps(body), "f"))


# Round trips


def test_yaml_and_json_of_one_policy_are_the_same_policy() -> None:
    first, second = only(POLICY), only(json.dumps(yaml.safe_load(POLICY), indent=1))
    assert first.policy == second.policy
    assert first.key == second.key == "KubeArmorPolicy/shop/demo"


def test_the_document_on_the_bus_is_what_the_author_wrote() -> None:
    document = only(POLICY)
    assert json.loads(documents.to_json(document)) == yaml.safe_load(POLICY)
    assert documents.key(document) == b"KubeArmorPolicy/shop/demo"
    again = documents.from_json(documents.to_json(document))
    assert again.policy == document.policy
    assert [position.path for position in again.positions] == [position.path for position in document.positions]


def test_what_kubernetes_adds_travels_unchanged() -> None:
    body = yaml.safe_load(POLICY)
    body["metadata"] |= {
        "uid": "x",
        "generation": 3,
        "managedFields": [{"manager": "kubectl"}],
        "creationTimestamp": None,
    }
    body["status"] = {"status": "OK"}
    assert json.loads(documents.to_json(only(json.dumps(body)))) == body


def test_from_json_refuses_with_diagnostics() -> None:
    with pytest.raises(PolicyError, match="P402") as caught:
        documents.from_json(json.dumps(yaml.safe_load(POLICY) | {"spec": {"action": "Deny"}}).encode())
    assert caught.value.diagnostics


def test_from_json_wants_exactly_one() -> None:
    with pytest.raises(PolicyError):
        documents.from_json(b"")


# PyYAML writes `y` and `1e5` without quotes, which Kubernetes reads as a boolean and a number.
TEXTS = st.text(max_size=8).filter(lambda text: plain_kind(text) in ("str", "null"))
NAMES = st.text(alphabet="abcxyz0189", min_size=1, max_size=8)
PATHS = st.lists(
    st.text(alphabet="aeb .-_+é#:'\"", min_size=1, max_size=6).filter(lambda name: name.strip(".") != ""),
    min_size=1,
    max_size=4,
).map(lambda parts: "/" + "/".join(parts))
ATTRIBUTES = {
    "severity": st.integers(1, 10),
    "tags": st.lists(TEXTS, max_size=3),
    "message": TEXTS,
    "action": st.sampled_from(["Allow", "Audit", "Block"]),
}
SOURCES = st.lists(st.fixed_dictionaries({"path": PATHS}), max_size=2)


def entry(
    needed: dict[str, st.SearchStrategy[object]], **more: st.SearchStrategy[object]
) -> st.SearchStrategy[list[object]]:
    return st.lists(st.fixed_dictionaries(needed, optional=ATTRIBUTES | more), max_size=3)  # type: ignore[arg-type]


FLAGS = {"ownerOnly": st.booleans(), "pts": st.booleans(), "fromSource": SOURCES}
SPECS = st.fixed_dictionaries(
    {"selector": st.fixed_dictionaries({"matchLabels": st.dictionaries(NAMES, TEXTS, max_size=3)})},
    optional=ATTRIBUTES
    | {
        "process": st.fixed_dictionaries({}, optional=ATTRIBUTES | {
            "matchPaths": entry({"path": PATHS}, allowedArgs=st.lists(TEXTS, max_size=3), **FLAGS),
            "matchDirectories": entry({"dir": PATHS.map(lambda path: path + "/")}, recursive=st.booleans(), **FLAGS),
        }),
        "file": st.fixed_dictionaries({}, optional=ATTRIBUTES | {
            "matchPatterns": entry({"pattern": st.sampled_from(["/**/x", "/a*", "/{a,b}?"])}, readOnly=st.booleans()),
        }),
        "network": st.fixed_dictionaries({}, optional=ATTRIBUTES | {
            "matchProtocols": entry({"protocol": st.sampled_from(["tcp", "UDP", "icmp, raw", "all"])}),
            "matchDNSQueries": entry({"domain": st.sampled_from(["a.b", "X.y., z"])}),
        }),
        "capabilities": st.fixed_dictionaries({}, optional={"matchCapabilities": entry({"capability": st.just("net_raw,kill")})}),
        "presets": st.lists(st.fixed_dictionaries({"name": st.sampled_from(["exec", "protectEnv"])}), max_size=2),
    },
)  # fmt: skip


@settings(FUZZ, max_examples=100)
@given(SPECS, st.booleans(), st.booleans())
def test_valid_policies_survive_yaml_and_json(spec: dict[str, object], flow: bool, wide: bool) -> None:
    body = {
        "apiVersion": "security.kubearmor.com/v1",
        "kind": "KubeArmorPolicy",
        "metadata": {"name": "a"},
        "spec": spec,
    }
    written = yaml.safe_dump(body, default_flow_style=flow, width=1000 if wide else 40)
    document = only(written)
    assert json.loads(documents.to_json(document)) == body
    again = documents.from_json(documents.to_json(document))
    strip = {"line": 0, "origin": ""}
    first, second = normalise(document), normalise(again)
    assert msgspec.structs.replace(first, **strip, rules=()) == msgspec.structs.replace(second, **strip, rules=())
    assert [msgspec.structs.replace(rule, line=0) for rule in first.rules] == [
        msgspec.structs.replace(rule, line=0) for rule in second.rules
    ]
    assert all(rule.line for rule in first.rules)


def _without_places(node: Node) -> object:
    if isinstance(node, Mapping):
        return {str(_without_places(key)): _without_places(value) for key, value in node.pairs}
    if isinstance(node, Sequence):
        return [_without_places(item) for item in node.items]
    return plain(node)


@FUZZ
@given(st.dictionaries(st.text(max_size=5), VALUES.filter(lambda value: value == value), max_size=4))
def test_the_json_reader_agrees_with_the_json_library(value: dict[str, object]) -> None:
    value = json.loads(json.dumps(value).replace("NaN", "1").replace("-Infinity", "1").replace("Infinity", "1"))
    text = json.dumps(value, indent=1)
    read = json_lines.read(text)
    assert read is not None
    found = _without_places(read[0])
    expected = json.loads(text, parse_int=lambda digits: int(digits) if -(2**63) <= int(digits) < 2**64 else digits)
    assert found == expected


@FUZZ
@given(st.text(alphabet='{}[]:,"\\ \n\ttrue1.5e-null', max_size=60))
def test_the_json_reader_never_raises(text: str) -> None:
    json_lines.read(text)


# Files of several documents


def test_documents_lists_and_other_objects() -> None:
    body = yaml.safe_load(POLICY)
    second = body | {"metadata": {"name": "second"}}
    listed = {"apiVersion": "v1", "kind": "List", "items": [body, second]}
    other = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "b"}}
    text = "---\n".join(yaml.safe_dump(part) for part in (listed, other, body | {"metadata": {"name": "third"}}))
    parsed = parse(text + "---\n---\n# only a comment\n", "many.yaml")
    assert parsed.ok
    assert [document.name for document in parsed.policies] == ["demo", "second", "third"]
    assert [found.code for found in parsed.diagnostics if found.code != "P607"] == ["P205"]


def test_one_bad_document_does_not_hide_the_others() -> None:
    parsed = parse(f"{POLICY}---\nspec: [\n---\n{POLICY.replace('name: demo', 'name: other')}", "f")
    assert [document.name for document in parsed.policies] == ["demo", "other"]
    assert [found.code for found in parsed.diagnostics if found.code != "P607"] == ["P103"]
    assert not parsed.ok


def test_json_lines_of_policies() -> None:
    body = yaml.safe_load(POLICY)
    text = json.dumps(body) + "\n" + json.dumps(body | {"metadata": {"name": "b"}}) + "\n"
    assert [document.name for document in parse(text, "f").policies] == ["demo", "b"]


def test_a_file_about_something_else_is_left_alone() -> None:
    parsed = parse("version: v1\npolicyRules:\n- name: a\n  yaml: a.yaml\n", "metadata.yaml")
    assert parsed.ok
    assert [found.code for found in parsed.diagnostics if found.code != "P607"] == ["P205"]


def test_flow_yaml_that_is_not_json() -> None:
    assert only("{apiVersion: security.kubearmor.com/v1, kind: KubeArmorPolicy, metadata: {name: a}, spec: {process: {matchPaths: [{path: /a}]}}}").name == "a"  # fmt: skip


def test_the_namespace_is_default_when_missing_and_empty_for_cluster_kinds() -> None:
    assert only(POLICY.replace("  namespace: shop\n", "")).namespace == "default"
    host = "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\nmetadata: {name: h}\nspec: {nodeSelector: {}, process: {matchPaths: [{path: /a}]}}\n"
    assert only(host).key == "KubeArmorHostPolicy//h"


def test_positions_count_from_one_and_name_every_item() -> None:
    document = only(POLICY)
    lines = POLICY.splitlines()
    places = {position.path: position for position in document.positions}
    found = places["spec.process.matchDirectories[0]"]
    assert lines[found.line - 1][found.column - 1 :] == "dir: /tmp/"
    assert lines[places["spec.process.matchPaths[1]"].line - 1].strip() == "- execname: nc"


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf" + POLICY.encode(), POLICY.replace("\n", "\r\n").encode(), ("%YAML 1.2\n---\n" + POLICY).encode(), (POLICY + "...\n").encode()])  # fmt: skip
def test_byte_order_marks_dos_lines_and_directives(data: bytes) -> None:
    assert only(data).name == "demo"


def test_a_surrogate_in_text_is_told() -> None:
    assert [found.code for found in parse("name: \ud800", "f").diagnostics] == ["P101"]


def test_an_escaped_surrogate_pair_in_json_is_a_character() -> None:
    body = yaml.safe_load(POLICY)
    body["spec"]["message"] = "\U0001f600"
    spec = only(json.dumps(body)).policy.spec
    assert spec.message == "\U0001f600"


def test_half_a_surrogate_pair_in_json_is_no_crash() -> None:
    body = json.dumps(yaml.safe_load(POLICY)).replace('"shop"', '"\\ud800"')
    sound(parse(body, "f"))


# Bounds


def within(seconds: float, text: str | bytes) -> Parsed:
    """Parsed within so many seconds of processor time: a busy machine adds nothing to them."""
    start = time.thread_time()
    parsed = parse(text, "bomb")
    assert time.thread_time() - start < seconds
    sound(parsed)
    return parsed


def test_a_file_larger_than_the_limit() -> None:
    assert [found.code for found in within(5, b"a" * (SIZE + 1)).diagnostics] == ["P102"]


def test_a_million_brackets() -> None:
    for sign in ("[", "{", "- ", "? ", "a: {b: "):
        codes = {found.code for found in within(5, sign * (1_000_000 // len(sign))).diagnostics}
        assert codes <= {"P103", "P104"}
        assert codes


def test_nested_aliases_that_would_expand_to_billions() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert {found.code for found in within(5, "\n".join(lines)).diagnostics} == {"P105"}


def test_aliases_of_aliases_are_no_deeper_than_anything_else() -> None:
    lines = ["b0: &b0 " + "[" * 20 + "]" * 20]
    lines += [f"b{n}: &b{n} " + "[" * 20 + f"*b{n - 1}" + "]" * 20 for n in range(1, 80)]
    inner = "".join(f"    {line}\n" for line in lines)
    head = "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata:\n  name: a\n  managedFields:\n"
    parsed = within(5, f"{head}{inner}spec: {{process: {{matchPaths: [{{path: /a}}]}}}}\n")
    assert {found.code for found in parsed.diagnostics} == {"P104"}
    assert within(5, "\n".join(lines)).ok


def test_a_large_scalar_many_times() -> None:
    text = f"a: &a {'x' * 100_000}\nb: [{', '.join(['*a'] * 10_000)}]\n"
    assert {found.code for found in within(5, text).diagnostics} == {"P105"}


def test_thousands_of_errors_stay_readable() -> None:
    rules = "".join(f"    - pth: /bin/{n}\n" for n in range(5000))
    head = POLICY.partition("    matchPaths:\n")[0]
    parsed = within(20, f"{head}    matchPaths:\n{rules}")
    assert len(parsed.diagnostics) <= 500
    assert not parsed.ok


@pytest.mark.parametrize("piece", ["      - ptracex{}\n", "      - {}: 1\n", "      - [{}]\n"])
def test_a_file_made_of_wrong_names_ends_in_time(piece: str) -> None:
    head = POLICY.partition("    - syscall:")[0]
    parsed = within(20, head + "    - syscall:\n" + "".join(piece.format(n) for n in range(50_000)))
    assert len(parsed.diagnostics) == 500


def test_a_comma_list_of_a_hundred_thousand_names_is_told_briefly() -> None:
    names = ",".join(f"tcpx{n}" for n in range(100_000))
    found = within(5, POLICY.replace("tcp, UDP", names)).diagnostics
    assert len([one for one in found if one.code != "P607"]) <= 20


def test_a_thousand_small_policies_take_seconds() -> None:
    text = "---\n".join(POLICY.replace("name: demo", f"name: demo-{n}") for n in range(1000))
    start = time.thread_time()
    parsed = parse(text, "f")
    took = time.thread_time() - start
    assert len(parsed.policies) == 1000
    assert took < 20, f"{took:.1f} s"


def test_merge_keys_do_what_yaml_says() -> None:
    report = Report("f")
    (node,) = yaml_lines.read("base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\nall: {<<: [*b, *m], x: own}\n", report)
    assert plain(node)["all"] == {"x": "own", "y": 2, "z": 4}  # type: ignore[index]
    assert not report.found


@pytest.mark.parametrize(("text", "kind"), [("yes", "bool"), ("No", "bool"), ("on", "bool"), ("0x1F", "int"), ("017", "int"), ("1_000", "int"), ("1.5", "float"), (".inf", "float"), ("~", "null"), ("", "null"), ("'5'", "str"), ("2026-01-01", "str"), ("v1", "str"), ("1.2.3", "str"), ("!!str 5", "str")])  # fmt: skip
def test_plain_scalars_are_what_kubernetes_takes_them_for(text: str, kind: str) -> None:
    (node,) = yaml_lines.read(f"a: {text}\n", Report("f"))
    assert isinstance(node, Mapping)
    value = node.pairs[0][1]
    assert isinstance(value, Scalar)
    assert value.kind == kind


def test_the_shape_decodes_what_was_checked() -> None:
    document = only(POLICY)
    assert msgspec.json.decode(msgspec.json.encode(document.policy), type=type(document.policy)) == document.policy
