# SPDX-License-Identifier: Apache-2.0
"""What was recommended, as text, Markdown, HTML, JSON or SARIF 2.1.0. The same input gives the same bytes; names of workloads stay harmless in each."""

from __future__ import annotations

import html
import json
import urllib.parse
from collections.abc import Iterable
from typing import Any

import msgspec

from hauberk.output import plain, printable, table
from policy.recommend.recommend import Recommendation
from policy.recommend.templates import FRAMEWORKS, TemplateSet
from schemas.errors import SettingsError
from sinks.formats.summary_diff import code_span


def report(found: list[Recommendation], known: TemplateSet, suffix: str) -> str:
    """By the ending of the file's name. SettingsError for one that is none of these."""
    expect_form(suffix)
    match suffix.lower():
        case ".txt" | "":
            return _text(found, known)
        case ".md":
            return _markdown(found, known)
        case ".html" | ".htm":
            return _html(found, known)
        case ".json":
            return json.dumps(plain(_data(found, known)), indent=2) + "\n"
        case _:
            return json.dumps(plain(_sarif(found, known)), indent=2) + "\n"


def expect_form(suffix: str) -> None:
    """Before anything is asked. SettingsError for an ending that says no form."""
    if suffix.lower() not in ("", ".txt", ".md", ".html", ".htm", ".json", ".sarif"):
        raise SettingsError(f"expected a report that ends in .txt, .md, .html, .json or .sarif, got `{suffix}`")


def coverage(one: Recommendation, known: TemplateSet) -> dict[str, tuple[int, int]]:
    """Framework -> (its tags that a recommended policy carries, tags that some template carries)."""
    made = {}
    for framework in FRAMEWORKS:
        every = {tag for template in known.templates for tag in template.frameworks.get(framework, ())}
        mine = {tag for policy in one.policies for tag in policy.template.frameworks.get(framework, ())}
        made[framework] = (len(mine), len(every))
    return made


def _where(one: Recommendation) -> str:
    of = one.workload
    return "/".join(part for part in (of.namespace, of.name, of.container) if part)


def _title(one: Recommendation) -> str:
    of = one.workload
    return f"{_where(one)}: {of.image or 'image not known'}{f', {one.distribution}' if one.distribution else ''}"


def _sum(one: Recommendation) -> str:
    return f"{len(one.policies)} policies; {one.denied} of {one.behaviours} recorded behaviours would have been denied."


def _text(found: Iterable[Recommendation], known: TemplateSet) -> str:
    parts = [f"Templates {known.version}\n"]
    for one in found:
        rows = [
            (
                p.template.name,
                p.body["spec"]["action"],
                p.template.severity,
                p.template.title,
                ", ".join(p.template.tags),
            )
            for p in one.policies
        ]
        parts.append(f"\n{printable(_title(one))}\n{_sum(one)}\n")
        parts.append(table(("TEMPLATE", "ACTION", "SEVERITY", "TITLE", "TAGS"), rows) + "\n")
        parts.append(f"Covered: {_covered(one, known)}\n")
        parts += [f"  {name}: {printable(note)}\n" for name, note in _notes(one)]
    return "".join(parts)


def _covered(one: Recommendation, known: TemplateSet) -> str:
    return ", ".join(f"{name} {mine} of {every}" for name, (mine, every) in coverage(one, known).items())


def _notes(one: Recommendation) -> list[tuple[str, str]]:
    """(template, what there is to say of it), those that were left out last."""
    notes = [(policy.template.name, note) for policy in one.policies for note in policy.notes]
    return notes + [(left.template, f"left out: {left.reason}") for left in one.left_out]


