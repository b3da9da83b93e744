# SPDX-License-Identifier: Apache-2.0
"""What is known of places in a filesystem before anything was seen: where programs lie, where names are made up, what is secret.

Static on purpose: what a rule looks like may depend on these and on nothing that more evidence could turn round. Pure.
"""

from __future__ import annotations

import re
from typing import Final

_CLOSED: Final = re.compile(
    r"/(?:etc|boot|proc|sys|dev|root/\.ssh|root/\.gnupg|(?:var/)?run/secrets|(?:usr/)?(?:local/)?s?bin|usr/libexec)(?:/.*)?"
)
_TOPS: Final = frozenset(
    {"/", "/usr", "/usr/local", "/usr/share", "/usr/lib", "/var", "/var/lib", "/home", "/root", "/opt", "/lib", "/lib64", "/run",
     "/srv", "/mnt", "/media"}
)  # fmt: skip
_PROGRAM: Final = re.compile(
    r"/(?:usr/(?:local/)?)?(?:lib(?:32|64|x32)?|share|include|libexec|src)(?:/.*)?|/usr/.*|/opt/.*"
)
_TEMPORARY: Final = re.compile(r"/(?:tmp|var/tmp|dev/shm|run/user/[0-9]+)(?:/.*)?")
_PRIVATE: Final = re.compile(r"/(?:home|root|tmp|var/tmp|dev/shm)/.*")
_WRITABLE: Final = re.compile(r"/(?:tmp|var/tmp|dev/shm|run|var/run|proc|home|srv|var/(?:lib|cache|spool|log|www))/.*")
_SECRET: Final = re.compile(
    r"/etc/(?:shadow|gshadow|sudoers)-?|/etc/sudoers\.d/.*|/etc/ssh/ssh_host_.*_key|/(?:root|home/[^/]+)/(?:\.ssh/(?!known_hosts).*"
    r"|\.aws/.*|\.kube/.*|\.docker/config\.json|\.netrc|\.git-credentials|\.[a-z]*_history|\.gnupg/.*|\.config/gcloud/.*)"
    r"|/(?:var/)?run/secrets/.*|/proc/(?:[0-9]+/(?:environ|mem)|kcore|kallsyms)|/dev/(?:mem|kmem|port)|/etc/kubernetes/.*"
    r"|/var/lib/kubelet/.*|(?:/var)?/run/(?:docker|containerd/containerd|crio/crio)\.sock"
)
WITH_SECRETS: Final = ("/etc/", "/root/", "/home/", "/run/", "/var/run/", "/proc/", "/dev/", "/var/lib/kubelet/")
"""Where `_SECRET` begins; most paths lie elsewhere."""
_PERSISTENT: Final = re.compile(
    r"/etc/(?:cron.*|ld\.so\.(?:preload|conf.*)|passwd|shadow|group|gshadow|sudoers.*|profile.*|bash.*|rc.*|init\.d/.*|systemd/.*"
    r"|pam\.d/.*|ssh/.*|inittab|environment)|/var/spool/cron/.*|/(?:root|home/[^/]+)/(?:\.ssh/.*|\.bash.*|\.profile|\.zsh.*"
    r"|\.config/systemd/.*|\.config/autostart/.*)|/(?:usr/)?lib/systemd/.*"
)
_RECORD: Final = re.compile(
    r"/var/log/(?:wtmp|btmp|lastlog|faillog|tallylog|auth\.log|secure|syslog|messages|kern\.log|audit/.*|journal/.*)|(?:/var)?/run/utmp"
)
_CODE: Final = re.compile(r"/(?:usr/)?(?:local/)?(?:s?bin|lib(?:32|64|x32)?|libexec)/.*|/boot/.*")
_SERVED: Final = re.compile(
    r"(?i)(?:/var/www|/srv/(?:www|http)|/usr/share/nginx|/usr/local/apache2/htdocs|/.*/(?:htdocs|public_html|webapps|wwwroot))/.*"
    r"\.(?:php[0-9]?|phtml|phar|jspx?|jspf|war|aspx?|ashx|cgi|pl|py|rb|sh)"
)
_SCRIPT: Final = re.compile(r"(?i)\.(?:php[0-9]?|phtml|phar|jspx?|jspf|war|aspx?|ashx|cgi|pl|py|rb|sh)\Z")
TOOLS: Final = frozenset(
    [
        "nc",
        "ncat",
        "netcat",
        "nc.openbsd",
        "nc.traditional",
        "socat",
        "curl",
        "wget",
        "telnet",
        "ftp",
        "tftp",
        "scp",
        "sftp",
        "ssh",
        "nmap",
        "masscan",
        "tcpdump",
        "gdb",
        "strace",
        "ltrace",
        "chattr",
        "insmod",
        "modprobe",
        "nsenter",
        "unshare",
        "chroot",
        "mount",
        "base64",
        "xxd",
        "openssl",
        "apt",
        "apt-get",
        "dpkg",
        "yum",
        "dnf",
        "apk",
        "pip",
        "pip3",
        "npm",
        "gcc",
        "cc",
        "tcc",
        "as",
        "ld",
        "useradd",
        "usermod",
        "passwd",
        "chpasswd",
        "crontab",
        "at",
        "docker",
        "kubectl",
        "crictl",
        "ctr",
        "capsh",
        "pkexec",
        "sudo",
        "su",
        "ip",
        "ifconfig",
        "ss",
        "netstat",
        "arp",
        "route",
        "iptables",
        "nft",
    ]
)
"""Programs that move data, build programs, look at the network or change the system: ordinary in some workloads, telling where they are new."""
_INTERPRETER: Final = re.compile(r"(?:python|perl|ruby|php|lua|luajit|node|nodejs|tclsh|pypy)[0-9]*(?:\.[0-9]+)*")


def interpreter(name: str) -> bool:
    """Whether a program of this name runs whatever it is given. Shells are none of these: everything starts them."""
    return _INTERPRETER.fullmatch(name) is not None


def closed(directory: str) -> bool:
    """Whether a directory is never stood for by a rule on the whole of it: what it holds is known one by one, or too dear."""
    return _CLOSED.fullmatch(directory) is not None


def top(directory: str) -> bool:
    """Whether so much lies below a directory that no rule stands for all of it, though names in it may be of a kind."""
    return directory in _TOPS


def program(directory: str) -> bool:
    """Whether packages put their own files there: to read one more of them tells nobody a secret."""
    return _PROGRAM.fullmatch(directory) is not None


def temporary(directory: str) -> bool:
    """Whether names there are made up."""
    return _TEMPORARY.fullmatch(directory) is not None


def private(path: str) -> bool:
    """Whether a file there is somebody's own."""
    return _PRIVATE.fullmatch(path) is not None


def writable(path: str) -> bool:
    """Whether workloads write there, so that a program there came from nobody's package."""
    return _WRITABLE.fullmatch(path) is not None


def secret(path: str) -> bool:
    """Keys, tokens, password hashes, the memory of others."""
    return path.startswith(WITH_SECRETS) and _SECRET.fullmatch(path) is not None


def persistent(path: str) -> bool:
    """What is run or believed later because it was written there."""
    return _PERSISTENT.fullmatch(path) is not None


def code(path: str) -> bool:
    """Where programs and libraries lie."""
    return _CODE.fullmatch(path) is not None


def record(path: str) -> bool:
    """Who logged in and what the system did: emptied by who does not want to be seen."""
    return _RECORD.fullmatch(path) is not None


def served(path: str) -> bool:
    """Whether a web server would run it for whoever asks."""
    return _SCRIPT.search(path) is not None and _SERVED.fullmatch(path) is not None
