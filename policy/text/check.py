# SPDX-License-Identifier: Apache-2.0
"""Walk a document beside its struct: every field, every value, all findings; out comes a plain value ready to decode.

Generic over `policy.text.struct_fields`, so a new field needs no code here unless its text has a form of its own (`FORMS`).
Never raises on any tree, never stops at the first finding. Neighbours: `policy.parse` (calls it), `values` (forms of texts),
`fieldnames` (what to say of a field that is not there), `cross_field` (conditions between fields).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from policy.text import codes, values
from policy.text.codes import Code
from policy.text.cross_field import related
from policy.text.diagnostics import Report
from policy.text.fieldnames import misnamed
from policy.text.struct_fields import FieldShape, Shape, field_at, fields
from policy.text.suggest import nearest
from policy.text.yaml_nodes import Mapping, Node, Scalar, Sequence, describe, number, truth
from schemas import policy as written
from schemas import policy_sections as sections
from schemas.policy import Position

INVALID: Any = object()
"""Stands for a value that was reported; whatever holds it is not built."""

FORMS: dict[tuple[type | None, str], Callable[[str, values.Say], None]] = {
    (None, "path"): values.path,
    (sections.SyscallPath, "path"): values.path_or_directory,
    (sections.SourceMatch, "path"): values.source_path,
    (None, "dir"): values.directory,
    (sections.SourceMatch, "dir"): values.source_directory,
    (None, "execname"): values.execname,
    (None, "pattern"): values.pattern,
    (sections.NetworkProtocol, "protocol"): values.protocol,
    (None, "domain"): values.domain,
    (None, "capability"): values.capability,
    (None, "syscall"): values.syscall,
    (sections.Preset, "name"): values.preset,
    (sections.DeviceMatch, "class"): values.device_class,
    (None, "cidr"): values.cidr,
    (None, "port"): values.port,
    (None, "limit"): values.limit,
    (None, "duration"): values.duration,
    (written.Metadata, "name"): values.subdomain_name,
    (written.Metadata, "namespace"): values.label_name,
}
"""Texts with a form of their own: by struct and field, or by field alone."""

_OBJECT_META = (
    "clusterName creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName generation "
    "managedFields ownerReferences resourceVersion selfLink uid"
)
_CHOICE_HINTS: dict[tuple[type, str], str] = {
    (written.LabelExpression, "key"): "write `key: label` and `values: [{0}=...]`",
    (written.LabelExpression, "operator"): "list the values with `In` or `NotIn`",
}
LET_THROUGH: dict[type, frozenset[str]] = {written.Metadata: frozenset(_OBJECT_META.split())}
"""Fields of Kubernetes' ObjectMeta that say nothing to us."""