def _html(found: Iterable[Recommendation], known: TemplateSet) -> str:
    def said(text: str) -> str:
        return html.escape(printable(text))

    def row(cells: Iterable[object], tag: str = "td") -> str:
        return "<tr>" + "".join(f"<{tag}>{said(str(cell))}</{tag}>" for cell in cells) + "</tr>"

    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8><meta http-equiv=Content-Security-Policy content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        "<title>Recommended policies</title><style>body{font:14px sans-serif;margin:2em}table{border-collapse:collapse}td,th{border:1px solid #bbb;"
        f"padding:.3em .6em;text-align:left;vertical-align:top}}</style></head><body><h1>Recommended policies</h1><p>Templates {said(known.version)}</p>"
    ]  # fmt: skip
    for one in found:
        parts.append(f"<h2>{said(_title(one))}</h2><p>{said(_sum(one))}</p><table>")
        parts.append(row(("Template", "Action", "Severity", "Title", "Why", "Tags"), "th"))
        parts += [row((p.template.name, p.body["spec"]["action"], p.template.severity, p.template.title, p.template.why, ", ".join(p.template.tags)))
                  for p in one.policies]  # fmt: skip
        parts.append("</table><table>" + row(("Framework", "Covered", "Of"), "th"))
        parts += [row((name, mine, every)) for name, (mine, every) in coverage(one, known).items()]
        parts.append("</table><ul>")
        parts += [f"<li>{said(name)}: {said(note)}</li>" for name, note in _notes(one)]
        parts.append("</ul>")
    return "".join(parts) + "</body></html>\n"


def _markdown(found: Iterable[Recommendation], known: TemplateSet) -> str:
    """For the comment of a merge request: what a workload is called is code, and nothing else."""
    said = code_span
    parts = [f"# Recommended policies\n\nTemplates {known.version}\n"]
    for one in found:
        parts.append(
            f"\n## {said(printable(_title(one)))}\n\n{_sum(one)}\n\n| Template | Action | Severity | Title | Tags |\n{'|---' * 5}|\n"
        )
        parts += [f"| {said(p.template.name)} | {p.body['spec']['action']} | {p.template.severity} | {said(p.template.title)} | {said(', '.join(p.template.tags))} |\n"
                  for p in one.policies]  # fmt: skip
        parts.append(f"\nCovered: {_covered(one, known)}\n\n")
        parts += [f"- {said(name)}: {said(printable(note))}\n" for name, note in _notes(one)]
    return "".join(parts)


def _data(found: Iterable[Recommendation], known: TemplateSet) -> dict[str, Any]:
    return {
        "templates": known.version,
        "workloads": [
            {
                **msgspec.to_builtins(one.workload), "distribution": one.distribution, "origin": one.origin, "behaviours": one.behaviours, "denied": one.denied,
                "coverage": {name: {"covered": mine, "of": every} for name, (mine, every) in coverage(one, known).items()},
                "policies": [{"template": p.template.name, "tags": p.template.tags, "notes": p.notes, "policy": p.body} for p in one.policies],
                "leftOut": [msgspec.to_builtins(left) for left in one.left_out],
            }
            for one in found
        ],
    }  # fmt: skip


def _sarif(found: Iterable[Recommendation], known: TemplateSet) -> dict[str, Any]:
    """Each recommended policy is a finding: the workload can do what the policy would stop."""
    rules = [
        {
            "id": one.name, "shortDescription": {"text": one.title}, "fullDescription": {"text": one.why},
            "defaultConfiguration": {"level": _level(one.severity)}, "properties": {"tags": list(one.tags), "security-severity": f"{one.severity}.0"},
        }
        for one in known.templates
    ]  # fmt: skip
    places = {one.name: at for at, one in enumerate(known.templates)}
    results = [
        {
            "ruleId": p.template.name, "ruleIndex": places[p.template.name], "level": _level(p.template.severity),
            "message": {"text": f"{p.template.title}: {p.body['metadata']['name']}. {_sum(one)}"},
            "locations": [_place(one) | {"logicalLocations": [{"fullyQualifiedName": _where(one), "kind": "resource"}]}],
        }
        for one in found for p in one.policies
    ]  # fmt: skip
    driver = {"name": "Hauberk", "semanticVersion": known.version, "rules": rules}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json", "version": "2.1.0", "runs": [{"tool": {"driver": driver}, "results": results}],
    }  # fmt: skip


def _place(one: Recommendation) -> dict[str, Any]:
    """The file, which whoever shows findings beside code asks for; a lone byte of a name is what it is in a URI."""
    if not one.origin:
        return {}
    uri = urllib.parse.quote(one.origin.encode("utf-8", "surrogateescape"))
    return {"physicalLocation": {"artifactLocation": {"uri": uri}, "region": {"startLine": 1}}}


def _level(severity: int) -> str:
    return "error" if severity >= 8 else "warning" if severity >= 5 else "note"
