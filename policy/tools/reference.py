# SPDX-License-Identifier: Apache-2.0
"""The generated parts of docs/policies.md: every field of every kind, every diagnostic, every known name.

The page is prose with blocks between `<!-- generated: NAME -->` and `<!-- end -->`; `refreshed` fills the blocks and leaves the
prose alone. A test asks that the page is what `refreshed` makes of it. To write it: `python -m policy.tools.reference docs/policies.md`;
with `--check` in front it only compares and exits 1 when the page is old.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from policy.text import coverage, values
from policy.text.codes import CODES
from policy.text.struct_fields import FieldShape, Shape, fields
from schemas.policy import KINDS

BLOCK: Final = re.compile(r"(<!-- generated: ([a-z]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(page: str) -> str:
    """The page with its blocks filled. KeyError names a block that nobody generates."""
    makers = {"fields": _fields, "codes": _codes, "names": _names}
    return BLOCK.sub(lambda found: f"{found[1]}\n{makers[found[2]]()}\n{found[3]}", page)


def _structs() -> list[type]:
    """Every struct a policy is made of, each once, outer before inner."""
    found: list[type] = list(KINDS.values())
    for struct in found:
        for field in fields(struct).values():
            inner = field.shape.item if field.shape.kind == "list" and field.shape.item else field.shape
            if inner.struct is not None and inner.struct not in found:
                found.append(inner.struct)
    return found


def _fields() -> str:
    parts = []
    for struct in _structs():
        parts += [
            f"### {struct.__name__}",
            "",
            (struct.__doc__ or "").strip(),
            "",
            "| field | type | meaning |",
            "|---|---|---|",
        ]
        parts += [
            f"| `{name}`{' *' if field.required else ''} | {_type(field.shape)} | {_meaning(field)} |"
            for name, field in fields(struct).items()
        ]
        parts.append("")
    return "\n".join(parts)


def _type(shape: Shape) -> str:
    match shape.kind:
        case "struct":
            assert shape.struct is not None
            return f"[{shape.struct.__name__}](#{shape.struct.__name__.lower()})"
        case "list":
            assert shape.item is not None
            return f"list of {_type(shape.item)}"
        case "dict":
            return "text by text"
        case "str":
            return "text"
        case "bool":
            return "true, false"
        case "choice":
            return ", ".join(f"`{choice}`" for choice in shape.choices)
        case "port":
            return "number or text"
    least, most = shape.least, shape.most
    return f"number {least} to {most}" if most is not None else "number" if least is None else f"number from {least}"


def _meaning(field: FieldShape) -> str:
    limit = f" KubeArmor takes at most {field.longest}; Hauberk has no limit." if field.longest else ""
    return (field.description + limit).replace("|", "\\|")


def _codes() -> str:
    rows = [f"| {code.code} | {code.level} | {code.title} | {code.advice} |" for code in CODES]
    return "\n".join(["| code | level | what it is | what to do |", "|---|---|---|---|", *rows, ""])


def _names() -> str:
    def listed(names: object) -> str:
        return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]

    known = [name for name in values.CAPABILITIES if name not in values.BEYOND]
    return "\n".join(
        [
            f"* **Protocols**: {listed(values.PROTOCOLS)}; all lower or all upper case.",
            f"* **Capabilities**: {listed(known)}. Beyond KubeArmor's list, with a warning: {listed(sorted(values.BEYOND))}.",
            f"* **System calls** that are watched: {listed(coverage.WATCHED)}, and `umount` for `umount2`. Others are taken, with a warning, "
            "and tell nothing.",
            f"* **USB classes**: {listed(values.DEVICE_CLASSES)}, or a number (`8`, `0x08`).",
            f"* **Service names** for ports: {listed(values.SERVICES)}.",
            "",
        ]
    )


if __name__ == "__main__":
    *flags, name = sys.argv[1:]
    path = Path(name)
    old = path.read_text()
    new = refreshed(old)
    if "--check" in flags:
        sys.exit(f"{path} is old; run `python -m policy.tools.reference {path}`" if new != old else 0)
    path.write_text(new)
