# SPDX-License-Identifier: Apache-2.0
"""What to say of a field that is not there: a typo, a neighbour's name, or a field that stands in the wrong place.

Asked in this order, because the first that answers is the one a person meant: the table of known mix-ups, another kind's
field, a typo of a field that is here, a field that exists elsewhere in this kind. Neighbours: `check` (asks), `struct_fields`.
"""

from __future__ import annotations

from typing import Final

import msgspec

from policy.text import codes
from policy.text.codes import Code
from policy.text.struct_fields import fields, where
from policy.text.suggest import distance, nearest
from policy.text.yaml_nodes import Mapping, Node, Scalar, Sequence
from schemas import policy as written
from schemas import policy_sections as sections


class FieldFinding(msgspec.Struct, frozen=True):
    """The answer: a code and the words."""

    code: Code
    message: str
    expected: str = ""
    suggestion: str = ""
    instead: str = ""
    """The field of the same mapping that was meant: it is then not reported as missing."""
    place: str = ""
    """Where the field belongs, as `shapes.where` names places: what it holds is checked as if it stood there."""


_ENTRY: Final = {
    "path": "matchPaths",
    "dir": "matchDirectories",
    "pattern": "matchPatterns",
}
_OWN: Final[dict[type, str]] = {
    sections.ProcessPath: "path", sections.FilePath: "path", sections.SyscallPath: "path",
    sections.ProcessDirectory: "dir", sections.FileDirectory: "dir",
    sections.ProcessPattern: "pattern", sections.FilePattern: "pattern",
}  # fmt: skip
_RENAMED: Final[dict[str, str]] = {
    "directory": "dir", "directories": "matchDirectories", "paths": "matchPaths", "patterns": "matchPatterns",
    "exec": "execname", "protocols": "matchProtocols", "domains": "matchDNSQueries", "name": "execname",
    "severityLevel": "severity", "readonly": "readOnly", "owneronly": "ownerOnly",
    "recurse": "recursive", "source": "fromSource", "labels": "matchLabels", "expressions": "matchExpressions",
    "capability": "matchCapabilities", "capabilities": "matchCapabilities", "syscall": "matchSyscalls",
    "msg": "message", "tag": "tags", "matchDns": "matchDNSQueries", "matchDomains": "matchDNSQueries",
    "annotation": "annotations", "subclass": "subClass",
}  # fmt: skip
"""Names people use for ours that are too far away for edit distance."""
_SELECTORS: Final = (written.Selector, written.NodeSelector, written.ClusterSelector)


