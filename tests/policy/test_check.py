# SPDX-License-Identifier: Apache-2.0
"""The checker and its tables: limits of kubearmor.md 1.4, suggestions, shapes, and the page made of them."""

from __future__ import annotations

import re
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.parse import parse
from policy.rules.normalise import normalise
from policy.ruleset import compile_ruleset
from policy.text import values
from policy.text.codes import CIDR, CODES, DEVICE, DOMAIN, DURATION, LOOSE_NAME, PATTERN, PORT, Code, Level
from policy.text.diagnostics import render
from policy.text.struct_fields import fields, where
from policy.text.suggest import distance, nearest
from policy.tools import reference
from policy.tools.cases import carried_cases, run_cases
from schemas.policy import KINDS, KubeArmorClusterPolicy, KubeArmorHostPolicy, KubeArmorPolicy
from schemas.syscalls import NAMES as SYSCALLS

DOCS = Path(__file__).resolve().parents[2] / "docs" / "policies.md"


def told(check: object, text: str) -> list[str]:
    """The codes a check of one value gives."""
    found: list[str] = []

    def say(code: Code, message: str, *, expected: str = "", suggestion: str = "") -> None:
        assert message
        found.append(code.code)

    check(text, say)  # type: ignore[operator]
    return found


ERRORS = {code.code for code in CODES if code.level is Level.ERROR}

VALUES = [
    # check, accepted, refused
    (values.path, ["/a", "//a//b", "/usr/lib/libstdc++.so.6", "/a b", "/\u00e9", "/" + "a" * 5000], ["", "a", "/", "/a/", "a/b", "./a"]),
    (values.directory, ["/", "/a/", "//a//b/", "/a b/"], ["", "a", "a/", "/a", "~"]),
    (values.source_directory, ["/bin", "/bin/"], ["", "bin"]),
    (values.path_or_directory, ["/a", "/a/", "/"], ["", "a", "a/"]),
    (values.execname, ["curl", "g++", "a b", ".x", "\u00e9"], ["", "/curl", "a/b", "curl/"]),
    (values.pattern, ["/*", "**", "/a{b,c}", "/[a-z]?", "*/x"], ["", "/{a", "/[b-a]", "/a}"]),
    (values.protocol, ["tcp", "TCP", "tcp,udp", " tcp , ICMPv6".upper(), "all", "DCCP"], ["", "xxtcp", "tcpx", "Tcp", "tcp;udp", ",", "ip"]),
    (values.capability, ["net_raw", "net_raw, kill", "bpf"], ["", "xxnet_raw", "net_rawx", "CAP_NET_RAW", "NET_RAW", "all"]),
    (values.syscall, ["ptrace", "openat2", "_sysctl"], ["", "Ptrace", "sys_ptrace", "ptracee", "mount2"]),
    (values.domain, ["a", "a.b", "A.B.", "_dmarc.a.b", "*.a.b", "kube-dns", "a.b, c.d", "x" * 63], ["", "a..b", "-a", "a-.b", "http://a.b", "a/b", "x" * 64, "a b c!"]),
    (values.device_class, ["ALL", "HID", "mass storage", "8", "0x08", "0xFF"], ["", "STICK", "256", "0x", "-1", "1.5"]),
    (values.cidr, ["10.0.0.0/8", "10.1.2.3/8", "fd00::/8", "8.8.8.8"], ["", "10.0.0.0/33", "10.0.0", "host"]),
    (values.port, ["1", "443", "65535", "dns", "HTTPS"], ["", "0", "65536", "-1", "1-2", "htp"]),
    (values.limit, ["1", "500MB", "2G", "3K"], ["", "5 MB", "MB", "5TB", "-5MB", "1.5G", "5mb"]),
    (values.duration, ["10s", "30m", "2h"], ["", "10", "s", "1d", "1.5h", "10 s"]),
    (values.subdomain_name, ["a", "a-b", "a.b", "1", "a" * 64, "a" * 253, "b." + "a" * 100], ["", "A", "a_b", "-a", "a-", "a..b", "a.-b", "a" * 254, "a b", "a/b", ("a." * 130)[:-1]]),
    (values.label_name, ["a", "kube-system", "1"], ["", "A", "a.b", "a_b", "-a", "a" * 64]),
]  # fmt: skip


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, accepted, _ in VALUES for text in accepted])
def test_values_that_are_accepted(check: object, text: str) -> None:
    assert not ERRORS & set(told(check, text))


@pytest.mark.parametrize(("check", "text"), [(check, text) for check, _, refused in VALUES for text in refused])
def test_values_that_are_refused(check: object, text: str) -> None:
    # What the API of KubeArmor takes and nobody can mean is a warning; what it refuses is an error.
    found = set(told(check, text))
    assert ERRORS & found or {code for code in found if code in NEVER_MATCHES}


NEVER_MATCHES = {code.code for code in (DOMAIN, CIDR, PORT, DEVICE, PATTERN, DURATION, LOOSE_NAME)}


