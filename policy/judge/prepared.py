# SPDX-License-Identifier: Apache-2.0
"""What a ruleset works out of each policy by itself, kept while its document stays as it is; and an index of whom policies may be for.

Of 5,000 policies one changes: the others need not be read again, nor asked about containers that lack a label which they want.
Pure. Neighbours: `policy.ruleset` (who asks), `policy.rules.select` (who has the last word).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from policy.judge.compile import problem
from policy.rules import select
from policy.rules.links import names
from policy.rules.visibility import asked
from schemas.identity import Identity
from schemas.operations import Class
from schemas.rules import Policy, Selection
from schemas.verdict import RuleRef


class PreparedPolicy(NamedTuple):
    """`selects`: its selection as a function. `problems`: rules that can never match, and why. `links`: paths whose real place matters to
    it. `asked`: classes that it cannot be judged without."""

    policy: Policy
    selects: select.Predicate
    problems: tuple[tuple[RuleRef, str], ...]
    links: frozenset[str]
    asked: frozenset[Class]


def prepare(policy: Policy, untracked: frozenset[str]) -> PreparedPolicy:
    """Of one policy. `untracked`: namespaces that none reaches."""
    problems = tuple((rule.ref, text) for rule in policy.rules if (text := problem(rule)) is not None)
    predicate = select.predicate(policy.selection, untracked)
    return PreparedPolicy(policy, predicate, problems, names(policy.rules), asked(policy.rules))


class LabelIndex:
    """Numbers of policies for containers in Kubernetes, by the first label that each wants. It only leaves out who lacks that label."""

    def __init__(self) -> None:
        self._wanting: dict[tuple[str, str], list[int]] = {}
        self._others: list[int] = []

    def put(self, number: int, selection: Selection) -> None:
        """One more policy."""
        # The namespace may be named as if it were a label, which no container carries.
        label = next((one for one in selection.labels if one[0] != select.NAMESPACE_LABEL), None)
        (self._others if label is None else self._wanting.setdefault(label, [])).append(number)

    def of(self, identity: Identity) -> Iterator[int]:
        """Those that may select it; the others do not."""
        yield from self._others
        wanting = self._wanting
        for label in identity.labels.items():
            yield from wanting.get(label, ())
