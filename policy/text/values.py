# SPDX-License-Identifier: Apache-2.0
"""What single values must look like: paths, protocols, capabilities, domains, ports and the rest of kubearmor.md 1.4.

What the CRD of KubeArmor refuses is an error. What it takes and nobody can mean (`xxtcp`: its expressions have no `^`) is a warning,
and the rule never matches: `void` says why, for the compiler and for receipts. A check says what is wrong through `Say`
and never changes the value: making it canonical is `normalise`'s work, which uses the same tables.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final, Protocol

from policy.match import glob
from policy.text import codes
from policy.text.codes import Code
from policy.text.suggest import nearest
from schemas.errors import PolicyError
from schemas.syscalls import NAMES as SYSCALLS
from schemas.syscalls import NUMBERS


class Say(Protocol):
    """Reports a finding at the value being checked."""

    def __call__(self, code: Code, message: str, *, expected: str = "", suggestion: str = "") -> None: ...


PROTOCOLS: Final = (
    "tcp", "udp", "raw", "icmp", "icmpv6", "sctp", "stream", "dgram", "rdm", "seqpacket", "dccp", "packet", "all",
)  # fmt: skip
CAPABILITIES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
"""In the order of their numbers in linux/capability.h, but for syslog and what follows mac_admin: 34 to 40."""
BEYOND: Final = frozenset(CAPABILITIES[34:])
"""Capabilities that KubeArmor's CRD does not list."""
PRESETS: Final = ("filelessExec", "anonymousMapExec", "protectEnv", "exec", "protectProc")
_CRD_PROTOCOL: Final = re.compile("(" + "|".join((*PROTOCOLS, *map(str.upper, PROTOCOLS))) + r")\Z")
_CRD_CAPABILITY: Final = re.compile("(" + "|".join(CAPABILITIES[:34]) + r")\Z")
_CRD_SYSCALLS: Final = frozenset(name for name, (row, *_) in NUMBERS.items() if row is not None and row < 335)
"""The system calls of the CRD's enumeration: x86-64 up to rseq, 334."""
DEVICE_CLASSES: Final[dict[str, int]] = {
    "ALL": -1, "AUDIO": 1, "COMMUNICATIONS": 2, "CDC": 2, "CDC-CONTROL": 2, "HID": 3, "PHYSICAL": 5, "IMAGE": 6,
    "STILL-IMAGE": 6, "PRINTER": 7, "MASS-STORAGE": 8, "HUB": 9, "CDC-DATA": 10, "SMART-CARD": 11,
    "CONTENT-SECURITY": 13, "VIDEO": 14, "PERSONAL-HEALTHCARE": 15, "AUDIO-VIDEO": 16, "BILLBOARD": 17,
    "USB-TYPE-C-BRIDGE": 18, "DIAGNOSTIC": 220, "WIRELESS-CONTROLLER": 224, "MISCELLANEOUS": 239,
    "APPLICATION-SPECIFIC": 254, "VENDOR-SPECIFIC": 255,
}  # fmt: skip
"""Base classes of usb.org's defined class codes, with the words of its table joined by `-`."""
SERVICES: Final[dict[str, int]] = {
    "ftp": 21, "ssh": 22, "telnet": 23, "smtp": 25, "domain": 53, "dns": 53, "bootps": 67, "bootpc": 68, "tftp": 69,
    "http": 80, "kerberos": 88, "pop3": 110, "sunrpc": 111, "ntp": 123, "imap": 143, "imap2": 143, "snmp": 161,
    "snmp-trap": 162, "bgp": 179, "ldap": 389, "https": 443, "microsoft-ds": 445, "submissions": 465, "syslog": 514,
    "submission": 587, "ipp": 631, "ldaps": 636, "domain-s": 853, "imaps": 993, "pop3s": 995, "openvpn": 1194,
    "ms-sql-s": 1433, "nfs": 2049, "mysql": 3306, "rdp": 3389, "postgresql": 5432, "amqp": 5672, "redis": 6379,
    "http-alt": 8080, "mongodb": 27017,
}  # fmt: skip
"""Service names a network policy may use for a port (IANA's registry, the common ones)."""

