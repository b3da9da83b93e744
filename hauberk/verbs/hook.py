# SPDX-License-Identifier: Apache-2.0
"""`hauberk hook`: what a container runtime needs so that rules are in force before a container's first program: an OCI hook as JSON."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from hauberk.client import parser as verb_parser
from sensors.containers import start_hook


def parser() -> argparse.ArgumentParser:
    """The form, and the hook's own options."""
    made = verb_parser(
        "hook",
        "Print the OCI hook that has each container wait until its rules are in force; `inventory.start_socket` opens its other side.",
    )
    made.add_argument("--form", choices=("hooks.d", "spec"), default="hooks.d",
                      help="hooks.d: a file of /etc/containers/oci/hooks.d, for CRI-O and podman; spec: `hooks` of a runtime specification, for "
                      "containerd's base_runtime_spec (default hooks.d)")  # fmt: skip
    made.add_argument("--program", metavar="FILE", default=start_hook.__file__,
                      help="where the program of the hook lies on the host (default: in this installation)")  # fmt: skip
    made.add_argument("--python", metavar="FILE", default=sys.executable,
                      help="interpreter on the host, 3.9 or newer (default: this one)")  # fmt: skip
    made.add_argument("--socket", metavar="FILE", default="",
                      help=f"`inventory.start_socket` as the host has it (default: that setting, or {start_hook.SOCKET})")  # fmt: skip
    made.add_argument("--seconds", type=float, default=start_hook.SECONDS,
                      help=f"longest wait of a container (default {start_hook.SECONDS:g})")  # fmt: skip
    made.add_argument("--unanswered", choices=("start", "refuse"), default="start",
                      help="what becomes of a container whose rules are not known to be in force by then (default start)")  # fmt: skip
    made.add_argument("--exempt", action="append", default=[], metavar="NAMESPACE",
                      help="with `refuse`: containers of this namespace start all the same; repeatable. Name Hauberk's own")  # fmt: skip
    return made


def hook(given: argparse.Namespace, path: str) -> dict[str, Any]:
    """The hook as the runtime specification has it. `path`: of the socket. ValueError for options that it would refuse."""
    words = ["--socket", path, "--seconds", f"{given.seconds:g}", "--unanswered", given.unanswered]
    words += [word for name in given.exempt for word in ("--exempt", name)]
    start_hook.Options(words)
    # `timeout`: a hook that hangs all the same is ended by the runtime, and the container with it.
    return {
        "path": given.python, "args": [given.python, "-I", "-S", given.program, *words], "timeout": int(given.seconds) + 10,
    }  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Print it."""
    import msgspec

    from hauberk.configuration import node_configuration
    from schemas.errors import SettingsError

    given = parser().parse_args(argv)
    path = given.socket
    if not path:
        settings, _, _ = node_configuration(given)
        path = settings.inventory.start_socket or start_hook.SOCKET
    try:
        made = hook(given, path)
    except ValueError as error:
        raise SettingsError(str(error)) from error
    found: dict[str, Any] = {"createRuntime": [made]}
    if given.form == "hooks.d":
        found = {"version": "1.0.0", "hook": made, "when": {"always": True}, "stages": ["createRuntime"]}
    print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    return 0
