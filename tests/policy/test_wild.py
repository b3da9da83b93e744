# SPDX-License-Identifier: Apache-2.0
"""Shapes of policies found in public repositories, rewritten: what is valid there must parse, what is not must be told well.

None of these is a copy. Each names the habit it stands for; the second table is habits that KubeArmor's CRD refuses too.
"""

from __future__ import annotations

import textwrap

import pytest

from policy.parse import parse
from policy.rules.normalise import normalise
from policy.text.codes import Level

HEADS = {
    "ksp": "kind: KubeArmorPolicy\nmetadata:\n  name: a\n  namespace: shop\n",
    "hsp": "kind: KubeArmorHostPolicy\nmetadata:\n  name: a\n",
    "csp": "kind: KubeArmorClusterPolicy\nmetadata:\n  name: a\n",
    "nsp": "kind: KubeArmorNetworkPolicy\nmetadata:\n  name: a\n",
}


def document(kind: str, spec: str) -> str:
    return f"apiVersion: security.kubearmor.com/v1\n{HEADS[kind]}spec:\n{textwrap.indent(textwrap.dedent(spec), '  ')}"


VALID = {
    "action on a line of its own": ("ksp", "selector: {matchLabels: {app: web}}\nprocess:\n  matchPaths:\n  - path: /bin/sleep\naction:\n  Block\n", 1),
    "lists not indented": ("ksp", "severity: 5\ntags:\n- WARNING\nselector:\n  matchLabels:\n    app: web\nfile:\n  matchPaths:\n  - path: /etc/passwd\n  - path: /etc/group\n", 2),
    "action in the section": ("ksp", "selector: {matchLabels: {app: web}}\nfile:\n  severity: 3\n  matchPaths:\n  - path: /etc/shadow\n  action: Audit\n", 1),
    "no action anywhere": ("ksp", "selector: {matchLabels: {app: web}}\nfile:\n  matchPaths: [{path: /etc/shadow}]\n", 1),
    "empty matchLabels": ("ksp", "selector:\n  matchLabels:\n    {}\nprocess:\n  matchPaths:\n    - path: /usr/bin/lastlog\n", 1),
    "empty selector": ("ksp", "selector: {}\nprocess: {matchPaths: [{path: /usr/bin/nc}]}\n", 1),
    "no selector": ("csp", "process:\n  matchPaths:\n  - execname: fdisk\n  - execname: losetup\n", 2),
    "blank before the colon": ("ksp", "tags : [\"MITRE\", \"T1055\"]\nselector:\n  matchLabels:\n    app : web\nfile:\n  matchPaths:\n  - path: /a/b \n", 1),
    "odd indentation": ("ksp", "selector:\n matchLabels:\n    app: web\nfile:\n    matchPaths:\n            - path: /etc/hosts\n", 1),
    "comments everywhere": ("ksp", "# why\nselector: # whom\n  matchLabels:\n    app: web # change me\nfile:\n  matchPatterns: # what\n  - pattern: /home/*/secret* # these\n    ownerOnly: true # so\n    readOnly: true\n", 1),
    "tab before a comment": ("ksp", "selector: {}\nfile:\n  matchPaths:\n  - path: /etc/hosts\t# note\n", 1),
    "container list": ("ksp", "selector:\n  matchLabels:\n    app: web\n    kubearmor.io/container.name: \"[agent]\"\nprocess: {matchPaths: [{path: /bin/bash}]}\n", 1),
    "container name outside Kubernetes": ("ksp", "selector:\n  matchLabels:\n    kubearmor.io/container.name: web_front\nprocess: {matchPaths: [{path: /bin/bash}]}\n", 1),
    "container expression outside Kubernetes": ("ksp", "selector:\n  matchLabels:\n    kubearmor.io/container.name: '.*'\nprocess: {matchPaths: [{path: /bin/bash}]}\n", 1),
    "long label keys": ("ksp", "selector:\n  matchLabels:\n    app.kubernetes.io/instance: vault\n    workload.example.org/part: amf\nfile: {matchPaths: [{path: /a}]}\n", 1),
    "least permissive": ("ksp", "action: Allow\nselector: {matchLabels: {app: nginx}}\nfile:\n  matchDirectories:\n  - dir: /\n    recursive: true\n  - dir: /etc/nginx/\n    recursive: true\n    fromSource:\n      - path: /usr/sbin/nginx\n  - dir: /etc/nginx/\n    recursive: true\n    action: Block\n    message: not by others\n  - dir: /etc/ssl/\n    recursive: true\n    readOnly: true\n    action: Block\nprocess:\n  matchPaths:\n  - path: /usr/sbin/nginx\n  matchDirectories:\n  - dir: /tmp/\n    recursive: true\n    action: Block\n", 6),
    "protocol after fromSource": ("ksp", "action: Allow\nselector: {matchLabels: {app: x}}\nnetwork:\n  matchProtocols:\n  - fromSource:\n    - path: /usr/bin/python3.12\n    protocol: raw\n  - fromSource:\n    - path: /usr/bin/python3.12\n    - path: /usr/bin/pip\n    protocol: tcp\n", 2),
    "upper case protocol": ("ksp", "selector: {}\nnetwork:\n  matchProtocols:\n  - protocol: TCP\n    action: Block\n", 1),
    "protocol list": ("ksp", "selector: {}\nnetwork: {matchProtocols: [{protocol: \"tcp, udp,icmp\"}]}\n", 3),
    "every protocol": ("ksp", "severity: 8\nselector: {}\nnetwork: {matchProtocols: [{protocol: all}]}\naction: Block\n", 1),
    "capability": ("ksp", "severity: 1\nselector: {}\ncapabilities:\n  matchCapabilities:\n  - capability: net_raw\n    fromSource: [{path: /bin/ping}]\n", 1),
    "capability list": ("csp", "selector: {}\ncapabilities:\n  matchCapabilities:\n  - capability: sys_admin,sys_module , sys_ptrace\n", 3),
    "dns": ("ksp", "selector: {}\nnetwork:\n  matchDNSQueries:\n  - domain: example.com\n  - domain: api.example.org, cdn.example.org\n    fromSource: [{path: /usr/bin/curl}]\n", 3),
    "library name with plus": ("ksp", "selector: {}\nfile:\n  matchPaths:\n  - path: /usr/lib/libstdc++.so.6.0.28\n    fromSource: [{path: /app/cart}]\n", 1),
    "fromSource before the rest": ("ksp", "selector: {}\nprocess:\n  matchPaths:\n  - fromSource:\n    - path: /bin/dash\n    path: /bin/sleep\n", 1),
    "pts": ("ksp", "selector: {}\nfile:\n  matchPaths:\n  - path: /etc/hostname\n    pts: false\n", 1),
    "arguments": ("ksp", "selector: {}\nprocess:\n  matchPaths:\n  - path: /usr/bin/python3.6\n    allowedArgs:\n      - -m\n      - random\n", 1),
    "In and NotIn on labels": ("ksp", "selector:\n  matchExpressions:\n    - key: label\n      operator: In\n      values: \n        - tier=a\n    - key: label\n      operator: NotIn\n      values: \n        - tier=b\nprocess: {matchPaths: [{execname: apt}]}\n", 1),
    "NotIn namespaces": ("csp", "message: \"m\"\nselector:\n  matchExpressions:\n    - key: namespace\n      operator: NotIn\n      values:\n        - kube-system\nfile:\n  matchDirectories:\n    - dir: /etc/\n      readOnly: true\n      recursive: true\n", 1),
    "In namespaces, pattern": ("csp", "selector:\n  matchExpressions: [{key: namespace, operator: In, values: [a, b]}]\nfile:\n  matchPatterns:\n  - pattern: /etc/*hado?\n  action:\n    Block\n", 1),
    "patterns with two stars": ("csp", "selector: {}\nfile: {matchPatterns: [{pattern: '/**/libz.so.1.*'}, {pattern: '*/xmrig*'}, {pattern: /etc/ssl/**}]}\n", 3),
    "presets": ("csp", "selector: {}\npresets:\n- action: Block\n  name: protectEnv\n- {name: exec, action: Audit}\n- name: filelessExec\n", 3),
    "every host": ("hsp", "nodeSelector:\n  matchLabels:\n    kubearmor.io/hostname: '*'\nprocess: {matchPaths: [{execname: gcc}, {execname: g++}]}\n", 2),
    "one host": ("hsp", "nodeSelector:\n  matchLabels:\n    kubernetes.io/hostname: gke-1 # yours\nseverity: 5\nfile: {matchPaths: [{path: /proc/sys/kernel/yama/ptrace_scope}]}\n", 1),
    "hosts of a system": ("hsp", "nodeSelector:\n  matchLabels:\n    kubernetes.io/os: linux\nfile:\n  matchDirectories:\n  - dir: /var/lib/kubelet/\n    readOnly: true\n    recursive: true\n    fromSource:\n      - path: /usr/bin/kubelet\n", 1),
    "syscalls from directories without slash": ("ksp", "selector: {}\nsyscalls:\n  matchSyscalls:\n  - syscall:\n    - unlink\n    fromSource:\n      - dir: /bin\n      - dir: /usr/bin\n        recursive: true\naction:\n  Audit\n", 1),
    "syscalls on a directory": ("ksp", "severity: 8\ntags: [\"Global tag\"]\nselector: {}\nsyscalls:\n  matchPaths:\n  - syscall:\n    - unlink\n    path: /home/\n    recursive: true\n  severity: 7\n  message: \"Local message\"\naction:\n  Audit\n", 1),
    "every usb device": ("hsp", "nodeSelector: {matchLabels: {kubernetes.io/hostname: box}}\nseverity: 5\ndevice:\n  matchDevice:\n  - class: ALL\naction: Allow\n", 1),
    "usb storage": ("hsp", "nodeSelector: {matchLabels: {}}\ndevice:\n  matchDevice:\n  - class: MASS-STORAGE\n    subClass: 6\n    protocol: 80\n    level: 1\n  - class: \"0x03\"\n    action: Audit\n", 2),
    "egress to a resolver": ("nsp", "nodeSelector:\n  matchLabels:\n    kubernetes.io/hostname: \"box\"\negress:\n- to:\n  - ipBlock:\n      cidr: \"8.8.8.8/32\"\n  ports:\n  - port: \"dns\"\n    protocol: \"UDP\"\nseverity: 5\naction: Block\n", 1),
    "ports and interfaces": ("nsp", "nodeSelector: {matchLabels: {role: edge}}\ningress:\n- from:\n  - ipBlock: {cidr: fd00::/8}\n  - ipBlock: {cidr: 10.0.0.0/8}\n  iface: [eth0, eth1]\n  ports:\n  - port: \"8000\"\n    endPort: 9000\n    protocol: tcp\n  action: Allow\naction: Audit\n", 1),
    "quota of pods": ("nsp", "selector:\n  matchLabels:\n    app: db\naction: Block\nlevel: Pod # own counter\negress:\n- limit: \"2MB\" \n  duration: \"20m\" \n", 1),
    "native lines": ("ksp", "selector: {}\napparmor: |\n  deny mount,\n  deny /etc/shadow r,\n", 0),
    "nulls": ("ksp", "severity: null\ntags: ~\nmessage:\nselector:\nprocess:\n  matchPaths:\n  - path: /bin/a\n    execname: null\n    fromSource:\n    recursive_:\n".replace("    recursive_:\n", "") + "  action: null\naction:\n", 1),
    "null section": ("ksp", "selector: {}\nprocess:\nfile:\n  matchPaths:\n  - path: /etc/hosts\n  matchDirectories:\n", 1),
    "anchors": ("ksp", "selector: {}\nprocess:\n  matchPaths:\n  - &one {path: /bin/a, severity: 4}\n  - <<: *one\n    path: /bin/b\n", 2),
    "folded message": ("ksp", "message: >-\n  somebody did\n  something\nselector: {}\nprocess: {matchPaths: [{path: /bin/a}]}\n", 1),
    "severity in the section, tags in a flow over lines": ("ksp", "tags: [\"CVE\",\n  \"docker-cp\",\"root\"]\nselector: {}\nprocess:\n  severity: 2\n  matchPaths:\n    - path: /usr/bin/docker\n  action: Block\n", 1),
    "numbers in names": ("ksp", "selector: {matchLabels: {version: \"2\", track: v1.2}}\nprocess: {matchPaths: [{path: /2/3}]}\n", 1),
}  # fmt: skip


