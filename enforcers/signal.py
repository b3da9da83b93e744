# SPDX-License-Identifier: Apache-2.0
"""The `signal` backend: the sensor's own programs send SIGKILL at exec or right after an open. Opt-in, labelled in alerts.

For kernels with no usable LSM. It does not prevent: an exec is killed before its first instruction, an open after it
happened. What of that is too late (`policy.rules.backends.LATE`) is in the receipt, rule by rule. Only scopes that opted in (policy annotation or node setting) are ever touched. Nothing is attached here: the
programs run with the sensor and look at the scope's flag. Neighbours: `paths` (the entries), `cgroup`, `apply`.
"""

from __future__ import annotations

import os
from typing import Final

from enforcers import paths
from enforcers.contract import Everywhere, Ident, TablePart
from policy.rules.backends import LATE
from schemas.enforcement import Refusal, ScopePlan
from schemas.kernel import RULE_KEY, ScopeFlag
from schemas.operations import Backend, Class
from schemas.refusals import RefusalCode
from schemas.verdict import DEFAULT_POSTURE, Action, RuleRef

_WHITELIST = {Class.PROCESS: ScopeFlag.WHITELIST_PROCESS, Class.FILE: ScopeFlag.WHITELIST_FILE}


class SignalEnforcer(Everywhere):
    """See `contract.TableBackend`."""

    backend = Backend.SIGNAL
    maps: Final = {"rules": RULE_KEY.offsets["table"]}
    enforces = ScopeFlag.ENFORCE_SIGNAL

    def __init__(self, pin_dir: str, *, closed: bool = True, rings: bool = True) -> None:
        self._closed = closed
        self._rings = rings
        self._program = f"{pin_dir}/programs/on_exec"

    def unusable(self) -> str:
        if not os.path.exists(self._program):
            return f"expected `on_exec` at {self._program}, it is not pinned; load the sensor first"
        return ""

    def encode(self, scope: ScopePlan, ident: Ident) -> TablePart:
        if not scope.signal:
            why = "neither its policies nor the node opt in to kills (annotation `hauberk.io/signal: enabled`)"
            asked = [rule.ref for rule in scope.paths if rule.stops]
            if any((class_, Action.BLOCK) in scope.posture for class_ in _WHITELIST):
                asked.append(RuleRef(DEFAULT_POSTURE))
            refused = tuple(
                Refusal(ref=ref, uid=scope.uid, backend=self.backend, reason=why, code=RefusalCode.NO_OPT_IN)
                for ref in asked
            )
            return TablePart(refused=refused)
        entries, refused, holes = paths.encode(scope.paths, ident, self.backend, scope.uid)
        flags = ScopeFlag.ENFORCE_SIGNAL if entries else ScopeFlag(0)
        for class_, flag in _WHITELIST.items():
            if (class_, Action.BLOCK) not in scope.posture:
                continue
            if class_ in holes:
                why = "an Allow rule cannot be carried out, and without it the posture would kill too much"
                ref = RuleRef(DEFAULT_POSTURE)
                refused = (
                    *refused,
                    Refusal(ref=ref, uid=scope.uid, backend=self.backend, reason=why, code=RefusalCode.POSTURE),
                )
            else:
                flags |= ScopeFlag.ENFORCE_SIGNAL | flag
        if self._closed and flags and (flags != ScopeFlag.ENFORCE_SIGNAL or any(rule.stops for rule in scope.paths)):
            flags |= ScopeFlag.CLOSED
        if flags and not self._rings:
            flags |= ScopeFlag.STOP_IO_URING
        held = {rule.ref for rule in scope.paths} - {one.ref for one in refused}
        files = {rule.ref for rule in scope.paths if rule.cls is Class.FILE and rule.stops} & held
        late = tuple(
            Refusal(ref=ref, uid=scope.uid, backend=self.backend, reason=LATE.text, code=LATE.code)
            for ref in sorted(files, key=lambda ref: (ref.policy, ref.index))
        )
        return TablePart(entries={"rules": entries}, flags=flags, rules=len(held), refused=refused, partial=late)
