# SPDX-License-Identifier: Apache-2.0
"""Conditions between the fields of one mapping: this needs that, these exclude each other, this has no effect.

One function per struct, called by `check` after the fields themselves. A condition looks only at fields that were valid,
so one mistake is told once.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable
from typing import Any, Final, Protocol

from policy.match.regexes import BadExpression, Regex
from policy.text import codes, coverage, values
from policy.text.name_lists import container_names, is_list
from policy.text.yaml_nodes import Mapping, Node, Scalar, Sequence
from schemas import policy as written
from schemas import policy_sections as sections
from schemas.operations import Class
from schemas.syscalls import NAMES

CONTAINER_LABEL: Final = "kubearmor.io/container.name"


_WATCHED: Final = tuple(textwrap.wrap(f"watched: {', '.join(coverage.WATCHED)}", 150))


class Reporter(Protocol):
    """What a condition needs of the checker: the kind of the document, and a diagnostic at a node."""

    @property
    def kind(self) -> type[written.AnyPolicy]: ...

    def say(
        self,
        code: codes.Code,
        node: Node,
        message: str,
        path: str,
        *,
        expected: str = "",
        suggestion: str = "",
        notes: tuple[str, ...] = (),
    ) -> None: ...


def related(
    checker: Reporter, struct: type, node: Mapping, result: dict[str, Any], nodes: dict[str, Node], given: set[str], path: str
) -> None:  # fmt: skip
    """Check the conditions of `struct`, if it has any."""
    condition = _CONDITIONS.get(struct)
    if condition is not None:
        condition(checker, node, result, nodes, given, path)


def _process_path(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if not given & {"path", "execname"}:
        checker.say(codes.NAMES_NOTHING, node, f"`{path}` names no executable", path, expected="`path` or `execname`")
    elif "path" in result and "execname" in result:
        checker.say(
            codes.IGNORED,
            nodes["execname"],
            f"`{path}.execname` has no effect beside `path`",
            path,
            suggestion="make it an entry of its own",
        )


def _source(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    ways = given & {"path", "dir", "pattern"}
    if not ways:
        checker.say(
            codes.NAMES_NOTHING, node, f"`{path}` names no executable", path, expected="`path`, `dir` or `pattern`"
        )
    elif len(ways) > 1:
        last = max((nodes[way] for way in ways if way in nodes), key=lambda at: (at.line, at.column), default=node)
        checker.say(
            codes.IGNORED,
            last,
            f"`{path}` names executables in {len(ways)} ways; they are taken as alternatives",
            path,
            suggestion="write one entry each",
        )
    for way in ("dir", "pattern"):
        if way in nodes and not (way == "dir" and ".syscalls." in path):
            checker.say(codes.EXTENSION, nodes[way], f"`{path}.{way}` is an extension of Hauberk", path)
    if "recursive" in result and "dir" not in given:
        checker.say(codes.IGNORED, nodes["recursive"], f"`{path}.recursive` has no effect without `dir`", path)


def _syscall(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if "syscall" not in given or ("syscall" in result and not result["syscall"]):
        checker.say(
            codes.NAMES_NOTHING,
            nodes.get("syscall", node),
            f"`{path}` names no system call",
            path,
            expected="`syscall` with a list such as `[ptrace, mount]`",
        )
    _watched(checker, result, nodes, path)
    _per_rule(checker, nodes, given, path)


def _syscall_path(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if "path" not in given:
        checker.say(codes.NAMES_NOTHING, node, f"`{path}` names no path", path, expected="`path`")
    _watched(checker, result, nodes, path)
    _per_rule(checker, nodes, given, path)


def _per_rule(checker: Reporter, nodes: Any, given: set[str], path: str) -> None:
    for name in ("severity", "tags", "message"):
        if name in given and name in nodes:
            checker.say(
                codes.BEYOND,
                nodes[name],
                f"the API of KubeArmor has no `{name}` in a single system call rule",
                f"{path}.{name}",
                suggestion="write it in `spec.syscalls`",
            )


def _host_rule(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if checker.kind is not written.KubeArmorHostPolicy:
        return
    if "fromSource" not in given:
        checker.say(
            codes.BEYOND,
            node,
            f"the API of KubeArmor asks for `fromSource` in `{path}` of a host policy",
            path,
        )
    if "pts" in nodes:
        checker.say(
            codes.BEYOND, nodes["pts"], f"the API of KubeArmor has no `{path}.pts` in a host policy", f"{path}.pts"
        )


def _watched(checker: Reporter, result: Any, nodes: Any, path: str) -> None:
    blind = coverage.unwatched(name for name in result.get("syscall", ()) if name in NAMES)
    if blind:
        some = len(blind) < len(result["syscall"])
        _unseen(
            checker, nodes["syscall"], f"{coverage.listed(blind)} {'is' if len(blind) == 1 else 'are'} not watched", path,
            partly=some, notes=_WATCHED,
        )  # fmt: skip


def _unseen(
    checker: Reporter, node: Node, why: str, path: str, *, partly: bool = False, notes: tuple[str, ...] = ()
) -> None:
    what = "has no effect for them" if partly else "is never reported and never enforced"
    checker.say(codes.UNSEEN, node, f"{coverage.CANNOT}: {why}; `{path}` {what}", path, notes=notes)


def _capabilities(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if result.get("matchCapabilities") and (why := coverage.unseen_class(Class.CAPABILITIES)):
        _unseen(checker, nodes["matchCapabilities"], why, f"{path}.matchCapabilities")


def _devices(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if result.get("matchDevice") and (why := coverage.unseen_class(Class.DEVICE)):
        _unseen(checker, nodes["matchDevice"], why, f"{path}.matchDevice")


def _preset(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if why := coverage.UNSEEN_PRESETS.get(result.get("name", "")):
        _unseen(checker, nodes["name"], why, path)


def _expression(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if "key" not in result or "operator" not in result:
        return
    namespaces = result["key"] == "namespace"
    if namespaces and checker.kind is not written.KubeArmorClusterPolicy:
        checker.say(
            codes.WRONG_KIND,
            nodes["key"],
            f"a {checker.kind.__name__} cannot select namespaces",
            path,
            expected="label",
            suggestion="use `metadata.namespace`, or `kind: KubeArmorClusterPolicy`",
        )
        return
    listed = nodes.get("values")
    if listed is None or not isinstance(listed, Sequence) or not listed.items:
        if "values" in result or "values" not in given:
            nothing = "nothing" if result["operator"] == "In" else "everything"
            checker.say(codes.NO_VALUES, listed or node, f"`{path}` has no values and selects {nothing}", path)
        return
    for at, item in enumerate(listed.items):
        if not isinstance(item, Scalar):
            continue
        if namespaces:
            _namespace(checker, item, f"{path}.values[{at}]")
        elif not item.text.partition("=")[0].strip() or "=" not in item.text:
            shown = "app" if not item.text.strip("= ") else item.text.strip("= ")
            checker.say(
                codes.EXPRESSION,
                item,
                f"`{item.text}` is not `key=value`",
                f"{path}.values[{at}]",
                expected="text such as `app=web`",
                suggestion=f"write `{shown}=...`",
            )


def _namespace(checker: Reporter, item: Scalar, path: str) -> None:
    def say(code: codes.Code, message: str, *, expected: str = "", suggestion: str = "") -> None:
        # The API takes any text here; no namespace has such a name.
        checker.say(codes.EXPRESSION, item, message, path, expected=expected, suggestion=suggestion)

    values.label_name(item.text, say)


def _labels(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    labels = result.get("matchLabels")
    if not labels or CONTAINER_LABEL not in labels or checker.kind is written.KubeArmorHostPolicy:
        return
    value = labels[CONTAINER_LABEL]
    held = nodes["matchLabels"]
    at = next((entry for key, entry in held.pairs if isinstance(key, Scalar) and key.text == CONTAINER_LABEL), held)
    if is_list(value):
        if "," in value and not container_names(value):
            checker.say(
                codes.CONTAINERS,
                at,
                f"`{value}` names no container and so selects every one",
                path,
                suggestion='write `"[]"` or the names',
            )
        return
    name = re.sub(r"[^a-zA-Z0-9_.,-]", "", value)
    try:
        Regex(value)
    except BadExpression as error:
        checker.say(
            codes.CONTAINERS,
            at,
            f"outside Kubernetes `{value}` selects nothing: {error}",
            path,
            suggestion=f'write `"[{name}]"`',
        )


def _network_spec(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    selectors = given & {"selector", "nodeSelector"}
    if len(selectors) != 1:
        got = "both `selector` and" if selectors else "neither `selector` nor"
        checker.say(codes.ONE_SELECTOR, node, f"`{path}` has {got} `nodeSelector`", path, expected="one of the two")
    for way in ("ingress", "egress"):
        listed = nodes.get(way)
        if listed is None or not isinstance(listed, Sequence):
            continue
        for at, (entry, made) in enumerate(zip(listed.items, result[way], strict=True)):
            missing = [name for name in ("limit", "duration") if name not in made]
            if len(missing) == 1 or (missing and selectors == {"selector"}):
                why = "a quota is an amount per time" if len(missing) == 1 else "every rule for pods is a quota"
                names = " and ".join(f"`{name}`" for name in missing)
                code = codes.QUOTA if selectors == {"selector"} else codes.HALF_QUOTA
                checker.say(code, entry, f"`{path}.{way}[{at}]` lacks {names}: {why}", path)


def _host_spec(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    if "nodeSelector" not in given:
        checker.say(
            codes.NO_SELECTOR,
            node,
            f"`{path}` has no `nodeSelector` and is for every node",
            path,
            expected="`nodeSelector`",
        )


def _port(checker: Reporter, node: Mapping, result: Any, nodes: Any, given: set[str], path: str) -> None:
    number = nodes.get("port")
    if isinstance(number, Scalar) and number.kind == "int":
        checker.say(
            codes.BEYOND,
            number,
            f"the API of KubeArmor takes `{path}.port` as text only",
            f"{path}.port",
            suggestion=f'write `"{number.text}"`',
        )
    if "endPort" not in result:
        return
    first = values.port_number(str(result.get("port", "")))
    if "port" not in given:
        checker.say(
            codes.PORT,
            nodes["endPort"],
            f"`{path}.endPort` has no `port` to start from",
            path,
            expected="`port` and `endPort`",
        )
    elif first is not None and result["endPort"] < first:
        checker.say(
            codes.PORT,
            nodes["endPort"],
            f"`{path}.endPort` {result['endPort']} is below `port` {first}",
            path,
            expected=f"{first} to 65535",
        )


_CONDITIONS: Final[dict[type, Callable[[Any, Mapping, Any, Any, set[str], str], None]]] = {
    sections.ProcessPath: _process_path,
    sections.SourceMatch: _source,
    sections.SyscallMatch: _syscall,
    sections.SyscallPath: _syscall_path,
    sections.CapabilitiesSection: _capabilities,
    sections.DeviceSection: _devices,
    sections.Preset: _preset,
    sections.NetworkProtocol: _host_rule,
    sections.CapabilityMatch: _host_rule,
    written.LabelExpression: _expression,
    written.Selector: _labels,
    written.NetworkSpec: _network_spec,
    written.HostSpec: _host_spec,
    written.PortMatch: _port,
}
