# SPDX-License-Identifier: Apache-2.0
"""Hot. The judge: one set of compiled tables and the question "what do these policies say of this behaviour?".

A behaviour goes to the table of its operation, then to the tables that stand beside it (presets, system calls, network policies);
the strongest answer is the verdict. Pure: the same behaviour gets the same verdict. Never raises on what a workload did.
Neighbours: `policy/judge/compile.py` fills the tables, `policy/ruleset.py` holds judges of enforced, audited and shadow rules.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from policy.judge.devices import device_matches
from policy.judge.paths import Group, PathTable, gather
from policy.judge.precedence import Candidate, Unmatched, decide, needing_arguments
from policy.judge.sockets import LOCAL, NameTable, PeerTable, WordTable, destination, words
from policy.judge.sources import Actors
from schemas.behaviour import Behaviour
from schemas.operations import Backend, Operation
from schemas.syscalls import ALIASES
from schemas.verdict import ALLOWED, DEFAULT_POSTURE, Action, Mode, Verdict
from schemas.watched import CALLS, named

Answer = Callable[[Behaviour, tuple[str, ...] | None], Verdict]

SENT: Final = frozenset(
    -number for number in (errno.EINPROGRESS, errno.ECONNREFUSED, errno.ETIMEDOUT, errno.ECONNRESET, errno.EHOSTUNREACH)
)
"""A connect() that ends so has left the machine: it counts as passed."""
_DENIED: Final = frozenset((0, -errno.EPERM, -errno.EACCES))
_WEIGHT: Final = {Action.ALLOW: 0, Action.AUDIT: 1, Action.BLOCK: 2}
_AT_BIND: Final = frozenset((Backend.CGROUP, Backend.BPF_LSM))
_TAKEN: Final = frozenset((Operation.BIND, Operation.LISTEN, Operation.ACCEPT))
_ATTEMPTS: Final = frozenset(name for name, row in CALLS.items() if row.operation is Operation.CALL)
NOTHING: Final = Unmatched(False, "allow", Mode.ENFORCE, False)


class RuleTables:
    """What a judge looks things up in; filled by `policy.judge.compile`."""

    def __init__(self, actors: Actors) -> None:
        self.actors = actors
        self.process = PathTable([], actors)
        self.file = PathTable([], actors)
        self.protocols = WordTable([], actors)
        self.names = NameTable([], actors)
        self.capabilities = WordTable([], actors)
        self.syscalls: WordTable | None = None
        self.syscall_paths: PathTable | None = None
        self.devices: list[Candidate] = []
        self.presets: list[tuple[Callable[[Behaviour], bool], Candidate]] = []
        self.ingress: PeerTable | None = None
        self.egress: PeerTable | None = None
        self.unmatched: dict[str, Unmatched] = {}


def considered(behaviour: Behaviour) -> bool:
    """Whether policies have anything to say: it passed or was denied. What failed for another reason never happened, but for calls
    that touch no file and no socket, where the attempt is what a rule asks about (a pivot_root that was busy)."""
    result = behaviour.result
    if behaviour.operation is Operation.CALL and behaviour.syscall_name in _ATTEMPTS:
        return True
    return result in _DENIED or (result in SENT and behaviour.operation is Operation.CONNECT)


def stronger(verdict: Verdict, other: Verdict) -> Verdict:
    """Block over Audit over Allow; of two equal ones the one with a name over the default posture, then the first."""
    mine, its = _WEIGHT[verdict.action], _WEIGHT[other.action]
    if its > mine or (its == mine and verdict.policy in (None, DEFAULT_POSTURE) and other.rule is not None):
        winner, loser = other, verdict
    else:
        winner, loser = verdict, other
    if loser.needs_arguments and not winner.needs_arguments and winner.action is not Action.BLOCK:
        return needing_arguments(winner)
    return winner


class Judge:
    """The rules of one scope, ready to be asked."""

    def __init__(self, tables: RuleTables) -> None:
        self.tables = tables
        self._actors = tables.actors
        self._lookup_process = tables.process.lookup
        self._lookup_file = tables.file.lookup
        unmatched = tables.unmatched
        self._unmatched_process = unmatched.get("process", NOTHING)
        self._unmatched_file = unmatched.get("file", NOTHING)
        self._unmatched_network = unmatched.get("network", NOTHING)
        self._unmatched_dns = unmatched.get("dns", NOTHING)
        self._unmatched_capabilities = unmatched.get("capabilities", NOTHING)
        self._unmatched_device = unmatched.get("device", NOTHING)
        self._unmatched_ingress = unmatched.get("ingress", NOTHING)
        self._unmatched_egress = unmatched.get("egress", NOTHING)
        answers: list[Answer] = [self._nothing] * 64
        answers[Operation.EXEC] = self._process
        for operation in Operation:
            if Operation.OPEN <= operation <= Operation.MKNOD and operation not in (Operation.MOUNT, Operation.UMOUNT):
                answers[operation] = self._file
            elif Operation.SOCKET <= operation <= Operation.SEND:
                answers[operation] = self._network
        answers[Operation.RENAME] = answers[Operation.LINK] = self._two_files
        answers[Operation.DNS] = self._dns
        answers[Operation.CAPABLE] = self._capability
        answers[Operation.DEVICE] = self._device
        self._answers = answers
        self._beside: list[Answer] = []
        if tables.presets:
            self._beside.append(self._presets)
        if tables.ingress is not None or tables.egress is not None:
            self._beside.append(self._peer)
        if tables.syscalls is not None or tables.syscall_paths is not None:
            self._beside.append(self._syscall)

    def judge(self, behaviour: Behaviour, arguments: tuple[str, ...] | None = None) -> Verdict:
        """The verdict; with `needs_arguments` when it may change once `arguments` (argv) are known."""
        if behaviour.result and not considered(behaviour):
            return ALLOWED
        verdict = self._answers[behaviour.operation](behaviour, arguments)
        for answer in self._beside:
            other = answer(behaviour, arguments)
            if other is not ALLOWED:
                verdict = stronger(verdict, other)
        return verdict

    def free(self, directory: str) -> bool:
        """Whether nothing is ever said of an operation on one file that lies in this directory, given with its trailing slash."""
        tables = self.tables
        asked = tables.presets or tables.syscalls is not None or tables.syscall_paths is not None
        return not asked and not self._unmatched_file.whitelist and tables.file.free(directory)

    def candidates(self, behaviour: Behaviour) -> list[tuple[str, list[Candidate], Unmatched]]:
        """Every table asked for `behaviour`, with the rules found in it: for `policy.tools.explain`, not for speed."""
        operation = behaviour.operation
        answer = self._answers[operation]
        found: list[tuple[str, list[Candidate], Unmatched]] = []
        if answer == self._process:
            found.append(("process", self._find_process(behaviour, behaviour.resource), self._unmatched_process))
            if behaviour.resource2:
                found.append(("process", self._find_process(behaviour, behaviour.resource2), self._unmatched_process))
        elif answer in (self._file, self._two_files):
            found.append(("file", self._find_file(behaviour, behaviour.resource), self._unmatched_file))
            if answer == self._two_files:
                found.append(("file", self._find_file(behaviour, behaviour.resource2), self._unmatched_file))
        elif answer == self._network:
            local = behaviour.family in LOCAL
            found.append(("network", self._find_network(behaviour), NOTHING if local else self._unmatched_network))
        elif answer == self._dns:
            found.append(("dns", self._find_dns(behaviour), self._unmatched_dns))
        elif answer == self._capability:
            found.append(("capabilities", self._find_capability(behaviour), self._unmatched_capabilities))
        elif answer == self._device:
            found.append(("device", self._find_device(behaviour), self._unmatched_device))
        found += [("preset", [candidate], NOTHING) for holds, candidate in self.tables.presets if holds(behaviour)]
        direction, peers, unmatched = self._find_peer(behaviour)
        if direction:
            found.append((direction, peers, unmatched))
        if self._syscall in self._beside:
            found.append(("syscall", self._find_syscall(behaviour), NOTHING))
        return found

    def _nothing(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        return ALLOWED

    def _found(self, groups: list[Group], actor: str, script: str) -> list[Candidate]:
        return gather(groups, actor, self._actors, script)

    def _process(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        if behaviour.resource2:  # a script and its interpreter: both are executed
            return stronger(
                decide(
                    self._find_process(behaviour, behaviour.resource), behaviour, arguments, self._unmatched_process
                ),
                decide(
                    self._find_process(behaviour, behaviour.resource2), behaviour, arguments, self._unmatched_process
                ),
            )
        groups = self._lookup_process(behaviour.resource)
        if not groups:
            return self._unmatched_process.verdict(behaviour)
        found = gather(groups, behaviour.parent or behaviour.executable, self._actors, behaviour.script)
        return decide(found, behaviour, arguments, self._unmatched_process)

    def _file(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        groups = self._lookup_file(behaviour.resource)
        if not groups:
            return self._unmatched_file.verdict(behaviour)
        return decide(
            gather(groups, behaviour.executable, self._actors, behaviour.script), behaviour, arguments, self._unmatched_file
        )  # fmt: skip

    def _two_files(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        first = self._file(behaviour, arguments)
        found = self._find_file(behaviour, behaviour.resource2)
        return stronger(first, decide(found, behaviour, arguments, self._unmatched_file))

    def _network(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        unmatched = NOTHING if behaviour.family in LOCAL else self._unmatched_network
        return decide(self._find_network(behaviour), behaviour, arguments, unmatched)

    def _dns(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        return decide(self._find_dns(behaviour), behaviour, arguments, self._unmatched_dns)

    def _capability(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        return decide(self._find_capability(behaviour), behaviour, arguments, self._unmatched_capabilities)

    def _device(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        return decide(self._find_device(behaviour), behaviour, arguments, self._unmatched_device)

    def _presets(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        verdict = ALLOWED
        for holds, candidate in self.tables.presets:
            if holds(behaviour):
                verdict = stronger(verdict, decide((candidate,), behaviour, arguments, NOTHING))
        return verdict

    def _peer(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        direction, found, unmatched = self._find_peer(behaviour)
        return decide(found, behaviour, arguments, unmatched) if direction else ALLOWED

    def _syscall(self, behaviour: Behaviour, arguments: tuple[str, ...] | None) -> Verdict:
        found = self._find_syscall(behaviour)
        return decide(found, behaviour, arguments, NOTHING) if found else ALLOWED

    def _find_process(self, behaviour: Behaviour, path: str) -> list[Candidate]:
        return self._found(self._lookup_process(path), behaviour.parent or behaviour.executable, behaviour.script)

    def _find_file(self, behaviour: Behaviour, path: str) -> list[Candidate]:
        return self._found(self._lookup_file(path), behaviour.executable, behaviour.script)

    def _find_network(self, behaviour: Behaviour) -> list[Candidate]:
        asked = words(behaviour.family, behaviour.socket_type, behaviour.protocol)
        return self._found(self.tables.protocols.lookup(asked), behaviour.executable, behaviour.script)

    def _find_dns(self, behaviour: Behaviour) -> list[Candidate]:
        return self._found(
            self.tables.names.lookup(behaviour.detail or behaviour.resource), behaviour.executable, behaviour.script
        )

    def _find_capability(self, behaviour: Behaviour) -> list[Candidate]:
        name = (behaviour.detail or behaviour.resource).lower().removeprefix("cap_")
        return self._found(self.tables.capabilities.lookup((name,)), behaviour.executable, behaviour.script)

    def _find_device(self, behaviour: Behaviour) -> list[Candidate]:
        return [candidate for candidate in self.tables.devices if device_matches(candidate.rule.device, behaviour)]

    def _find_peer(self, behaviour: Behaviour) -> tuple[str, list[Candidate], Unmatched]:
        operation = behaviour.operation
        if behaviour.family in LOCAL:
            return "", [], NOTHING
        address = behaviour.address
        if operation in _TAKEN and behaviour.enforcer in _AT_BIND:
            # They stop a forbidden port when it is taken, before anybody connects: who would is not known.
            direction, table, unmatched = "ingress", self.tables.ingress, self._unmatched_ingress
            address = ""
        elif not address:
            return "", [], NOTHING
        elif operation is Operation.ACCEPT:
            direction, table, unmatched = "ingress", self.tables.ingress, self._unmatched_ingress
        elif operation is Operation.CONNECT or operation is Operation.SEND:
            direction, table, unmatched = "egress", self.tables.egress, self._unmatched_egress
            address = destination(address)
        else:
            return "", [], NOTHING
        if table is None:
            return "", [], NOTHING
        asked = words(behaviour.family, behaviour.socket_type, behaviour.protocol)
        return direction, table.lookup(address, behaviour.port, asked), unmatched

    def _find_syscall(self, behaviour: Behaviour) -> list[Candidate]:
        name = behaviour.syscall_name
        # A raw tracepoint knows the name; an LSM hook or a recording of another tool may not, and then any call that does it counts.
        names = (ALIASES.get(name, name),) if name else named(behaviour.operation)
        found: list[Candidate] = []
        if self.tables.syscalls is not None:
            found += self._found(self.tables.syscalls.lookup(names), behaviour.executable, behaviour.script)
        if self.tables.syscall_paths is not None:
            for path in (behaviour.resource, behaviour.resource2):
                if path.startswith("/"):
                    groups = self.tables.syscall_paths.lookup(path)
                    for candidate in self._found(groups, behaviour.executable, behaviour.script):
                        wanted = candidate.rule.syscalls
                        if not wanted or any(name in wanted for name in names):
                            found.append(candidate)
        return found