@pytest.mark.parametrize("name", VALID)
def test_a_valid_habit_parses_without_error_or_warning(name: str) -> None:
    kind, spec, rules = VALID[name]
    parsed = parse(document(kind, spec), "wild.yaml")
    assert [str(found) for found in parsed.diagnostics if found.level is not Level.INFO and found.code != "P607"] == []
    (policy,) = parsed.policies
    assert len(normalise(policy).rules) == rules


WARNED = {
    "lower case action of the spec": ("ksp", "P704", "selector: {}\nfile:\n  matchPaths: [{path: /etc/shadow}]\naction: audit\n"),
    "fromSource directory": ("ksp", "P703", "selector: {}\nfile:\n  matchPaths:\n  - path: /home/u/secret\n    fromSource:\n    - dir: /bin/\n"),
    "syscalls with an action of the spec": ("hsp", "P704", "action: Audit\nnodeSelector: {matchLabels: {kubearmor.io/hostname: '*'}}\nsyscalls:\n  matchSyscalls:\n  - syscall:\n    - mount\n    - umount2\n  - syscall: [ptrace]\n    severity: 8\n    message: traced\n"),
    "unknown preset": ("csp", "P418", "selector: {}\npresets: [{name: preventExec}]\n"),
    "text before a protocol": ("ksp", "P421", "selector: {}\nnetwork: {matchProtocols: [{protocol: ipv4tcp}]}\n"),
    "port as a number": ("nsp", "P704", "nodeSelector: {}\negress: [{ports: [{port: 443}]}]\n"),
    "network of a host without fromSource": ("hsp", "P704", "nodeSelector: {}\nnetwork: {matchProtocols: [{protocol: icmp}]}\n"),
    "label without a value": ("ksp", "P501", "selector: {matchExpressions: [{key: label, operator: In, values: [web]}]}\nfile: {matchPaths: [{path: /a}]}\n"),
    "half a quota of a host": ("nsp", "P507", "nodeSelector: {}\negress: [{limit: 2MB}]\n"),
    "empty entry": ("ksp", "P419", "selector: {}\nprocess: {matchPaths: [{severity: 1}]}\n"),
    "nothing after spec": ("ksp", "P603", "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: a}\nspec:\n"),
    "nothing after a label": ("ksp", "P422", "selector: {matchLabels: {app: }}\nfile: {matchPaths: [{path: /a}]}\n"),
    "cluster policy with a namespace": ("csp", "P209", "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorClusterPolicy\nmetadata: {name: a, namespace: kubearmor}\nspec:\n  file: {matchDirectories: [{dir: /var/, recursive: true}]}\n"),
    "host policy without nodeSelector": ("hsp", "P506", "process: {matchPaths: [{path: /usr/bin/sleep}]}\n"),
    "star in a path": ("ksp", "P604", "selector: {}\nfile: {matchPaths: [{path: '/etc/kubernetes/pki/*.crt'}]}\n"),
    "drive letter": ("hsp", "P604", "nodeSelector: {}\nfile: {matchPatterns: [{pattern: 'C:/Temp/*'}]}\n"),
    "action of a system call": ("ksp", "P605", "selector: {}\nsyscalls: {matchSyscalls: [{syscall: [setuid], action: Block}]}\n"),
    "same path twice": ("ksp", "P601", "selector: {}\nprocess: {matchPaths: [{path: /bin/su}, {path: /bin/su}]}\n"),
    "same key twice": ("ksp", "P301", "selector: {}\nprocess: {matchPaths: [{path: /bin/su}]}\nprocess: {matchPaths: [{path: /bin/sh}]}\n"),
    "two policies of one name": ("hsp", "P210", "nodeSelector: {}\nfile: {matchPaths: [{path: /a}]}\n---\napiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\nmetadata: {name: a}\nspec:\n  nodeSelector: {}\n  file: {matchPaths: [{path: /a}]}\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_a_doubtful_habit_parses_with_a_warning(name: str) -> None:
    kind, code, spec = WARNED[name]
    text = spec if spec.startswith("apiVersion") else document(kind, spec.replace("\n---\n", "\n@@@\n"))
    if "@@@" in text:
        first, _, second = text.partition("  @@@\n")
        text = f"{first}---\n{textwrap.dedent(second)}"
    parsed = parse(text, "wild.yaml")
    assert parsed.ok, [str(found) for found in parsed.diagnostics]
    assert {found.code for found in parsed.diagnostics} == {code}
    assert not parse(text, "wild.yaml", strict=True).ok


INVALID = {
    "another vendor's group": ("P204", "security.kubearmor.com/v1", "apiVersion: security.example.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: a}\nspec: {process: {matchPaths: [{path: /a}]}}\n"),
    "audit policy of old": ("P203", "", "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorAuditPolicy\nmetadata: {name: a}\nspec: {}\n"),
    "backslash before the first key": ("P302", "apiVersion", "\\apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: a}\nspec: {process: {matchPaths: [{path: /a}]}}\n"),
    "capital Spec": ("P302", "spec", "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorHostPolicy\nmetadata: {name: a}\nSpec: {nodeSelector: {}, process: {matchPaths: [{path: /a}]}}\n"),
    "capital in a name": ("P207", "cve-2022", "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: CVE-2022}\nspec: {process: {matchPaths: [{path: /a}]}}\n"),
    "matchPath": ("P302", "matchPaths", "ksp:selector: {}\nfile: {matchPath: [{path: /a}]}\n"),
    "matchPathss": ("P302", "matchPaths", "ksp:selector: {}\nprocess: {matchPathss: [{path: /a}]}\n"),
    "path in matchPatterns": ("P302", "`pattern`", "ksp:selector: {}\nfile: {matchPatterns: [{path: '/**/x*'}]}\n"),
    "node selector of a container policy": ("P305", "KubeArmorHostPolicy", "ksp:nodeSelector: {matchLabels: {}}\nprocess: {matchPaths: [{path: /a}]}\n"),
    "selector of a host policy": ("P305", "nodeSelector", "hsp:selector: {matchLabels: {node: master}}\nfile: {matchPaths: [{path: /a}]}\n"),
    "labels of a cluster policy": ("P305", "matchExpressions", "csp:selector: {matchLabels: {app: a}}\nfile: {matchPaths: [{path: /a}]}\n"),
    "operator Exists": ("P402", "In", "csp:selector: {matchExpressions: [{key: label, operator: Exists}]}\nfile: {matchPaths: [{path: /a}]}\n"),
    "a label as key": ("P402", "key: label", "csp:selector: {matchExpressions: [{key: app, operator: In, values: [x]}]}\nfile: {matchPaths: [{path: /a}]}\n"),
    "fromSource of the spec": ("P303", "fromSource", "hsp:nodeSelector: {}\nfile: {matchPaths: [{path: /etc/hosts}]}\nfromSource: [{path: /home/x}]\n"),
    "port of a protocol": ("P305", "KubeArmorNetworkPolicy", "ksp:selector: {}\nnetwork: {matchProtocols: [{protocol: udp}], ingress: {limitSize: 2M}}\n"),
    "unknown system call": ("P410", "", "hsp:nodeSelector: {}\nsyscalls: {matchSyscalls: [{syscall: [openssh_login]}]}\n"),
    "mount2": ("P410", "`mount`", "hsp:nodeSelector: {}\nsyscalls: {matchSyscalls: [{syscall: [mount2]}]}\n"),
    "directory as path": ("P405", "matchDirectories", "ksp:selector: {}\nfile: {matchPaths: [{path: /var/log/httpd/}]}\n"),
    "colon at the end of a value": ("P103", "", "ksp:selector: {}\nfile:\n  matchPaths:\n  - path: /var/log/yum.log: \n"),
    "plain star": ("P103", "\"*\"", "hsp:nodeSelector: {matchLabels: {kubearmor.io/hostname: *}}\nfile: {matchPaths: [{path: /a}]}\n"),
    "capability with prefix": ("P403", "net_raw", "ksp:selector: {}\ncapabilities: {matchCapabilities: [{capability: CAP_NET_RAW}]}\n"),
    "rule action in lower case": ("P403", "Block", "ksp:selector: {}\nfile: {matchPaths: [{path: /a, action: block}]}\n"),
    "severity as text": ("P401", "without quotes", "ksp:severity: \"5\"\nselector: {}\nfile: {matchPaths: [{path: /a}]}\n"),
    "severity eleven": ("P404", "", "ksp:severity: 11\nselector: {}\nfile: {matchPaths: [{path: /a}]}\n"),
    "tags as text": ("P401", "tags: [MITRE]", "ksp:tags: MITRE\nselector: {}\nfile: {matchPaths: [{path: /a}]}\n"),
    "dir without slash": ("P406", "`/usr/bin/`", "ksp:selector: {}\nfile: {matchDirectories: [{dir: /usr/bin}]}\n"),
    "quota without duration": ("P503", "", "nsp:selector: {matchLabels: {a: b}}\negress: [{limit: 2MB}]\n"),
    "label that is a number": ("P401", '"2"', "ksp:selector: {matchLabels: {version: 2}}\nfile: {matchPaths: [{path: /a}]}\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", INVALID)
def test_an_invalid_habit_is_told_once_with_a_way_out(name: str) -> None:
    code, words, text = INVALID[name]
    kind, colon, spec = text.partition(":")
    if colon and kind in HEADS:
        text = document(kind, spec)
    parsed = parse(text, "wild.yaml")
    errors = [found for found in parsed.diagnostics if found.level is Level.ERROR]
    assert not parsed.policies
    assert [found.code for found in errors] == [code], [str(found) for found in parsed.diagnostics]
    assert words in f"{errors[0].expected} {errors[0].suggestion}", str(errors[0])


FOREIGN = {
    "a deployment": "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {template: {}}\n",
    "a definition deeper than any policy": "apiVersion: apiextensions.k8s.io/v1\nkind: CustomResourceDefinition\nspec: " + "{a: " * 100 + "1" + "}" * 100 + "\n",
    "a kustomization": "resources:\n- a.yaml\n- b.yaml\n",
    "a kustomization with a kind": "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [a.yaml]\n",
    "a patch": "- op: replace\n  path: /spec/replicas\n  value: 3\n",
    "a deep patch": "- " + "[" * 60 + "]" * 60 + "\n",
    "a configuration of the operator": "apiVersion: operator.kubearmor.com/v1\nkind: KubeArmorConfig\nmetadata: {name: a}\nspec: {defaultFilePosture: block}\n",
    "tags and aliases of another tool": "kind: Stack\nvalue: !Ref somewhere\nother: *nothing\n<<: 3\n",
    "values of a chart": "image: {tag: 1}\nreplicas: 2\n",
    "a list of objects": "apiVersion: v1\nkind: List\nitems:\n- kind: Service\n  apiVersion: v1\n  spec: " + "[" * 50 + "]" * 50 + "\n",
    "an empty list of objects": "apiVersion: v1\nkind: List\nitems: []\n",
}  # fmt: skip
OURS = "apiVersion: security.kubearmor.com/v1\nkind: KubeArmorPolicy\nmetadata: {name: a, namespace: shop}\nspec: {process: {matchPaths: [{path: /a}]}}\n"


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", FOREIGN)
def test_objects_of_others_are_said_and_left_out(name: str, strict: bool) -> None:
    alone = parse(FOREIGN[name], "wild.yaml", strict=strict)
    assert alone.ok, [str(found) for found in alone.diagnostics]
    beside = parse(f"{FOREIGN[name]}---\n{OURS}", "wild.yaml", strict=strict)
    assert beside.ok
    assert [policy.name for policy in beside.policies] == ["a"]
    if "empty" not in name:
        assert {found.code for found in beside.diagnostics} == {"P205"}


def test_a_list_may_hold_policies_and_objects_of_others() -> None:
    inner = "".join(f"- {text.splitlines()[0]}\n" + "".join(f"  {line}\n" for line in text.splitlines()[1:]) for text in (OURS, FOREIGN["a definition deeper than any policy"], OURS.replace("name: a", "name: b")))  # fmt: skip
    text = f"apiVersion: v1\nkind: List\nitems:\n{inner}"
    nested = (
        f"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: List\n  items:\n{textwrap.indent(inner, '  ')}"
    )
    for one in (text, nested):
        parsed = parse(one, "wild.yaml", strict=True)
        assert [policy.name for policy in parsed.policies] == ["a", "b"], [str(found) for found in parsed.diagnostics]


@pytest.mark.parametrize("deep", ["[" * 60 + "]" * 60, "{a: " * 60 + "1" + "}" * 60])
def test_a_policy_that_is_too_deep_is_an_error_and_the_rest_is_read(deep: str) -> None:
    parsed = parse(f"{OURS.replace('/a}', deep + '}')}---\n{OURS.replace('name: a', 'name: b')}", "wild.yaml")
    assert not parsed.ok
    assert "P104" in {found.code for found in parsed.diagnostics}
    assert [policy.name for policy in parsed.policies] == ["b"]


@pytest.mark.parametrize("text", [f"- {OURS.splitlines()[0]}\n" + "".join(f"  {line}\n" for line in OURS.splitlines()[1:]), "just text\n", OURS.replace("KubeArmorPolicy", "KubeArmorPolciy"), OURS.replace("kind: KubeArmorPolicy\n", "")])  # fmt: skip
def test_what_may_be_a_misspelt_policy_is_an_error(text: str) -> None:
    assert not parse(text, "wild.yaml").ok
