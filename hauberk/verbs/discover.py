# SPDX-License-Identifier: Apache-2.0
"""`hauberk discover`: least-privilege policies from what workloads did, safe to apply: they allow all of it. Its work is in `hauberk.discovery`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from hauberk.client import parser as verb_parser
from schemas.errors import SettingsError

KINDS = ("KubeArmorPolicy", "KubeArmorHostPolicy")
NETWORK_KINDS = ("NetworkPolicy", "CiliumNetworkPolicy", "CalicoNetworkPolicy", "KubeArmorNetworkPolicy")


def parser() -> argparse.ArgumentParser:
    """Whose, since when, in which form; and what is done with it."""
    made = verb_parser("discover", "Learn policies from what workloads did. Each was judged against everything it was learnt from before it is shown.")  # fmt: skip
    made.add_argument(
        "-p",
        "--policy",
        choices=(*KINDS, *NETWORK_KINDS),
        default=KINDS[0],
        help="what to write (default KubeArmorPolicy)",
    )
    made.add_argument("-n", "--namespace", help="only this namespace")
    made.add_argument("-l", "--selector", "--labels", metavar="K=V,...", default="", help="only workloads with these labels")  # fmt: skip
    made.add_argument("-c", "--container", help="only this container")
    made.add_argument("--node", help="only this node")
    made.add_argument("--since", metavar="DURATION", default="30d", help="how far back (default 30d)")
    made.add_argument("-f", "--format", choices=("yaml", "json"), default="yaml", help="form of the policies")
    made.add_argument("--outdir", metavar="DIR", help="one file for each policy, in a directory for each namespace")
    made.add_argument("--merge", metavar="FILE", help="extend the policies of this file by what they would deny, and show them")  # fmt: skip
    made.add_argument("--explain", action="store_true", help="each rule with its evidence, instead of the policies")
    made.add_argument("--review", action="store_true", help="what was not learnt, and why, instead of the policies; exit 1 when there is any")  # fmt: skip
    made.add_argument("--verify", nargs="?", const=True, metavar="FILE", help="would the network policies of FILE (`-`: standard input; without one: those that would be learnt) let through every connection that was seen; exit 1 when not")  # fmt: skip
    made.add_argument("--accept", metavar="ID,...", default="", help="learn these items of --review all the same")
    made.add_argument("--no-patterns", action="store_true", help="no globs, for enforcers that have none: directories instead")  # fmt: skip
    made.add_argument("--isolate", action="store_true", help="keep workloads that never used the internet off it")
    made.add_argument("--quiet-hours", type=float, default=24.0, metavar="N", help="set apart what comes after so long without anything new (default 24)")  # fmt: skip
    made.add_argument("--apply", action="store_true", help="put the policies in force")
    made.add_argument("--mode", choices=("shadow", "baseline", "enforce"), help="with --apply: watch only (default); tell once what is new; or deny")  # fmt: skip
    made.add_argument("--promote", metavar="NAME", help="make an applied shadow policy or baseline enforce, as it is; NAMESPACE/NAME or -n where several have the name")  # fmt: skip
    return made


def main(argv: Sequence[str]) -> int:
    """Exit 1 when nothing was found."""
    given = parser().parse_args(argv)
    if given.quiet_hours <= 0:
        raise SettingsError(f"expected --quiet-hours above 0, got {given.quiet_hours:g}")
    if sum(map(bool, (given.outdir, given.apply, given.explain, given.review, given.promote, given.verify))) > 1:
        raise SettingsError(
            "expected one of --outdir, --apply, --explain, --review, --promote and --verify, got several"
        )
    if given.mode and not given.apply:
        raise SettingsError(f"expected --apply with --mode, got --mode {given.mode} alone, which puts nothing in force")
    given.mode = given.mode or "shadow"
    if given.verify and given.policy == KINDS[0]:
        given.policy = NETWORK_KINDS[0]
    network = given.policy in NETWORK_KINDS
    if given.verify and (not network or given.policy == NETWORK_KINDS[3]):
        raise SettingsError(
            f"expected --verify with {', '.join(NETWORK_KINDS[:3])}, got {given.policy}, which is verified whenever it is learnt"
        )
    if network and (given.merge or (given.apply and given.policy != NETWORK_KINDS[3])):
        raise SettingsError(
            f"expected a kind of policy that Hauberk enforces with --apply and --merge, got {given.policy}; `kubectl apply -f` takes what is printed"
        )
    if network and given.container:
        raise SettingsError(
            f"expected -c with KubeArmorPolicy, got {given.policy}, which is for pods and nodes with all of their containers"
        )
    if given.policy == NETWORK_KINDS[3] and given.merge:
        raise SettingsError("expected --merge with KubeArmorPolicy and KubeArmorHostPolicy, got KubeArmorNetworkPolicy")
    from hauberk import discovery

    return discovery.promote(given) if given.promote else discovery.discover(given)