_PATH = re.compile(r"/+.*[^/]", re.DOTALL)
_DIRECTORY = re.compile(r"/|/.*/", re.DOTALL)
_DOMAIN = re.compile(r"\.?(?:\*\.)?(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)(?:\.[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?)*\.?", re.IGNORECASE)  # fmt: skip
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
WRONG: Final = 20
"""Names of one comma list that are told to be wrong; a list has at most 41 right ones."""
QUANTITY: Final = re.compile(r"([0-9]{1,15})(KB|MB|GB|K|M|G)?")
DURATION: Final = re.compile(r"([0-9]{1,9})(s|m|h)")


def elements(text: str) -> list[str]:
    """A comma list without blanks, as KubeArmor's agent reads it; empty elements are dropped."""
    return [part for part in ("".join(piece.split()) for piece in text.split(",")) if part]


def path(text: str, say: Say, directory: str = "move it to `matchDirectories` as `dir`") -> None:
    """The absolute path of a file. `directory`: what to do with one that ends as directories do."""
    if not text:
        say(codes.EMPTY, "the path is empty", expected="an absolute path such as `/usr/bin/curl`")
    elif not text.startswith("/"):
        help_ = "for a name without directory use `execname`" if "/" not in text else f"write `/{text}`"
        say(codes.PATH, f"`{text}` is not an absolute path", expected="a path that starts with `/`", suggestion=help_)
    elif text.endswith("/"):
        say(codes.PATH, f"`{text}` is a directory", expected="the path of a file", suggestion=directory)
    elif not _PATH.fullmatch(text):
        say(codes.PATH, f"`{text}` is not the path of a file", expected="an absolute path such as `/usr/bin/curl`")
    else:
        _plausible(text, say)


def source_path(text: str, say: Say) -> None:
    """The absolute path of an executable that acts."""
    path(text, say, f"write `dir: {text}`")


def directory(text: str, say: Say) -> None:
    """The absolute path of a directory, slash at the end."""
    if not text:
        say(codes.EMPTY, "the directory is empty", expected="an absolute path such as `/etc/`")
    elif not text.startswith("/"):
        say(
            codes.DIRECTORY,
            f"`{text}` is not an absolute path",
            expected="a path that starts and ends with `/`",
            suggestion=f"write `/{text.strip('/')}/`",
        )
    elif not _DIRECTORY.fullmatch(text):
        say(
            codes.DIRECTORY,
            f"`{text}` does not end with `/`",
            expected="a path that starts and ends with `/`",
            suggestion=f"write `{text}/`",
        )
    else:
        _plausible(text, say)


def source_directory(text: str, say: Say) -> None:
    """A directory of executables; KubeArmor's CRD does not ask for the slash at its end."""
    directory(text if text.endswith("/") or not text else text + "/", say)


def path_or_directory(text: str, say: Say) -> None:
    """What a system call rule may name."""
    (directory if text.endswith("/") else path)(text, say)


def _plausible(text: str, say: Say) -> None:
    if "\0" in text:
        say(codes.NEVER, f"`{text}` holds a NUL byte, which no name does", suggestion="remove `\\0`")
    elif ".." in text.split("/"):
        say(
            codes.NEVER,
            f"`{text}` holds `..`, which no path that the kernel reports does",
            suggestion="write the resolved path",
        )
    elif any(char in text for char in "*?") and "[" not in text:
        say(
            codes.NEVER,
            f"`{text}` is compared letter by letter, `*` and `?` too",
            suggestion="use `matchPatterns` with `pattern`",
        )


def execname(text: str, say: Say) -> None:
    """A bare executable name."""
    if not text:
        say(codes.EMPTY, "the name is empty", expected="a name such as `curl`")
    elif "/" in text:
        say(
            codes.EXECNAME,
            f"`{text}` holds a directory",
            expected="a name without `/`",
            suggestion=f"use `path: {text}`, or write `{text.rstrip('/').rpartition('/')[2]}`",
        )


