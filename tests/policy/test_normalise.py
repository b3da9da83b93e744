# SPDX-License-Identifier: Apache-2.0
"""Documents to flat rules: inheritance, comma lists, canonical paths, each kind of rule (kubearmor.md 1.2 to 1.8)."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.parse import parse
from policy.rules.normalise import canonical, normalise
from schemas.operations import Class
from schemas.rules import Device, Expression, Match, Operator, Policy, Ports, Rule, Source, SourceKind, Target
from schemas.verdict import Action, Mode, RuleRef

HEADS = {
    "ksp": "kind: KubeArmorPolicy\nmetadata: {name: a, namespace: shop%s}\n",
    "hsp": "kind: KubeArmorHostPolicy\nmetadata: {name: a%s}\n",
    "csp": "kind: KubeArmorClusterPolicy\nmetadata: {name: a%s}\n",
    "nsp": "kind: KubeArmorNetworkPolicy\nmetadata: {name: a%s}\n",
}


def policy(spec: str, kind: str = "ksp", metadata: str = "") -> Policy:
    head = HEADS[kind] % metadata
    text = f"apiVersion: security.kubearmor.com/v1\n{head}spec:\n{textwrap.indent(textwrap.dedent(spec), '  ')}"
    parsed = parse(text, "a.yaml")
    assert parsed.policies, [str(found) for found in parsed.diagnostics]
    return normalise(parsed.policies[0])


def rules(spec: str, kind: str = "ksp") -> tuple[Rule, ...]:
    return policy(spec, kind).rules


INHERITANCE = [
    # spec, section, rule -> what the rule ends with
    ("action: Audit", "", "", "action", Action.AUDIT),
    ("", "", "", "action", Action.BLOCK),
    ("action: Audit", "action: Allow", "", "action", Action.ALLOW),
    ("action: Audit", "action: Allow", "action: Block", "action", Action.BLOCK),
    ("action: allow", "", "", "action", Action.ALLOW),
    ("severity: 1", "", "", "severity", 1),
    ("severity: 1", "severity: 2", "", "severity", 2),
    ("severity: 1", "severity: 2", "severity: 3", "severity", 3),
    ("", "", "", "severity", 0),
    ("tags: [a]", "", "", "tags", ("a",)),
    ("tags: [a]", "tags: [b]", "", "tags", ("b",)),
    ("tags: [a]", "tags: [b]", "tags: []", "tags", ()),
    ("message: one", "", "message: three", "message", "three"),
    ("message: one", "message: two", "", "message", "two"),
    ("message: one", "", 'message: ""', "message", ""),
]


@pytest.mark.parametrize(("spec", "section", "rule", "field", "expected"), INHERITANCE)
@pytest.mark.parametrize(("name", "items", "entry"), [("process", "matchPaths", "path: /a"), ("file", "matchDirectories", "dir: /a/"), ("file", "matchPatterns", "pattern: /a*"), ("network", "matchProtocols", "protocol: tcp"), ("capabilities", "matchCapabilities", "capability: kill")])  # fmt: skip
def test_each_attribute_is_inherited_on_its_own(
    spec: str, section: str, rule: str, field: str, expected: object, name: str, items: str, entry: str
) -> None:
    text = f"{spec}\nselector: {{}}\n{name}:\n  {items}:\n  - {entry}\n"
    text += f"    {rule}\n" if rule else ""
    text += f"  {section}\n" if section else ""
    (found,) = rules(text)
    assert getattr(found, field) == expected


def test_system_call_rules_audit_whatever_is_written() -> None:
    first, second = rules(
        "action: Block\nseverity: 8\nsyscalls:\n  severity: 7\n  matchSyscalls:\n  - syscall: [unlink, rmdir, unlink]\n    severity: 2\n  matchPaths:\n  - path: /home/\n    recursive: true\n    syscall: [unlink]\n    fromSource: [{dir: /bin}]\n"
    )
    assert (first.action, first.severity, first.match, first.syscalls, first.value) == (Action.AUDIT, 2, Match.SYSCALL, ("unlink", "rmdir"), "unlink,rmdir")  # fmt: skip
    assert (second.action, second.severity, second.match, second.value, second.recursive) == (Action.AUDIT, 7, Match.DIRECTORY, "/home/", True)  # fmt: skip
    assert second.class_ is Class.SYSCALL
    assert second.sources == (Source(SourceKind.DIRECTORY, "/bin/"),)


def test_comma_lists_become_rules_that_share_their_place() -> None:
    found = rules("network: {matchProtocols: [{protocol: 'TCP , udp,,icmp'}]}\ncapabilities: {matchCapabilities: [{capability: 'net_raw,kill'}]}\n")  # fmt: skip
    assert [(rule.value, rule.position, rule.index) for rule in found] == [
        ("tcp", "spec.network.matchProtocols[0]", 0),
        ("udp", "spec.network.matchProtocols[0]", 1),
        ("icmp", "spec.network.matchProtocols[0]", 2),
        ("net_raw", "spec.capabilities.matchCapabilities[0]", 3),
        ("kill", "spec.capabilities.matchCapabilities[0]", 4),
    ]
    assert {rule.line for rule in found} == {5, 6}


def test_domains_are_folded_and_know_their_suffixes() -> None:
    first, second = rules("network: {matchDNSQueries: [{domain: 'Example.COM., *.cdn.example.org'}]}\n")
    assert (first.value, second.value) == ("example.com", "cdn.example.org")
    assert first.suffixes == ("cluster.local", "svc.cluster.local", "domain.name", "shop.svc.cluster.local")
    (host,) = rules("nodeSelector: {}\nnetwork: {matchDNSQueries: [{domain: a.b}]}\n", "hsp")
    assert host.suffixes == ("cluster.local", "svc.cluster.local", "domain.name")


def test_paths_directories_patterns_and_names() -> None:
    found = rules(
        """\
        process:
          matchPaths:
          - {path: //usr///bin/./curl, ownerOnly: true, allowedArgs: [], pts: false}
          - {execname: nc}
          matchDirectories:
          - {dir: //tmp//x/, recursive: true}
          matchPatterns:
          - pattern: /**/x
        file:
          matchPaths:
          - {path: /etc/shadow, readOnly: true}
          matchDirectories:
          - dir: /
        """
    )
    assert [(rule.class_.name, rule.match.value, rule.value, rule.recursive) for rule in found] == [
        ("PROCESS", "path", "/usr/bin/curl", False),
        ("PROCESS", "execname", "nc", False),
        ("PROCESS", "directory", "/tmp/x/", True),
        ("PROCESS", "pattern", "/**/x", False),
        ("FILE", "path", "/etc/shadow", False),
        ("FILE", "directory", "/", False),
    ]
    assert (found[0].owner_only, found[0].has_args, found[0].allowed_args, found[0].pts) == (True, True, (), False)
    assert (found[1].has_args, found[1].pts) == (False, None)
    assert found[4].read_only
    assert [rule.index for rule in found] == list(range(6))


def test_sources_of_every_kind_once() -> None:
    (rule,) = rules(
        "file:\n  matchPaths:\n  - path: /a\n    fromSource: [{path: //bin/sh}, {path: /bin/sh}, {dir: /opt, recursive: true}, {pattern: /usr/*/x}]\n"
    )
    assert rule.sources == (
        Source(SourceKind.PATH, "/bin/sh"),
        Source(SourceKind.DIRECTORY, "/opt/", True),
        Source(SourceKind.PATTERN, "/usr/*/x"),
    )


def test_presets_have_an_action_and_a_class_of_their_own() -> None:
    found = rules("presets: [{name: filelessExec}, {name: protectEnv, action: Audit}, {name: protectProc}]\n", "csp")
    assert [(rule.value, rule.class_, rule.action) for rule in found] == [
        ("filelessExec", Class.PROCESS, Action.BLOCK),
        ("protectEnv", Class.FILE, Action.AUDIT),
        ("protectProc", Class.FILE, Action.BLOCK),
    ]


def test_devices() -> None:
    found = rules(
        "nodeSelector: {}\ndevice:\n  matchDevice:\n  - {class: mass storage, subClass: 6, protocol: 80, level: 2}\n  - {class: '0x03'}\n  - {class: ALL, action: Allow}\n  - {class: '9'}\n",
        "hsp",
    )
    assert [rule.device for rule in found] == [Device(8, 6, 80, 2), Device(3), Device(-1), Device(9)]
    assert {rule.class_ for rule in found} == {Class.DEVICE}


def test_network_policies() -> None:
    found = rules(
        """\
        nodeSelector: {}
        ingress:
        - from: [{ipBlock: {cidr: 10.1.2.3/8}}, {ipBlock: {cidr: "fd00::1"}}]
          iface: [eth0]
          ports: [{port: https, protocol: TCP}, {port: 8000, endPort: 9000}]
          action: Allow
        egress:
        - limit: 500MB
          duration: 30m
        - limit: "2"
          duration: 10s
        """,
        "nsp",
    )
    peers: list[Any] = [rule.peer for rule in found]
    assert peers[0].networks == ("10.0.0.0/8", "fd00::1/128")
    assert peers[0].ports == (Ports(443, 443, "tcp"), Ports(8000, 9000))
    assert (peers[0].ingress, peers[0].interfaces, found[0].action) == (True, ("eth0",), Action.ALLOW)
    assert (peers[1].limit, peers[1].window, peers[1].ingress) == (500_000_000, 1800, False)
    assert (peers[2].limit, peers[2].window) == (2_000_000_000, 10)
    assert [rule.position for rule in found] == ["spec.ingress[0]", "spec.egress[0]", "spec.egress[1]"]


def test_quota_of_the_policy_and_its_namespace() -> None:
    found = policy("selector: {matchLabels: {app: db}}\nlevel: Policy\negress: [{limit: 2M, duration: 1h}]\n", "nsp", ", namespace: shop")  # fmt: skip
    assert found.rules[0].peer is not None
    assert found.rules[0].peer.per_policy
    assert found.selection.target is Target.CONTAINERS
    assert found.selection.namespace == "shop"
    assert found.key.namespace == ""


def test_modes_come_from_annotations() -> None:
    def made(annotations: str) -> Policy:
        return policy("process: {matchPaths: [{path: /a}]}\n", metadata=f", annotations: {{{annotations}}}")

    assert (made("").mode, made("").enabled, made("").signal) == (Mode.ENFORCE, True, False)
    assert made("hauberk.io/mode: shadow").mode is Mode.SHADOW
    assert made("kubearmor-policy: audited").mode is Mode.AUDITED
    assert made("kubearmor-policy: audited, hauberk.io/mode: shadow").mode is Mode.SHADOW
    assert not made("kubearmor-policy: disabled").enabled
    assert made("hauberk.io/signal: enabled").signal
    assert made("hauberk.io/tests: '[]'").tests == "[]"


def test_native_lines_are_kept_apart() -> None:
    found = policy("apparmor: |\n  deny mount,\n")
    assert found.native == "deny mount,\n"
    assert found.rules == ()


def test_selection_as_data() -> None:
    found = policy(
        "selector:\n  matchLabels: {b: '2', a: '1', kubearmor.io/container.name: '[x]'}\n  matchExpressions: [{key: label, operator: NotIn, values: ['tier = front']}]\nprocess: {matchPaths: [{path: /a}]}\n"
    ).selection
    assert found.labels == (("a", "1"), ("b", "2"))
    assert found.containers == "[x]"
    assert found.expressions == (Expression(True, Operator.NOT_IN, ("tier=front",)),)
    nodes = policy("nodeSelector: {matchLabels: {role: db, kubernetes.io/hostname: 'a, b', kubearmor.io/hostnamereg: 'n*'}}\nprocess: {matchPaths: [{path: /a}]}\n", "hsp").selection  # fmt: skip
    assert (nodes.target, nodes.labels, nodes.hostnames, nodes.hostname_globs) == (Target.NODES, (("role", "db"),), ("a", "b"), ("n*",))  # fmt: skip


def test_a_rule_names_itself_for_alerts() -> None:
    (rule,) = rules("process: {matchPaths: [{path: /a}]}\n")
    assert rule.ref == RuleRef("a", "KubeArmorPolicy", "shop", "spec.process.matchPaths[0]", 5, 0)


def test_rules_and_policies_can_be_keys() -> None:
    found = policy("process: {matchPaths: [{path: /a, fromSource: [{path: /b}], tags: [t]}]}\n")
    assert len({found, found, *found.rules}) == 2


@given(st.text(alphabet="/.ab", max_size=20).map(lambda text: "/" + text))
def test_canonical_paths_stay_as_they_are(path: str) -> None:
    once = canonical(path)
    assert canonical(once) == once
    assert "//" not in once
    assert "/./" not in once
    assert once.startswith("/")
