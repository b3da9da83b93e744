# SPDX-License-Identifier: Apache-2.0
"""L110, L113, L114 of `policy/tools/lint.py`: a Block rule that is only audited, a rule that nothing can see, one that io_uring goes around.

Three causes, and whoever wrote the policy must not take one for another: nothing will ever hold the rule (the policy is wrong: a
warning), this version has no backend that could, or the policy or the settings leave out the one that could (notes). Says
nothing of kernels: whether a node offers a backend is for `hauberk probe` and the receipts. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, Literal

from policy.rules.backends import ALL, NAMES, denies, reason
from policy.text.coverage import CANNOT, WATCHED, listed, missing, unseen
from policy.tools.lint_findings import Finding, Together
from schemas.backends import FLOOR
from schemas.operations import Backend, Class
from schemas.refusals import Cause
from schemas.rules import Rule

_WHERE: Final = "where the kernel does not offer"


def unenforceable(together: Together) -> Iterator[Finding]:
    """L110: a Block that nothing carries out, or an Allow whose limit nothing does."""
    told: set[str] = set()
    for rule in together.rules:
        # A rule with several sources is one rule to whoever wrote it.
        # A rule about what nothing reports is L113's: "is only audited" would claim too much.
        if denies(rule) and unseen(rule) is None and (place := f"{rule.key} {rule.position}") not in told:
            found = _unheld(rule, together)
            if found is not None:
                told.add(place)
                yield found


def invisible(together: Together) -> Iterator[Finding]:
    """L113: a rule about what no sensor reports, whatever its action."""
    for rule in together.rules:
        why = missing(rule)
        if why is None:
            continue
        whole = unseen(rule) is not None
        effect = "is neither reported nor enforced" if whole else "has no effect for them"
        advice = (
            f"name calls that are watched: {listed(WATCHED, len(WATCHED))}"
            if rule.syscalls
            else "remove it, or do not count on it"
        )
        yield _finding(rule, why, advice, "warning", f"{CANNOT}: {{}}; the rule {effect}")


def ringed(together: Together) -> Iterator[Finding]:
    """L114: a file rule that `signal` holds, and that io_uring goes around."""
    holding = together.holding
    if Backend.SIGNAL not in holding.backends or holding.rings_stopped or (together.host and not holding.hosts):
        return
    told: set[object] = set()
    for rule in together.rules:
        held = (holding.signal or together.signal[rule.key]) and reason(rule, Backend.SIGNAL, signal=True) is None
        if rule.class_ is Class.FILE and denies(rule) and held and rule.key not in told:
            told.add(rule.key)
            yield Finding(
                code="L114", rule=rule.ref, level="note",
                message="is not enforced for what a process does through io_uring, which is no system call; so are the other file rules of the policy",
                recommendation="set `enforcement.io_uring` to `stop`, or name `io_uring_setup` in a system call rule to have its use reported",
            )  # fmt: skip


def _unheld(rule: Rule, together: Together) -> Finding | None:
    holding = together.holding
    why = {backend: reason(rule, backend, signal=True) for backend in ALL}
    could = [backend for backend in ALL if why[backend] is None]
    here = [backend for backend in could if backend in FLOOR]
    later = [backend for backend in could if backend not in FLOOR]
    if not could:
        return _finding(rule, f"no backend can enforce it: {_reasons(why)}",
                        "use Audit, or a rule that `hauberk policy explain` shows as enforceable", "warning")  # fmt: skip
    if not here:
        return _finding(
            rule,
            f"{_missing(could, holding.backends)}of those that are: {_reasons({backend: why[backend] for backend in FLOOR})}",
            "name one in `enforcement.backends` of a node that has it, or use Audit, or a rule that `hauberk policy explain` shows as enforceable",
        )
    if not (used := [backend for backend in here if backend in holding.backends]):
        left_out = _names(here, "and")
        return _finding(rule, f"`enforcement.backends` of the settings leaves out {left_out}, which could enforce it",
                        f"add {left_out} to `enforcement.backends`")  # fmt: skip
    if used == [Backend.SIGNAL] and not (holding.signal or together.signal[rule.key]):
        return _finding(
            rule,
            f"{_missing(later, holding.backends)}signal could, and the policy does not opt in to kills",
            "add the annotation `hauberk.io/signal: enabled`, and the process is ended instead; or use Audit",
        )
    if together.host and not holding.hosts:
        return _finding(
            rule,
            "rules of host policies are enforced in chosen cgroups, and the settings choose none",
            "name the cgroups in `planner.plan.host_cgroups`, or use Audit",
        )
    return None


def _finding(rule: Rule, why: str, advice: str, level: Literal["warning", "note"] = "note", form: str = "") -> Finding:
    code, message = (
        ("L113", form.format(why))
        if form
        else ("L110", f"is only audited{'' if why.startswith(_WHERE) else ':'} {why}")
    )
    return Finding(code=code, rule=rule.ref, message=message, recommendation=advice, level=level)


def _missing(backends: Sequence[Backend], named: Sequence[Backend]) -> str:
    if not backends:
        return ""
    if offered := [backend for backend in backends if backend in named]:
        return f"{_WHERE} {_names(offered, 'or')}: "
    none = "it is not" if len(backends) == 1 else "neither is"
    return f"{_names(backends, 'or')} could enforce it, and {none} used by default; "


def _reasons(why: Mapping[Backend, Cause | None]) -> str:
    """Each reason once, with the backends whose it is; without them when it is everybody's."""
    said: dict[str, list[Backend]] = {}
    for backend, refused in why.items():
        if refused is not None:
            said.setdefault(refused.text, []).append(backend)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{text} ({_names(backends, 'and')})" for text, backends in said.items())


def _names(backends: Iterable[Backend], word: str) -> str:
    *first, last = (NAMES[backend] for backend in backends)
    return f"{', '.join(first)} {word} {last}" if first else last