@pytest.mark.parametrize(
    ("check", "text", "errors"),
    [
        (values.protocol, "xxtcp", False),
        (values.protocol, "nonsense, UDP", False),
        (values.protocol, "tcpx", True),
        (values.protocol, "tcp, nonsense", True),
        (values.protocol, "Tcp", True),
        (values.protocol, "", True),
        (values.capability, "cap_net_raw", False),
        (values.capability, "CAP_NET_RAW", True),
        (values.capability, "all", True),
        (values.domain, "", False),
        (values.pattern, "", False),
        (values.pattern, "/{a", False),
        (values.cidr, "10.0.0.0/33", False),
        (values.port, "70000", False),
        (values.duration, "1d", False),
        (values.limit, "5TB", True),
        (values.device_class, "STICK", False),
        (values.execname, "a/b", True),
        (values.path, "a", True),
        (values.preset, "exce", False),
        (values.syscall, "openssh_login", True),
        (values.syscall, "openat2", False),
        (values.syscall, "umount", False),
    ],
)
def test_what_the_api_takes_is_no_error(check: object, text: str, errors: bool) -> None:
    found = set(told(check, text))
    assert found
    assert bool(ERRORS & found) is errors


@given(st.sampled_from([check for check, _, _ in VALUES]), st.text(max_size=40))
def test_no_check_raises_on_any_text(check: object, text: str) -> None:
    told(check, text)


def test_a_name_with_two_commas_has_no_empty_element() -> None:
    assert values.elements(" tcp ,, udp, ") == ["tcp", "udp"]


def test_every_capability_of_the_kernel_has_its_name() -> None:
    header = Path("/usr/include/linux/capability.h")
    if not header.exists():
        pytest.skip("no linux/capability.h on this machine")
    kernel = {name.lower() for name in re.findall(r"^#define CAP_([A-Z_]+)\s+\d+", header.read_text(), re.MULTILINE)}
    assert kernel - {"last_cap"} == set(values.CAPABILITIES)


def test_every_system_call_of_the_machine_has_its_name() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no unistd_64.h on this machine")
    assert set(re.findall(r"#define __NR_(\w+)", header.read_text())) <= SYSCALLS


# Suggestions


@pytest.mark.parametrize(("word", "words", "found"), [
    ("recurive", ("recursive", "readOnly"), "recursive"),
    ("matchpaths", ("matchPaths", "matchPatterns"), "matchPaths"),
    ("upd", ("tcp", "udp"), "udp"),
    ("spec", ("status",), None),
    ("x", ("y",), None),
    ("", ("a",), None),
    ("a" * 200, ("a",), None),
    ("KubeArmorPolciy", tuple(KINDS), "KubeArmorPolicy"),
])  # fmt: skip
def test_nearest(word: str, words: tuple[str, ...], found: str | None) -> None:
    assert nearest(word, words) == found


WORDS = st.text(alphabet="abc", max_size=6)


@given(WORDS, WORDS)
def test_distance_is_symmetric_and_bounded(left: str, right: str) -> None:
    edits = distance(left, right, 10)
    assert edits == distance(right, left, 10)
    assert (edits == 0) is (left == right)
    assert edits <= max(len(left), len(right))
    assert distance(left, right, 2) == min(edits, 3)


@given(st.sampled_from(["recursive", "matchDirectories", "fromSource", "severity"]), st.data())
def test_one_slip_of_the_finger_is_found(word: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(word) - 1))
    letter = data.draw(st.sampled_from(string.ascii_letters))
    slip = data.draw(st.sampled_from([word[:at] + word[at + 1 :], word[:at] + letter + word[at:], word[:at] + letter + word[at + 1 :]]))  # fmt: skip
    assert nearest(slip, ("recursive", "matchDirectories", "fromSource", "severity", "dir", "path")) == word


# Shapes


def test_every_field_says_what_it_is() -> None:
    for struct in reference._structs():
        assert struct.__doc__, struct
        for field in fields(struct).values():
            assert field.description.endswith("."), (struct, field.name)


def test_where_a_field_may_stand() -> None:
    places = where(KubeArmorPolicy)
    assert places["matchPaths"] == ("spec.file.matchPaths", "spec.process.matchPaths", "spec.syscalls.matchPaths")
    assert places["spec"] == ("spec",)
    assert "device" not in places
    assert "presets" not in where(KubeArmorHostPolicy)
    assert "matchLabels" not in where(KubeArmorClusterPolicy)


# The page


def test_the_page_is_what_its_generator_makes() -> None:
    page = DOCS.read_text()
    assert reference.refreshed(page) == page, (
        "docs/policies.md is old; run `python -m policy.tools.reference docs/policies.md`"
    )


def test_every_code_is_on_the_page() -> None:
    page = DOCS.read_text()
    assert [code.code for code in CODES if f"| {code.code} |" not in page] == []


def test_the_policies_on_the_page_are_clean_and_pass_their_tests() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 3
    for block in blocks:
        parsed = parse(block, "policies.md", strict=True)
        assert [render(one, parsed.text) for one in parsed.diagnostics] == []
        ruleset = compile_ruleset(parsed.policies)
        for document in parsed.policies:
            cases, _ = carried_cases(normalise(document))
            assert [result.reason for result in run_cases(ruleset, cases) if not result.passed] == []