class Checker:
    """Checks one document of `kind`. `positions` collects where list items stand."""

    def __init__(self, report: Report, kind: type[written.AnyPolicy]) -> None:
        self.report = report
        self.kind = kind
        self.positions: list[Position] = []

    def say(
        self,
        code: Code,
        node: Node,
        message: str,
        path: str,
        *,
        expected: str = "",
        suggestion: str = "",
        notes: tuple[str, ...] = (),
    ) -> None:
        """Report at a node."""
        self.report.add(
            code,
            message,
            line=node.line,
            column=node.column,
            width=node.width,
            path=path,
            expected=expected,
            suggestion=suggestion,
            notes=notes,
        )

    def struct(self, node: Node, struct: type, path: str) -> Any:
        """The mapping `node` as keyword values of `struct`, or INVALID."""
        if not isinstance(node, Mapping):
            self.say(
                codes.TYPE,
                node,
                f"`{path}` is {describe(node)}",
                path,
                expected=f"a mapping with {_listed(fields(struct))}",
            )
            return INVALID
        known = fields(struct)
        pairs = self.pairs(node, path)
        result: dict[str, Any] = {}
        nodes: dict[str, Node] = {}
        meant: set[str] = set()
        dropped: set[str] = set()
        whole = True
        for key, value in pairs:
            here = f"{path}.{key.text}" if path else key.text
            field = known.get(key.text)
            if field is None:
                if self.report.full:
                    return INVALID
                if self.tolerated(struct, key, here):
                    continue
                finding = misnamed(self.kind, struct, key.text, path, value)
                self.say(
                    finding.code, key, finding.message, here, expected=finding.expected, suggestion=finding.suggestion
                )
                meant.add(finding.instead)
                whole = False
                # What it holds is checked as if it stood where it belongs, so that all is said at once.
                if finding.place and not isinstance(value, Scalar):
                    self.value(value, *field_at(self.kind, finding.place), here)
                elif finding.code is codes.UNKNOWN_FIELD and finding.instead in known:
                    self.value(value, known[finding.instead], struct, here)
                continue
            if isinstance(value, Scalar) and value.kind == "null":
                # The API server drops what is null, and then misses what it requires.
                if field.required:
                    self.say(codes.EMPTY, key, f"`{here}` is empty", here, expected=_wanted(field.shape))
                    whole = False
                else:
                    dropped.add(key.text)
                continue
            made = self.value(value, field, struct, here)
            if made is INVALID:
                whole = False
            else:
                result[key.text] = made
                nodes[key.text] = value
        given = {key.text for key, _ in pairs if key.text not in dropped} | meant
        for name, field in known.items():
            if field.required and name not in given:
                self.say(
                    codes.MISSING,
                    node,
                    f"`{name}` is missing in `{path or 'the document'}`",
                    path,
                    expected=_wanted(field.shape),
                )
                whole = False
        related(self, struct, node, result, nodes, given, path)
        return result if whole else INVALID

    def tolerated(self, struct: type, key: Scalar, path: str) -> bool:
        """Whether an unknown field is let through, perhaps with a warning."""
        if key.text in LET_THROUGH.get(struct, ()):
            return True
        if key.text == "action" and "severity" in fields(struct):
            self.say(codes.ALWAYS_AUDIT, key, f"`{path}` has no effect: system call rules always audit", path)
            return True
        return False

    def pairs(self, node: Mapping, path: str) -> list[tuple[Scalar, Node]]:
        """The pairs of a mapping with one value per key, the last; what is lost is said."""
        last: dict[str, tuple[Scalar, Node]] = {}
        for key, value in node.pairs:
            if not isinstance(key, Scalar):
                self.say(codes.NOT_A_KEY, key, f"{describe(key)} cannot be a key", path, expected="a field name")
                continue
            before = last.pop(key.text, None)
            if before is not None:
                here = f"{path}.{key.text}" if path else key.text
                lost = _lost(before[1])
                self.say(
                    codes.DUPLICATE_KEY,
                    key,
                    f"`{here}` is written twice: this one wins, the one at line {before[0].line} is lost",
                    here,
                    suggestion="merge the two",
                    notes=(f"lost: {lost}",) if lost else (),
                )
            last[key.text] = (key, value)
        return list(last.values())

    def value(self, node: Node, field: FieldShape, struct: type, path: str) -> Any:
        """The value of one field."""
        if field.longest is not None:
            size = len(node.items) if isinstance(node, Sequence) else len(node.text) if isinstance(node, Scalar) else 0
            if size > field.longest:
                what = "items" if isinstance(node, Sequence) else "characters"
                self.say(codes.TOO_LONG, node, f"`{path}` has {size} {what}; KubeArmor takes {field.longest}", path)
        return self.shaped(node, field.shape, field.name, struct, path)

    def shaped(self, node: Node, shape: Shape, name: str, struct: type, path: str) -> Any:
        if self.report.full or (isinstance(node, Scalar) and node.kind == "lost"):
            return INVALID
        match shape.kind:
            case "struct":
                assert shape.struct is not None
                return self.struct(node, shape.struct, path)
            case "list":
                return self.sequence(node, shape, name, struct, path)
            case "dict":
                return self.labels(node, path)
        if not isinstance(node, Scalar):
            self.say(codes.TYPE, node, f"`{path}` is {describe(node)}", path, expected=_wanted(shape))
            return INVALID
        match shape.kind:
            case "bool":
                if node.kind == "bool":
                    return truth(node.text)
                near = node.text.strip().lower()
                quoted = near in ("true", "false") and node.kind == "str"
                self.say(
                    codes.TYPE,
                    node,
                    f"`{path}` is {describe(node)}",
                    path,
                    expected="true or false",
                    suggestion=f"write `{near}` without quotes" if quoted else "",
                )
                return INVALID
            case "int":
                return self.integer(node, shape, path)
            case "choice":
                return self.choice(node, shape, name, struct, path)
            case "port":
                return self.form(node, name, struct, path)
        if node.kind != "str":
            self.say(
                codes.TYPE,
                node,
                f"`{path}` is {describe(node)}",
                path,
                expected="text",
                suggestion=f'write `"{node.text}"`' if node.text else "",
            )
            return INVALID
        return self.form(node, name, struct, path)

    def form(self, node: Scalar, name: str, struct: type, path: str) -> Any:
        """A text, after the check of its form."""
        check = FORMS.get((struct, name)) or FORMS.get((None, name))
        if check is None:
            return node.text
        errors = self.report.errors

        def say(code: Code, message: str, *, expected: str = "", suggestion: str = "") -> None:
            self.say(code, node, message, path, expected=expected, suggestion=suggestion)

        check(node.text, say)
        return node.text if self.report.errors == errors else INVALID

    def integer(self, node: Scalar, shape: Shape, path: str) -> Any:
        value = number(node.text) if node.kind == "int" else None
        if value is None:
            quoted = node.kind == "str" and node.text.strip().isdecimal()
            self.say(
                codes.TYPE,
                node,
                f"`{path}` is {describe(node)}",
                path,
                expected=_wanted(shape),
                suggestion=f"write `{node.text.strip()}` without quotes" if quoted else "",
            )
            return INVALID
        least, most = shape.least, shape.most
        if (
            (least is not None and value < least)
            or (most is not None and value > most)
            or not -(2**31) <= value < 2**31
        ):
            self.say(codes.RANGE, node, f"`{path}` is {node.text}", path, expected=_wanted(shape))
            return INVALID
        return value

    def choice(self, node: Scalar, shape: Shape, name: str, struct: type, path: str) -> Any:
        if node.text in shape.choices and node.kind == "str":
            return node.text
        expected = ", ".join(shape.choices)
        folded = next((word for word in shape.choices if word.lower() == node.text.lower()), None)
        if folded is not None:
            if path == "spec.action" and node.text == node.text.lower():
                self.say(
                    codes.BEYOND,
                    node,
                    f"the API of KubeArmor does not take `{node.text}`, its agent does",
                    path,
                    suggestion=f"write `{folded}`",
                )
                return folded
            self.say(
                codes.CASE, node, f"`{path}` is `{node.text}`", path, expected=expected, suggestion=f"write `{folded}`"
            )
            return INVALID
        near = nearest(node.text, shape.choices)
        help_ = f"did you mean `{near}`?" if near else _CHOICE_HINTS.get((struct, name), "").format(node.text)
        self.say(codes.CHOICE, node, f"`{path}` is {describe(node)}", path, expected=expected, suggestion=help_)
        return INVALID

    def sequence(self, node: Node, shape: Shape, name: str, struct: type, path: str) -> Any:
        item_shape = shape.item
        assert item_shape is not None
        if not isinstance(node, Sequence):
            help_ = ""
            if isinstance(node, Scalar) and item_shape.kind != "struct":
                help_ = f"write `{name}: [{node.text}]`"
            elif isinstance(node, Mapping) and item_shape.kind == "struct":
                help_ = "start each entry with `- `"
            self.say(codes.TYPE, node, f"`{path}` is {describe(node)}", path, expected="a list", suggestion=help_)
            return INVALID
        result, whole = [], True
        for at, item in enumerate(node.items):
            here = f"{path}[{at}]"
            if item_shape.kind == "struct":
                self.positions.append(Position(here, item.line, item.column))
            made = self.shaped(item, item_shape, name, struct, here)
            if made is INVALID:
                whole = False
            else:
                result.append(made)
        return result if whole else INVALID

    def labels(self, node: Node, path: str) -> Any:
        """A mapping of text to text."""
        if not isinstance(node, Mapping):
            self.say(codes.TYPE, node, f"`{path}` is {describe(node)}", path, expected="a mapping of `key: value`")
            return INVALID
        result, whole = {}, True
        for key, value in self.pairs(node, path):
            if isinstance(value, Scalar) and value.kind == "null":
                self.say(codes.NULL, key, f"`{path}.{key.text}` is empty and is left out", path)
                continue
            if not isinstance(value, Scalar) or value.kind != "str":
                shown = f'write `{key.text}: "{value.text}"`' if isinstance(value, Scalar) else ""
                self.say(
                    codes.TYPE,
                    value if value.width else key,
                    f"`{path}.{key.text}` is {describe(value)}",
                    path,
                    expected="text",
                    suggestion=shown,
                )
                whole = False
                continue
            result[key.text] = value.text
        return result if whole else INVALID