def pattern(text: str, say: Say) -> None:
    """A glob of the dialect in `policy/match/glob.py`."""
    if not text:
        say(codes.PATTERN, "the pattern is empty", expected="a glob such as `/**/curl`")
    elif text[0] not in "/*?[{":
        say(
            codes.NEVER,
            f"`{text}` matches no path: they all start with `/`",
            suggestion=f"write `/**/{text}`" if "/" not in text else "",
        )
    else:
        try:
            glob.parse(text)
        except PolicyError as error:
            say(codes.PATTERN, str(error))


def protocol(text: str, say: Say) -> None:
    """A comma list of protocols, each all lower or all upper case."""
    names = elements(text)
    wrong = 0
    taken = _CRD_PROTOCOL.search(text) is not None
    if not names:
        say(codes.EMPTY, "the protocol is empty", expected=", ".join(PROTOCOLS))
    for name in names:
        if name in PROTOCOLS or (name.lower() in PROTOCOLS and name == name.upper()):
            continue
        wrong += 1
        if wrong > WRONG:
            return
        if name.lower() in PROTOCOLS:
            say(
                codes.LOOSE_NAME if taken else codes.CASE,
                f"`{name}` mixes cases",
                expected="all lower or all upper case",
                suggestion=f"write `{name.lower()}`",
            )
            continue
        near = nearest(name, PROTOCOLS)
        say(
            codes.LOOSE_NAME if taken else codes.PROTOCOL,
            f"`{name}` is not a protocol",
            expected=", ".join(PROTOCOLS),
            suggestion=f"did you mean `{near}`?" if near else "",
        )


def capability(text: str, say: Say) -> None:
    """A comma list of capabilities."""
    names = elements(text)
    wrong = 0
    taken = _CRD_CAPABILITY.search(text) is not None
    if not names:
        say(codes.EMPTY, "the capability is empty", expected="a name such as `net_raw`")
    for name in names:
        if name in BEYOND:
            say(codes.EXTRA_NAME, f"KubeArmor does not know the capability `{name}`")
        elif name not in CAPABILITIES:
            wrong += 1
            if wrong > WRONG:
                return
            bare = name.lower().removeprefix("cap_").replace("-", "_")
            if bare in CAPABILITIES:
                say(
                    codes.LOOSE_NAME if taken else codes.CASE,
                    f"`{name}` is not how capabilities are written",
                    expected="lower case without `CAP_`",
                    suggestion=f"write `{bare}`",
                )
            else:
                near = nearest(bare, CAPABILITIES)
                say(
                    codes.LOOSE_NAME if taken else codes.CAPABILITY,
                    f"`{name}` is not a capability",
                    expected="a name such as `net_raw`",
                    suggestion=f"did you mean `{near}`?" if near else "",
                )


def syscall(text: str, say: Say) -> None:
    """One system call name."""
    if not text:
        say(codes.EMPTY, "the system call is empty", expected="a name such as `ptrace`")
    elif text not in SYSCALLS:
        bare = text.lower().removeprefix("sys_").removeprefix("__nr_")
        if bare in SYSCALLS:
            say(
                codes.CASE,
                f"`{text}` is not how system calls are written",
                expected="lower case without prefix",
                suggestion=f"write `{bare}`",
            )
        else:
            near = nearest(bare, sorted(SYSCALLS))
            say(
                codes.SYSCALL,
                f"`{text}` is not a system call",
                expected="a name such as `ptrace`",
                suggestion=f"did you mean `{near}`?" if near else "",
            )
    elif text not in _CRD_SYSCALLS:
        say(codes.BEYOND, f"the API of KubeArmor does not know the system call `{text}`")


def preset(text: str, say: Say) -> None:
    """A preset by its name."""
    if text not in PRESETS:
        near = nearest(text, PRESETS)
        say(
            codes.PRESET,
            f"`{text}` is not a preset",
            expected=", ".join(PRESETS),
            suggestion=f"did you mean `{near}`?" if near else "",
        )