def misnamed(kind: type[written.AnyPolicy], struct: type, name: str, path: str, value: Node) -> FieldFinding:
    """What `name`, found in the mapping at `path`, should have been."""
    known = fields(struct)
    expected = ", ".join(known)
    here = path or "the document"
    own = _OWN.get(struct)
    if own is not None and name in _ENTRY and name != own:
        text = value.text if isinstance(value, Scalar) else ""
        if (
            own == "pattern"
            or (own == "dir" and text.endswith("/"))
            or (own == "path" and not text.endswith("/") and "*" not in text)
        ):
            return FieldFinding(
                codes.UNKNOWN_FIELD, f"`{name}` is not a field of `{here}`", expected, f"write `{own}`", own
            )
        list_path = path.rpartition("[")[0].rpartition(".")[0]
        return FieldFinding(
            codes.MISPLACED,
            f"`{name}` does not belong in `{here}`",
            expected,
            f"move it to `{list_path}.{_ENTRY[name]}`",
            own,
        )
    if own in ("path", "pattern") and name == "recursive":
        list_path = path.rpartition("[")[0].rpartition(".")[0]
        return FieldFinding(
            codes.MISPLACED,
            f"`recursive` has no effect on the single name in `{here}`",
            expected,
            f"directories go to `{list_path}.matchDirectories`",
        )
    if struct in _SELECTORS and isinstance(value, Scalar) and name not in fields(sections.Attributes):
        near = nearest(name, known)
        if near is None and "matchLabels" in known:
            return FieldFinding(
                codes.MISPLACED,
                f"`{name}` is a label and stands beside the labels",
                expected,
                f"write `{path}.matchLabels.{name}`",
            )
        if near is None:
            return FieldFinding(
                codes.MISPLACED,
                f"a cluster policy selects labels by expression, not as `{name}`",
                expected,
                f"write a `matchExpressions` entry with `key: label`, `operator: In`, `values: [{name}={value.text}]`",
            )
    if struct in _SELECTORS and name == "matchLabels":
        return FieldFinding(
            codes.WRONG_KIND,
            "a cluster policy has no `matchLabels`",
            expected,
            "write a `matchExpressions` entry with `key: label`, `operator: In` and `k=v` values",
        )
    if path.rpartition(".")[2] == name:
        return FieldFinding(
            codes.MISPLACED,
            f"`{name}` is nested in itself",
            expected,
            f"move its fields up to `{path}`",
            place=path,
        )
    if struct is sections.ProcessPath and "arg" in name.lower() and not name.lower().startswith("allow"):
        # `allowedArgs` is the opposite of what such a name asks for: it blocks every other argument.
        return FieldFinding(
            codes.UNKNOWN_FIELD,
            f"`{name}` is not a field of `{here}`: acting on chosen arguments is not supported",
            expected,
            "name the executable alone; its alerts have the arguments",
        )
    other = _of_other_kind(kind, struct, name)
    if other is not None:
        return other
    renamed = _RENAMED.get(name)
    if renamed in known:
        return FieldFinding(
            codes.UNKNOWN_FIELD,
            f"`{name}` is not a field of `{here}`",
            expected,
            f"did you mean `{renamed}`?",
            renamed or "",
        )
    near = nearest(name, known)
    elsewhere = where(kind).get(name)
    if near is not None and (elsewhere is None or distance(name.casefold(), near.casefold(), 2) <= 1):
        return FieldFinding(
            codes.UNKNOWN_FIELD, f"`{name}` is not a field of `{here}`", expected, f"did you mean `{near}`?", near
        )
    if elsewhere is not None:
        near_places = _places(name, elsewhere, path, value)
        places = " or ".join(f"`{target.replace('[]', '[...]')}`" for target in near_places[:2])
        return FieldFinding(
            codes.MISPLACED,
            f"`{name}` does not belong in `{here}`",
            expected,
            f"move it to {places}",
            place=near_places[0],
        )
    far = nearest(name, where(kind))
    if far is not None and len(name) > 4:
        return FieldFinding(
            codes.MISPLACED, f"`{name}` is not a field of `{here}`", expected, f"did you mean `{where(kind)[far][0]}`?"
        )
    return FieldFinding(codes.UNKNOWN_FIELD, f"`{name}` is not a field of `{here}`", expected)


def _of_other_kind(kind: type[written.AnyPolicy], struct: type, name: str) -> FieldFinding | None:
    """A field of another kind's `spec`: `nodeSelector` in a KubeArmorPolicy, `ingress` in a host policy."""
    specs = {other: fields(other)["spec"].shape.struct for other in written.KINDS.values()}
    owners = [other.__name__ for other, spec in specs.items() if spec is not None and name in fields(spec)]
    if not owners or name in where(kind):
        return None
    if struct is not specs[kind]:
        return FieldFinding(
            codes.WRONG_KIND,
            f"`{name}` belongs to another kind of policy",
            ", ".join(fields(struct)),
            f"use `kind: {owners[0]}` with `spec.{name}`",
        )
    instead = {"nodeSelector": "selector", "selector": "nodeSelector"}.get(name, "")
    help_ = f"use `kind: {owners[0]}`"
    if instead in fields(struct):
        help_ = f"write `{instead}`, or {help_}"
    return FieldFinding(
        codes.WRONG_KIND, f"a {kind.__name__} has no `{name}`", ", ".join(fields(struct)), help_, instead
    )


def _places(name: str, elsewhere: tuple[str, ...], path: str, value: Node) -> list[str]:
    """Where to move a field: the places that share most of its path, judged by what it holds when they are equal."""

    def shared(target: str) -> int:
        ours, theirs = path.split("."), target.split(".")
        return sum(
            1 for left, right in zip(ours, theirs, strict=False) if left.partition("[")[0] == right.partition("[")[0]
        )

    best = max(shared(target) for target in elsewhere)
    near = [target for target in elsewhere if shared(target) == best]
    least = min(target.count(".") for target in near)
    near = [target for target in near if target.count(".") == least]
    if "spec.file." + name in near and "spec.process." + name in near:
        held = {key.text for item in _items(value) for key, _ in item.pairs if isinstance(key, Scalar)}
        order = ["spec.file." + name, "spec.process." + name]
        near = order if "readOnly" in held else order[::-1]
    return near


def _items(value: Node) -> list[Mapping]:
    return [item for item in value.items if isinstance(item, Mapping)] if isinstance(value, Sequence) else []
