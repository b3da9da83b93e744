# SPDX-License-Identifier: Apache-2.0
"""What a document is: a policy, a list of documents, somebody else's object. Pure; trees in, words out.

Somebody else's objects (a CRD, a Deployment, a kustomization, a JSON patch) are said and left out, so that a directory of manifests
can be applied as it is. What may be a policy that was misspelt is an error, never left out. Neighbours: `policy.parse` (reads what is a
policy), `yaml_lines` (says nothing of what is wrong inside of somebody else's object).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from policy.text import codes
from policy.text.diagnostics import Report
from policy.text.suggest import nearest
from policy.text.yaml_nodes import Mapping, Node, Scalar, Sequence, describe
from schemas.policy import API_VERSION, KINDS

LISTS: Final = ("List", *(f"{kind}List" for kind in KINDS))
GROUP: Final = "security.kubearmor.com"
_OPERATOR: Final = "operator.kubearmor.com"
"""KubeArmor's other group: its `KubeArmorConfig` is no misspelt policy."""


def member(node: Mapping, name: str) -> Node | None:
    """The value of a key; the last one when it is written twice."""
    return next((value for key, value in reversed(node.pairs) if isinstance(key, Scalar) and key.text == name), None)


def flatten(trees: Iterable[Node]) -> Iterator[Node]:
    """The documents, and those inside of `kind: List` (what `kubectl get -o yaml` prints), in order."""
    waiting = list(reversed(list(trees)))
    while waiting:
        node = waiting.pop()
        items = listed(node)
        if items is None:
            yield node
        else:
            waiting += reversed(items.items)


def listed(node: Node) -> Sequence | None:
    """The items of a `kind: List`; None for everything else."""
    if not isinstance(node, Mapping) or _text(node, "kind") not in LISTS:
        return None
    items = member(node, "items")
    return items if isinstance(items, Sequence) else None


def foreign(node: Node) -> bool:
    """Whether a document is somebody else's: nothing that is wrong in it concerns us."""
    if isinstance(node, Sequence):
        return not any(isinstance(item, Mapping) and _text(item, "kind") in KINDS for item in node.items)
    if not isinstance(node, Mapping):
        return False
    if (items := listed(node)) is not None:
        return all(foreign(item) for item in items.items if not isinstance(item, Scalar))
    kind, version = _text(node, "kind"), _text(node, "apiVersion")
    if not kind:
        named = [name for name in ("apiVersion", "kind", "metadata", "spec") if member(node, name) is not None]
        return not named or (bool(version) and version.partition("/")[0] != GROUP)
    group = version.partition("/")[0]
    return kind not in KINDS and group != GROUP and (group == _OPERATOR or not _misspelt(kind))


def identify(node: Node, report: Report) -> str | None:
    """The kind of policy a document is; None when it is none, which is reported."""
    if foreign(node):
        kind = member(node, "kind") if isinstance(node, Mapping) else None
        at = kind if isinstance(kind, Scalar) and kind.text else node
        report.add(codes.SKIPPED, _foreign_words(node), line=at.line, column=at.column, width=at.width)
        return None
    if not isinstance(node, Mapping):
        report.add(
            codes.NOT_A_MAPPING,
            f"the document is {describe(node)}",
            line=node.line,
            column=node.column,
            width=node.width,
            expected="a mapping with apiVersion, kind, metadata, spec",
        )
        return None
    kind, version = member(node, "kind"), member(node, "apiVersion")
    kind_text, version_text = _text(node, "kind"), _text(node, "apiVersion")
    if not isinstance(kind, Scalar) or not kind_text:
        report.add(
            codes.NO_KIND,
            "the document has no `kind`",
            line=node.line,
            column=node.column,
            path="kind",
            expected=", ".join(KINDS),
        )
        return None
    if kind_text not in KINDS:
        near = nearest(kind_text, KINDS)
        report.add(
            codes.UNKNOWN_KIND,
            f"`{kind_text}` is not a kind of policy",
            line=kind.line,
            column=kind.column,
            width=kind.width,
            path="kind",
            expected=", ".join(KINDS),
            suggestion=f"did you mean `{near}`?" if near else "",
        )
        return None
    misspelt = version is None and any(
        isinstance(key, Scalar) and nearest(key.text, ("apiVersion",)) for key, _ in node.pairs
    )
    if version_text != API_VERSION and not misspelt:
        at = version if isinstance(version, Scalar) else kind
        report.add(
            codes.API_VERSION,
            f"`apiVersion` is `{version_text}`" if version_text else "`apiVersion` is missing",
            line=at.line,
            column=at.column,
            width=at.width,
            path="apiVersion",
            expected=API_VERSION,
        )
    return kind_text


def _text(node: Mapping, name: str) -> str:
    value = member(node, name)
    return value.text if isinstance(value, Scalar) else ""


def _misspelt(kind: str) -> bool:
    return kind.lower().startswith("kubearmor") and nearest(kind, KINDS) is not None


def _foreign_words(node: Node) -> str:
    if not isinstance(node, Mapping):
        return "a list is not an object of Kubernetes; skipped"
    if kind := _text(node, "kind"):
        return f"`{kind}` is not a policy; skipped"
    version = _text(node, "apiVersion")
    return f"an object of {version} without a kind is skipped" if version else "not an object of Kubernetes; skipped"
