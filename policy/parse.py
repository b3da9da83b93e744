# SPDX-License-Identifier: Apache-2.0
"""Text to policy documents and diagnostics: the door of the language. Takes any bytes, never raises.

::

    text -> yaml_lines / json_lines -> trees -> identify -> check -> PolicyDocument
                                                   └ other kinds of objects are left alone, with an info

A document with an error gives no PolicyDocument; the other documents of the file do, and the caller decides whether to
apply them (`hauberk apply` applies nothing of a file with errors).
"""

from __future__ import annotations

from typing import Final

import msgspec

from policy.rules.contradictions import check_meaning
from policy.text import codes, json_lines, yaml_lines
from policy.text.annotations import check_annotations
from policy.text.check import INVALID, Checker
from policy.text.diagnostics import Diagnostic, Report
from policy.text.kinds import flatten, identify, member
from policy.text.yaml_nodes import Mapping, Scalar, plain
from schemas.policy import KINDS, KubeArmorNetworkPolicy, KubeArmorPolicy, PolicyDocument, reference

SIZE: Final = 4 * 1024 * 1024
"""Bytes of one file. The largest policy sets in the wild are a quarter of it."""


class Parsed(msgspec.Struct, frozen=True):
    """What a file holds and what is wrong with it. `text`: as decoded, for `diagnostics.render`."""

    policies: tuple[PolicyDocument, ...]
    diagnostics: tuple[Diagnostic, ...]
    ok: bool
    """No errors: every policy of the file is in `policies`."""
    text: str = ""


def parse(text: str | bytes, origin: str, *, strict: bool = False) -> Parsed:
    """Every policy and every finding of `text` (YAML with any number of documents, or JSON).

    `origin`: file name for messages. `strict`: warnings count as errors.
    """
    report = Report(origin, strict)
    decoded = _decode(text, report)
    documents: list[PolicyDocument] = []
    if decoded is None:
        decoded = ""
    else:
        trees = json_lines.read(decoded) if decoded.lstrip()[:1] in ("{", "[") else None
        if trees is None:
            trees = yaml_lines.read(decoded, report)
        seen: dict[str, int] = {}
        for node in flatten(trees):
            if report.full:
                break
            before = report.errors
            kind = identify(node, report)
            if kind is None or not isinstance(node, Mapping):
                continue
            document = _document(node, kind, report)
            if document is None or report.errors > before:
                continue
            earlier = seen.get(document.key)
            if earlier is not None:
                report.add(
                    codes.TWICE,
                    f"{reference(document.key)} is already at line {earlier}; this one replaces it",
                    line=node.line,
                    column=node.column,
                )
            seen[document.key] = node.line
            documents.append(document)
        if not trees and not report.errors:
            report.add(codes.NO_POLICY, "no policy in this file", line=1, column=1, expected=", ".join(KINDS))
    return Parsed(tuple(documents), report.sorted(), not report.errors, decoded)


def _decode(text: str | bytes, report: Report) -> str | None:
    if len(text) > SIZE:
        report.add(
            codes.TOO_LARGE,
            f"{len(text)} bytes; at most {SIZE} are read",
            line=1,
            column=1,
            suggestion="split it into several",
        )
        return None
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8-sig")
        text.encode("utf-8")
        return text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        before = bytes(text[: error.start]) if isinstance(text, bytes) else b""
        line = before.count(b"\n") + 1
        report.add(
            codes.NOT_TEXT,
            f"byte {error.start} is not UTF-8 text",
            line=line,
            column=1,
            suggestion="name a file of text, saved as UTF-8",
        )
    except UnicodeEncodeError as error:
        report.add(codes.NOT_TEXT, f"character {error.start} is half of a surrogate pair", line=1, column=1)
    return None


def _selects_pods(node: Mapping, struct: type) -> bool:
    """A network policy with a `selector`: its namespace narrows the pods, though the object itself has none."""
    spec = member(node, "spec")
    return struct is KubeArmorNetworkPolicy and isinstance(spec, Mapping) and member(spec, "selector") is not None


def _document(node: Mapping, kind: str, report: Report) -> PolicyDocument | None:
    before = report.errors
    struct = KINDS[kind]
    checker = Checker(report, struct)
    skipped = ("kind", "status")
    body = Mapping(
        [pair for pair in node.pairs if not (isinstance(pair[0], Scalar) and pair[0].text in skipped)],
        node.line,
        node.column,
        node.width,
    )
    value = checker.struct(body, struct, "")
    metadata = member(node, "metadata")
    if isinstance(metadata, Mapping):
        check_annotations(metadata, checker, namespaced=struct is KubeArmorPolicy or _selects_pods(node, struct))
    if value is INVALID or report.errors > before:
        return None
    try:
        policy = msgspec.convert({**value, "kind": kind}, struct)
        raw = msgspec.json.encode(plain(node))
    except (msgspec.ValidationError, msgspec.EncodeError, OverflowError, ValueError) as error:
        report.add(codes.TYPE, str(error), line=node.line, column=node.column)
        return None
    namespace = (policy.metadata.namespace or "default") if struct is KubeArmorPolicy else ""
    document = PolicyDocument(
        kind=kind,
        namespace=namespace,
        name=policy.metadata.name,
        policy=policy,
        raw=raw,
        origin=report.origin,
        line=node.line,
        positions=tuple(checker.positions),
    )
    check_meaning(document, report)
    return document if report.errors == before else None