def domain(text: str, say: Say) -> None:
    """A comma list of domain names."""
    names = elements(text)
    if not names:
        say(codes.DOMAIN, "the domain is empty", expected="a name such as `example.com`")
    for name in names:
        if "://" in name or "/" in name:
            host = name.partition("://")[2].partition("/")[0] or name.partition("/")[0]
            say(
                codes.DOMAIN,
                f"`{name}` is an address of a page",
                expected="a domain name",
                suggestion=f"write `{host}`",
            )
        elif not is_domain(name):
            say(codes.DOMAIN, f"`{name}` is not a domain name", expected="a name such as `example.com`")


def is_domain(name: str) -> bool:
    """Whether one element of a domain list can be asked for in DNS."""
    return _DOMAIN.fullmatch(name) is not None and len(name.strip(".")) <= 253


def device_class(text: str, say: Say) -> None:
    """A USB class by name or number."""
    if class_number(text) is None:
        near = nearest(text, DEVICE_CLASSES)
        say(
            codes.DEVICE,
            f"`{text}` is not a USB device class",
            expected="a class name, a number from 0 to 255, or `ALL`",
            suggestion=f"did you mean `{near}`?" if near else "",
        )


def class_number(text: str) -> int | None:
    """The number of a USB class, -1 for `ALL`, None for what is none."""
    name = re.sub(r"[ _]", "-", text.strip().upper())
    if name in DEVICE_CLASSES:
        return DEVICE_CLASSES[name]
    if re.fullmatch(r"0[xX][0-9a-fA-F]{1,4}|[0-9]{1,5}", text) is None:
        return None
    number = int(text, 16 if text[:2].lower() == "0x" else 10)
    return number if number <= 255 else None


def cidr(text: str, say: Say) -> None:
    """An IP network or address."""
    if network(text) is None:
        say(codes.CIDR, f"`{text}` is not a network", expected="an IPv4 or IPv6 network such as `10.0.0.0/8`")


_MAPPED: Final = ipaddress.IPv6Network("::ffff:0:0/96")


def network(text: str) -> str | None:
    """An IP network in its canonical form; None for what is none. One of IPv4 addresses inside of IPv6 is that of IPv4."""
    try:
        made = ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None
    if isinstance(made, ipaddress.IPv6Network) and made.subnet_of(_MAPPED):
        return str(ipaddress.IPv4Network((made.network_address.packed[-4:], made.prefixlen - _MAPPED.prefixlen)))
    return str(made)


def port(text: str, say: Say) -> None:
    """A port number or service name."""
    if port_number(text) is None:
        near = nearest(text, SERVICES)
        say(
            codes.PORT,
            f"`{text}` is not a port",
            expected="1 to 65535 or a service name",
            suggestion=f"did you mean `{near}`?" if near else "",
        )


def port_number(text: str) -> int | None:
    """The number of a port; None for what is none."""
    if re.fullmatch(r"[0-9]{1,5}", text):
        number = int(text)
        return number if 1 <= number <= 65535 else None
    return SERVICES.get(text.lower())


def limit(text: str, say: Say) -> None:
    """An amount of data."""
    if not QUANTITY.fullmatch(text):
        say(codes.QUANTITY, f"`{text}` is not an amount of data", expected="digits and KB, MB or GB, such as `500MB`")


def duration(text: str, say: Say) -> None:
    """A length of time."""
    if not DURATION.fullmatch(text):
        say(codes.DURATION, f"`{text}` is not a duration", expected="digits and s, m or h, such as `30m`")


def subdomain_name(text: str, say: Say) -> None:
    """A name of an object: RFC 1123 subdomain as Kubernetes checks it, 253 characters in all and no limit per part."""
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        better = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.")[:253]
        say(
            codes.NAME,
            f"`{text}` is not a name Kubernetes takes",
            expected="lower-case letters, digits, `-` and `.`, at most 253, a letter or digit at both ends",
            suggestion=f"write `{better}`" if better and better != text else "",
        )


def label_name(text: str, say: Say) -> None:
    """A namespace: RFC 1123 label."""
    if not _LABEL.fullmatch(text):
        say(
            codes.NAMESPACE,
            f"`{text}` is not a namespace Kubernetes takes",
            expected="lower-case letters, digits and `-`, at most 63, a letter or digit at both ends",
        )