def _listed(known: dict[str, FieldShape]) -> str:
    return ", ".join(known)


def _wanted(shape: Shape) -> str:
    match shape.kind:
        case "struct":
            assert shape.struct is not None
            return f"a mapping with {_listed(fields(shape.struct))}"
        case "list":
            return "a list"
        case "dict":
            return "a mapping of `key: value`"
        case "bool":
            return "true or false"
        case "int":
            if shape.least is not None and shape.most is not None:
                return f"a whole number from {shape.least} to {shape.most}"
            return "a whole number" if shape.least is None else f"a whole number from {shape.least}"
        case "choice":
            return ", ".join(shape.choices)
        case "port":
            return "1 to 65535 or a service name"
    return "text"


def _lost(node: Node) -> str:
    """What goes away with a value that a later key replaces."""
    if isinstance(node, Scalar):
        return f"`{node.text}`" if node.text else ""
    if isinstance(node, Sequence):
        lines = ", ".join(str(item.line) for item in node.items[:10])
        return f"{len(node.items)} entries (lines {lines})" if len(node.items) != 1 else f"1 entry (line {lines})"
    parts = []
    for key, value in node.pairs:
        if isinstance(key, Scalar):
            inner = _lost(value) if isinstance(value, Sequence) else ""
            parts.append(f"`{key.text}`" + (f" with {inner}" if inner else ""))
    return ", ".join(parts[:10])
