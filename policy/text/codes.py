# SPDX-License-Identifier: Apache-2.0
"""Every diagnostic the policy language can give: one row each, numbered by hundred. The only registry of codes.

1xx the text, 2xx the document, 3xx fields, 4xx values, 5xx selectors, 6xx meaning, 7xx what KubeArmor would not take.
A code that appeared in a release is never used again for something else; a row is removed only together with its use and
its number stays in `RETIRED`. A test asks that each code is raised somewhere, has a golden case and is in docs/policies.md.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec


class Level(StrEnum):
    """ERROR: the policy is not applied. WARNING: applied, look at it (an error with `--strict`). INFO: good to know."""

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"


class Code(msgspec.Struct, frozen=True):
    """A kind of diagnostic. `title`: what it is, `advice`: what to do."""

    code: str
    level: Level
    title: str
    advice: str


_E, _W, _I = Level.ERROR, Level.WARNING, Level.INFO

# fmt: off
NOT_TEXT = Code("P101", _E, "the bytes are not UTF-8 text", "Save the file as UTF-8.")
TOO_LARGE = Code("P102", _E, "the file is larger than a policy file may be", "Split it.")
SYNTAX = Code("P103", _E, "the YAML or JSON cannot be read", "Mind indentation, quotes and the line before the one shown.")
TOO_DEEP = Code("P104", _E, "lists and mappings are nested too deeply", "No policy needs that many levels; look for a loop in what wrote it.")
ALIAS = Code("P105", _E, "an alias cannot be followed", "Define the anchor before its alias, outside of itself, and do not multiply aliases.")
TAG = Code("P106", _W, "a YAML tag that policies do not know", "Remove the tag.")

NOT_A_MAPPING = Code("P201", _E, "a document is not a mapping", "Write `apiVersion`, `kind`, `metadata` and `spec` at its top.")
NO_KIND = Code("P202", _E, "a document has no `apiVersion` or `kind`", "Write `apiVersion: security.kubearmor.com/v1` and `kind`.")
UNKNOWN_KIND = Code("P203", _E, "a kind that the policy API does not have", "Use one of the four kinds.")
API_VERSION = Code("P204", _E, "an apiVersion that the policy API does not have", "Write `security.kubearmor.com/v1`.")
SKIPPED = Code("P205", _I, "another kind of object; left alone", "Nothing to do.")
NO_POLICY = Code("P206", _W, "the file has no policy", "Check that it is the right file.")
NAME = Code("P207", _E, "a name that Kubernetes refuses", "Lower-case letters, digits, `-` and `.`; at most 253 characters.")
NAMESPACE = Code("P208", _E, "a namespace that Kubernetes refuses", "Lower-case letters, digits and `-`; at most 63 characters.")
NAMESPACE_IGNORED = Code("P209", _W, "a namespace on a kind that has none", "Remove it; it is ignored.")
TWICE = Code("P210", _W, "two policies of the same kind, namespace and name", "Rename one; the later one replaces the earlier.")
ANNOTATION = Code("P211", _E, "an annotation with a value it does not take", "Use one of the values named.")
ANNOTATION_UNKNOWN = Code("P212", _W, "an annotation under `hauberk.io/` that does not exist", "Check its spelling.")
TESTS = Code("P213", _E, "the tests in `hauberk.io/tests` cannot be read", "A YAML list of `{event: {...}, expect: {action: ...}}`.")

DUPLICATE_KEY = Code("P301", _W, "a key is written twice in one mapping", "Merge the two; the last one wins and what the first one held is lost.")
UNKNOWN_FIELD = Code("P302", _E, "a field that does not exist here", "Check its spelling.")
MISPLACED = Code("P303", _E, "a field that belongs elsewhere", "Move it.")
MISSING = Code("P304", _E, "a required field is missing", "Add it.")
WRONG_KIND = Code("P305", _E, "a field that this kind of policy does not have", "Use the field or the kind named.")
NOT_A_KEY = Code("P306", _E, "a key that is not text, or a merge key without a mapping", "Write a field name.")

TYPE = Code("P401", _E, "a value of the wrong type", "Write a value of the type named; quote text that looks like a number or a boolean.")
CHOICE = Code("P402", _E, "a value that is not one of those allowed", "Use one of them.")
CASE = Code("P403", _E, "the right word in the wrong case", "Write it as shown.")
RANGE = Code("P404", _E, "a number outside its range", "Use a number in the range.")
PATH = Code("P405", _E, "not the absolute path of a file", "Start with `/`, do not end with `/`.")
DIRECTORY = Code("P406", _E, "not the absolute path of a directory", "Start and end with `/`.")
EXECNAME = Code("P407", _E, "not the bare name of an executable", "Leave out the directory, or use `path`.")
PROTOCOL = Code("P408", _E, "not a protocol", "Use one of the protocols, all lower or all upper case.")
CAPABILITY = Code("P409", _E, "not a capability", "Lower case, without `CAP_`.")
SYSCALL = Code("P410", _E, "not a system call", "Use the lower-case name in the kernel's table.")
DOMAIN = Code("P411", _W, "not a domain name", "Labels of letters, digits, `-` and `_`, with dots between.")
CIDR = Code("P412", _W, "not a network", "Write an IPv4 or IPv6 network such as `10.0.0.0/8`.")
PORT = Code("P413", _W, "not a port", "A number from 1 to 65535 or a well-known service name; `endPort` is not below `port`.")
QUANTITY = Code("P414", _E, "not an amount of data", "`500MB`, `2G`.")
DEVICE = Code("P415", _W, "not a USB device class", "A class name, a number, or `ALL`.")
EMPTY = Code("P416", _E, "an empty value where something is needed", "Fill it in or remove the field.")
PATTERN = Code("P417", _W, "a pattern that cannot be compiled", "See the dialect in docs/policies.md.")
PRESET = Code("P418", _W, "a preset that does not exist", "Use one of the five; this one never matches.")
NAMES_NOTHING = Code("P419", _W, "an entry that names nothing", "Name something or remove the entry; it never matches.")
DURATION = Code("P420", _W, "not a duration", "`10s`, `30m`, `2h`.")
LOOSE_NAME = Code("P421", _W, "a name that Kubernetes accepts and that means nothing", "Write one of the names; this one never matches.")
NULL = Code("P422", _W, "an empty value, which is left out as the API server leaves it out", "Write a value or remove the key.")

EXPRESSION = Code("P501", _W, "a label expression that is not `key=value`", "Write `app=web` in `values`.")
ONE_SELECTOR = Code("P502", _E, "a network policy needs exactly one of `selector` and `nodeSelector`", "Keep one.")
QUOTA = Code("P503", _E, "a quota needs both `limit` and `duration`", "Add the other one.")
CONTAINERS = Code("P504", _W, "a container list or expression that selects none or every container", "Write `\"[name, name]\"`, or a regular expression outside Kubernetes.")
NO_VALUES = Code("P505", _W, "an expression without values", "`In` without values selects nothing, `NotIn` without values everything.")
NO_SELECTOR = Code("P506", _W, "a host policy without `nodeSelector`", "Write one; KubeArmor in Kubernetes refuses the policy, Hauberk takes every node.")
HALF_QUOTA = Code("P507", _W, "half a quota", "Write both `limit` and `duration`, or neither; the rule never matches.")

DUPLICATE_RULE = Code("P601", _W, "the same rule twice", "Remove one.")
CONTRADICTION = Code("P602", _W, "two rules for the same thing with different actions", "Keep one; Block wins over Audit, Audit over Allow.")
NO_RULES = Code("P603", _W, "a policy without rules", "It selects workloads and does nothing to them.")
NEVER = Code("P604", _W, "a path that the kernel never reports", "Write the resolved path, without `..`.")
ALWAYS_AUDIT = Code("P605", _W, "system call rules take no action", "Remove it; they always audit.")
IGNORED = Code("P606", _W, "a field that has no effect here", "Remove it.")
UNSEEN = Code("P607", _W, "something that no sensor of this version reports", "Name what is watched: the list is under Names above; until then the rule has no effect.")
LOCKOUT = Code("P608", _W, "a rule of a host policy that would lock the operator out", "Leave out of it what the message names, or add the annotation `hauberk.io/force: enabled`; until then it is not enforced.")

TOO_LONG = Code("P701", _W, "longer than KubeArmor allows", "Hauberk takes it; KubeArmor would refuse the policy.")
EXTRA_NAME = Code("P702", _W, "a name that KubeArmor does not know", "Hauberk takes it; KubeArmor would refuse the policy.")
EXTENSION = Code("P703", _W, "an extension of Hauberk", "KubeArmor would drop this field.")
BEYOND = Code("P704", _W, "more than the API of KubeArmor takes", "Hauberk takes it; KubeArmor in Kubernetes would refuse the policy or drop the field.")
# fmt: on

CODES: Final[tuple[Code, ...]] = tuple(value for value in list(globals().values()) if isinstance(value, Code))
RETIRED: Final[frozenset[str]] = frozenset()
