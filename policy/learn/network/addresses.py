# SPDX-License-Identifier: Apache-2.0
"""Addresses outside the cluster: which are left out, and few networks for many of them. Pure.

More addresses only ever widen a network: a policy that is learnt again from more of the same allows no less.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MOST: Final = 16
"""Networks of one rule. Above, they are told by wider ones: /24, /16, all of the internet (of IPv6 /64, /48)."""
_STEPS: Final = {4: (24, 16), 6: (64, 48)}
PRIVATE: Final = tuple(ip_network(text) for text in (
    "10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10",
))  # fmt: skip
"""Networks that are not of the internet (RFC 1918, 6598, 3927, 4193, 4291): pods, nodes and neighbours live there."""
INTERNET: Final = {4: "0.0.0.0/0", 6: "2000::/3"}
_LARGEST_SERVICES: Final = {4: 12, 6: 64}
"""No API server takes a larger range for services."""
_METADATA: Final = frozenset({"169.254.169.254", "fd00:ec2::254", "100.100.100.200"})
"""Where clouds hand out credentials of the machine."""


@lru_cache(maxsize=65536)
def parsed(text: str) -> Address | None:
    """An address; that of IPv4 inside of IPv6 as itself; None for what is none."""
    try:
        found = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found


def network_of(text: str) -> Network | None:
    """A network of two addresses or more; None for what is none."""
    try:
        found = ip_network(text, strict=False)
    except ValueError:
        return None
    return found if found.num_addresses > 1 else None


def loopback(address: Address) -> bool:
    """Whether it never leaves the pod: "any" as a destination is the loopback."""
    return address.is_loopback or address.is_unspecified


def many(address: Address) -> bool:
    """Multicast and broadcast: no form of a network policy speaks of them."""
    return address.is_multicast or address == IPv4Address("255.255.255.255")


def private(address: Address) -> bool:
    """Whether it is not of the internet."""
    return any(address in network for network in PRIVATE if network.version == address.version)


def metadata_service(address: Address) -> bool:
    """Whether a cloud answers there with credentials of the machine."""
    return str(address) in _METADATA


def summarised(addresses: Iterable[str]) -> list[str]:
    """At most about `MOST` networks for each version that cover `addresses`; private and public ones never share a network, and those of the
    link (169.254.0.0/16) stay as they are: a cloud hands out its credentials among them."""
    groups: dict[tuple[int, bool], set[Address]] = {}
    link: set[Address] = set()
    for text in addresses:
        if (address := parsed(text)) is not None:
            near = address.version == 4 and address.is_link_local
            (link if near else groups.setdefault((address.version, private(address)), set())).add(address)
    made = [str(network) for network in _collapsed(ip_network(address) for address in link)]
    for (version, inside), some in sorted(groups.items()):
        networks = [ip_network(address) for address in some]
        found = _collapsed(networks)
        for length in _STEPS[version]:
            if len(found) <= MOST:
                break
            found = _collapsed(network.supernet(new_prefix=length) for network in networks)
        if len(found) > MOST:
            # Of the private ones those that were seen: the others are where clouds hand out credentials, and other people's.
            made += (
                [str(n) for n in _private(version) if any(one in n for one in some)] if inside else [INTERNET[version]]
            )
        else:
            made += [str(network) for network in found]
    return sorted(made, key=_order)


def _order(network: str) -> tuple[int, Network]:
    found = ip_network(network)
    return found.version, found


def service_ranges(addresses: Iterable[str]) -> list[Network]:
    """The networks that services have their addresses of, as far as `addresses` tell: what those have in common that may be of one range."""
    spans: dict[Network, list[Address]] = {}
    for address in [one for text in addresses if (one := parsed(text)) is not None]:
        spans.setdefault(ip_network((address, _LARGEST_SERVICES[address.version]), strict=False), []).append(address)
    made = []
    for some in spans.values():
        first, last = min(some, key=int), max(some, key=int)
        made.append(ip_network((first, first.max_prefixlen - (int(first) ^ int(last)).bit_length()), strict=False))
    return made


def exactly(addresses: Iterable[Address]) -> list[str]:
    """The networks of these addresses and no other."""
    found = [ip_network(address) for address in addresses]
    return [
        str(network) for version in (4, 6) for network in _collapsed(one for one in found if one.version == version)
    ]


def _collapsed(networks: Iterable[Network]) -> list[Network]:
    return list(collapse_addresses(networks))  # type: ignore[type-var]


def _private(version: int) -> list[Network]:
    return [network for network in PRIVATE if network.version == version]


def excluded(network: str) -> list[str]:
    """What a rule on the whole internet leaves out: CNIs would let it reach pods and nodes."""
    if network not in INTERNET.values():
        return []
    version = 4 if "." in network else 6
    whole = ip_network(network)
    return [str(one) for one in _private(version) if one.overlaps(whole)]


def without_private(network: str) -> list[str]:
    """`network` as it is; the whole internet as those of its networks that are not private, for rules that leave nothing out."""
    left: list[Network] = [ip_network(network)]
    for out in map(ip_network, excluded(network)):
        left = [part for one in left for part in (one.address_exclude(out) if _within(out, one) else [one])]  # type: ignore[arg-type]
    return [str(one) for one in sorted(left)]


def _within(one: Network, other: Network) -> bool:
    return one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]
