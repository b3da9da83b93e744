# SPDX-License-Identifier: Apache-2.0
"""The front door: a table of verbs, each imported on use, and the one place where an error becomes a line and an exit code.

Nothing heavy is imported here: `hauberk --help` has 100 ms. Exit codes: 0 done, 1 the answer is no (differences, failed
tests, nothing found), 2 the input is wrong, 3 something outside is not there, 70 a mistake of ours, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from schemas.errors import HauberkError, KernelError, MissingDependency, Refused, Temporary

VERBS: Final[dict[str, tuple[str, str]]] = {
    "up": ("Run every stage in this process, over the embedded bus", "run"),
    "node": ("Run the sensor, the inventory and the enforcement of this node", "run"),
    "processor": ("Run the processors: frames in, alerts, telemetry and summaries out", "run"),
    "planner": ("Run the planner: policies and inventory in, plans out", "run"),
    "sink": ("Run the configured sinks", "run"),
    "cluster": ("Watch a Kubernetes cluster: pods, namespaces, nodes and policies to the bus", "run"),
    "probe": ("Show what this kernel offers, what was chosen, and why not the rest", "node"),
    "record": ("Record the raw ring of this node to a file", "node"),
    "hook": ("Print the OCI hook that has containers wait for their rules", "node"),
    "release": ("Take everything on this node from under enforcement, at once", "node"),
    "doctor": ("Check this installation and show how to fix what is wrong", "node"),
    "apply": ("Apply policies from files", "policy"),
    "confirm": ("Keep policies that were applied with --confirm", "policy"),
    "get": ("List policies, workloads, alerts or nodes", "policy"),
    "describe": ("Show one policy, workload, node or alert in full", "policy"),
    "delete": ("Delete policies, or forget a node that left", "policy"),
    "policy": ("Check, test, explain, lint, diff and backtest policies", "policy"),
    "recommend": ("Recommend hardening policies for images, manifests and what runs", "policy"),
    "discover": ("Learn least-privilege policies from what workloads did", "policy"),
    "logs": ("Follow alerts and telemetry", "see"),
    "summary": ("Show what workloads did, from the summary store", "see"),
    "topic": ("List the topics of the bus, or print their records", "see"),
    "settings": ("Show the effective settings and where each came from", "other"),
    "version": ("Print the version", "other"),
    "completion": ("Print a completion script for bash, zsh or fish", "other"),
}
"""verb: (one line, group in `--help`). The module is `hauberk.verbs.<verb>`, the function `main(argv) -> int`."""

RENAMED: Final = {"enforcer": "planner"}
"""Old name of a verb: its name. The old one is accepted, with a line on standard error, until version 0.3."""

GROUPS: Final = {
    "run": "Run", "node": "This node", "policy": "Policies", "see": "See what happens", "other": "Other",
}  # fmt: skip


def usage() -> str:
    """The text of `hauberk --help`."""
    lines = ["Runtime security for containers, Kubernetes and Linux hosts.", "", "Usage: hauberk VERB [options]"]
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {verb:<11} {text}" for verb, (text, member) in VERBS.items() if member == group]
    lines += [
        "",
        "`hauberk VERB --help` shows a verb's options. Settings: file by --config or HAUBERK_CONFIG, then HAUBERK__A__B, then --set.",
    ]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    if os.getpid() == 1:
        # The kernel drops a signal to the first process of a container while there is no handler: a stop during the imports would be
        # waited out and end in SIGKILL. A verb that runs on sets its own.
        import signal

        # Ended as other processes are, without an exception: raised in the midst of an import it can be swallowed, or crash a C module.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))
    try:
        code = _run(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (`| head`) is gone: point stdout elsewhere so that the interpreter's flush at exit stays quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-V", "--version"):
        words[0] = "version"
    verb = words.pop(0)
    if verb in RENAMED:
        print(
            f"hauberk: the verb `{verb}` is now `{RENAMED[verb]}`; the old name ends with version 0.3", file=sys.stderr
        )
        verb = RENAMED[verb]
    if verb not in VERBS:
        import difflib

        near = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean `{near[0]}`?" if near else "; `hauberk --help` lists them"
        print(f"hauberk: expected a verb, got `{verb}`{hint}", file=sys.stderr)
        return 2
    if VERBS[verb][1] == "run":
        from hauberk.allocator import settle

        settle()
    if verb == "node":
        from bus.openssl import leave_out

        leave_out()
    try:
        if any(word.startswith(("--kubeconfig", "--context", "--installed-in")) for word in words):
            from hauberk.client import through_cluster

            if through_cluster(verb, words):
                from hauberk.in_cluster import run

                return run(verb, words)
        return int(import_module(f"hauberk.verbs.{verb}").main(words))
    except KeyboardInterrupt:
        return 130
    except HauberkError as error:
        print(f"hauberk {verb}: {_line(error)}", file=sys.stderr)
        return 3 if isinstance(error, OUTSIDE) else 2
    except BrokenPipeError:
        raise
    except OSError as error:
        print(f"hauberk {verb}: {_of_system(error)}", file=sys.stderr)
        return 3
    except Exception as error:
        cause = error.__cause__
        if isinstance(cause, OSError):
            print(f"hauberk {verb}: {_of_system(cause)}", file=sys.stderr)
            return 3
        if os.environ.get("HAUBERK_LOG", "").upper() == "DEBUG":
            raise
        print(
            f"hauberk {verb}: expected no such error, got {type(error).__name__}: {_line(error)}; this is a bug in Hauberk, "
            "report it with what HAUBERK_LOG=DEBUG prints",
            file=sys.stderr,
        )
        return 70


OUTSIDE: Final = (Temporary, KernelError, MissingDependency, Refused)
"""What is no fault of the input: exit code 3."""


def _line(error: BaseException) -> str:
    """What a registry, a file or a workload said may be in it."""
    from hauberk.output import printable

    return printable(" ".join(str(error).split()))


def _of_system(error: OSError) -> str:
    where = f"`{error.filename}`" if error.filename else "the state directory"
    if isinstance(error, PermissionError):
        return f"expected permission for {where}, got none; run as root or choose another directory with --state"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"expected room to write {where}, the disk is full; free some and start again"
    return f"expected {where} to be usable, got: {error.strerror or _line(error)}; fix it or name another"
