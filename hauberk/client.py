# SPDX-License-Identifier: Apache-2.0
"""What verbs that talk to a running Hauberk share: the bus is opened as any other reader's would be, no private door."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from hauberk.output import FORMATS
from schemas.errors import DecodeError, Permanent, SettingsError

if TYPE_CHECKING:
    from bus.contract import Bus

S = TypeVar("S")
T = TypeVar("T")

THROUGH: Final = {"get": "cluster", "describe": "cluster", "logs": "cluster", "summary": "sink-store"}
"""Verbs that may be run in a cluster -> component of the pod that can answer: the summary store lies with its sink."""
CLUSTER_OPTIONS: Final = ("--kubeconfig", "--context", "--installed-in")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def parser(verb: str, description: str, *, config: str = "") -> argparse.ArgumentParser:
    """A verb's parser with the options every verb has. `config`: what else `--config` takes there."""
    made = argparse.ArgumentParser(prog=f"hauberk {verb}", description=description, allow_abbrev=False)
    _add_settings(made, None, [], config)
    if verb in THROUGH:
        _add_cluster(made)
    return made


def _add_cluster(made: argparse.ArgumentParser) -> None:
    group = made.add_argument_group(
        "through a cluster", "run the verb in a pod of Hauberk there, as `kubectl exec` would"
    )
    group.add_argument(
        "--kubeconfig", metavar="FILE", help="kubeconfig of the cluster; '' takes $KUBECONFIG or ~/.kube/config"
    )
    group.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    group.add_argument(
        "--installed-in", metavar="NAMESPACE", default="hauberk", help="where Hauberk runs (default hauberk)"
    )


def through_cluster(verb: str, words: Sequence[str]) -> bool:
    """Whether `words` of this verb name a cluster to run it in. SettingsError for a verb that has another way there."""
    named = any(word.partition("=")[0] in CLUSTER_OPTIONS for word in words)
    if named and verb == "policy":
        raise SettingsError(
            "expected no --kubeconfig, --context or --installed-in, `policy` is run here: name `cluster:` in the place of a file, and the "
            "kubeconfig by $KUBECONFIG or `--set cluster.server.kubeconfig=FILE`; `diff` and `backtest` need the summary store, which lies in "
            "the pod of the sink `store`: `kubectl exec -i -n hauberk deployment/hauberk-sink-store -- hauberk policy ...`"
        )
    return verb in THROUGH and named


def cluster_options(verb: str, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options that name the cluster, and the words that are left for the verb there. Exits with 2 for settings of a bus."""
    made = argparse.ArgumentParser(prog=f"hauberk {verb}", allow_abbrev=False, add_help=False)
    _add_settings(made, None, [])
    _add_cluster(made)
    given, rest = made.parse_known_args(list(words))
    if given.config or given.set or given.state:
        made.error(
            "--config, --set and --state are of a bus that is reached from here: leave them out, or --kubeconfig, --context and --installed-in"
        )
    return given, rest


def _add_settings(made: argparse.ArgumentParser, nothing: Any, no_sets: Any, config: str = "") -> None:
    group = made.add_argument_group("settings")
    group.add_argument(
        "--config",
        metavar="FILE",
        default=nothing,
        help=f"settings file (.toml, .yaml, .json); default HAUBERK_CONFIG{config}",
    )
    group.add_argument("--set", metavar="A.B=VALUE", action="append", default=no_sets, help="one setting; repeatable")
    group.add_argument(
        "--state",
        metavar="DIR",
        default=nothing,
        help="state directory; default HAUBERK_STATE, /var/lib/hauberk, or XDG's",
    )


def sub_parser(below: Any, name: str, text: str) -> argparse.ArgumentParser:
    """A sub-verb that takes the settings options too, so that they may stand on either side of its name."""
    made: argparse.ArgumentParser = below.add_parser(
        name, help=text, description=f"{text[0].upper()}{text[1:]}.", allow_abbrev=False
    )
    _add_settings(made, argparse.SUPPRESS, argparse.SUPPRESS)
    return made


def add_output(made: argparse.ArgumentParser, *extra: str) -> None:
    """`-o` and `--no-headers`, as kubectl has them."""
    made.add_argument("-o", "--output", choices=(*FORMATS, *extra), default="table", help="form of the answer")
    made.add_argument("--no-headers", action="store_true", help="no line of headings")


def add_scope(made: argparse.ArgumentParser) -> None:
    """`-n`, `-A` and `-l`, as kubectl has them."""
    made.add_argument("-n", "--namespace", help="only this namespace")
    made.add_argument("-A", "--all-namespaces", action="store_true", help="every namespace (the default)")
    made.add_argument("-l", "--selector", metavar="K=V,...", default="", help="only workloads with these labels")


def labels(text: str) -> dict[str, str]:
    """`a=b,c=d` as a mapping; SettingsError for anything else."""
    found = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not key:
            raise SettingsError(f"expected labels as `key=value,key=value`, got `{part}` in `{text}`")
        found[key.strip()] = value.strip()
    return found


def seconds(text: str) -> float:
    """`90s`, `5m`, `2h`, `7d` or plain seconds as seconds; SettingsError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    if not match:
        raise SettingsError(f"expected a duration such as 90s, 5m, 2h or 7d, got `{text}`")
    return float(match[1]) * _UNITS[match[2] or "s"]


def with_bus(given: argparse.Namespace, work: Callable[[Bus], Awaitable[T]]) -> T:
    """Run `work` with the configured bus open."""
    from hauberk.configuration import client_bus

    async def run() -> T:
        bus = await client_bus(given)
        try:
            answer = await work(bus)
        finally:
            await bus.close()
        if bus.damaged():
            raise DecodeError(damage_text(bus))
        return answer

    return asyncio.run(run())


class Unreadable:
    """How many of `what` could not be read. One bad record hides no other: `tell` says on standard error how many there are, and
    again when there are more."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._many = self._told = 0
        self._first: Permanent | None = None

    def read(self, decode: Callable[[S], T], value: S) -> T | None:
        """`decode(value)`, or None."""
        try:
            return decode(value)
        except Permanent as error:
            self._many += 1
            self._first = self._first or error
            return None

    def tell(self) -> None:
        """When all were read."""
        if self._many > self._told:
            self._told = self._many
            print(f"hauberk: {self._many} {self._what} left out, the first because: {self._first}", file=sys.stderr)


def readable(values: Iterable[S], decode: Callable[[S], T], what: str) -> list[T]:
    """What can be read of `values`; the rest is told as `Unreadable` does."""
    bad = Unreadable(what)
    found = [one for value in values if (one := bad.read(decode, value)) is not None]
    bad.tell()
    return found


def damage_text(bus: Bus) -> str:
    """One sentence about them."""
    count = bus.damaged()
    return (
        f"expected readable files on the bus, got {count} that {'is' if count == 1 else 'are'} damaged and now put aside as "
        "`*.corrupt`; their records are not shown, `hauberk doctor` lists them"
    )
