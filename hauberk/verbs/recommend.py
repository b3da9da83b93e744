# SPDX-License-Identifier: Apache-2.0
"""`hauberk recommend`: hardening policies for images, manifests and what runs. Its work is in `hauberk.recommending`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hauberk.client import parser as verb_parser
from schemas.errors import SettingsError


def parser() -> argparse.ArgumentParser:
    """What is looked at, which templates, and where the answer goes."""
    made = verb_parser(
        "recommend",
        "Recommend hardening policies for images, manifests or what runs, checked against what was recorded.",
        config="; a docker configuration is taken as with -c",
    )
    made.add_argument(
        "what",
        nargs="?",
        choices=("update",),
        help="`update PATH`: take templates from a file, a directory or an archive",
    )
    made.add_argument("path", nargs="?", help=argparse.SUPPRESS)
    made.add_argument("-i", "--image", metavar="IMAGE", action="append", default=[], help="an OCI layout, an archive of `docker save`, or an image in a registry; repeatable")  # fmt: skip
    made.add_argument("-f", "--file", metavar="PATH", action="append", default=[], help="manifests: a file or a directory; repeatable")  # fmt: skip
    made.add_argument("--engine", metavar="PLACE", nargs="?", const="auto", help="read images from the store of this machine's container engine: the socket of Docker or Podman, or the directory of containerd, CRI-O or Podman; without PLACE the first that is found")  # fmt: skip
    made.add_argument("--kubeconfig", metavar="FILE", help="workloads of a running cluster, asked of its API server; '' takes $KUBECONFIG, ~/.kube/config or the pod's account")  # fmt: skip
    made.add_argument("--context", metavar="NAME", help="context of the kubeconfig")
    made.add_argument("--pull", action="store_true", help="read the images that manifests and workloads name from their registries")  # fmt: skip
    made.add_argument("--platform", metavar="ARCH", default="", help="architecture of images, as `amd64`, `arm64` (default this machine's)")  # fmt: skip
    made.add_argument("-c", "--docker-config", metavar="FILE", default="", help="docker's configuration with credentials (default ~/.docker/config.json)")  # fmt: skip
    made.add_argument("-n", "--namespace", help="only workloads of this namespace")
    made.add_argument(
        "-l", "--selector", "--labels", metavar="K=V,...", default="", help="only workloads with these labels"
    )
    made.add_argument("-t", "--tag", metavar="TAG,...", default="", help="only templates of these frameworks or tags (`MITRE`, `CIS`, `T1105`)")  # fmt: skip
    made.add_argument("-p", "--policy", metavar="NAME,...", default="", help="only these templates")
    made.add_argument(
        "--since", metavar="DURATION", default="30d", help="how far back recorded behaviour counts (default 30d)"
    )
    made.add_argument(
        "-o", "--outdir", metavar="DIR", help="one file for each policy, in a directory for each namespace"
    )
    made.add_argument("-r", "--report", metavar="FILE", help="report as text, or by its ending as .md, .html, .json or .sarif; `-` prints it as text instead of the policies")  # fmt: skip
    return made


def main(argv: Sequence[str]) -> int:
    """Exit 1 when nothing is recommended."""
    given = parser().parse_args(argv)
    from hauberk import recommending
    from hauberk.images.credentials import is_docker_configuration

    # karmor's `-c/--config` is docker's configuration, and every verb's here the settings: none has a key of the other.
    if given.config and not given.docker_config and is_docker_configuration(Path(given.config)):
        given.config, given.docker_config = None, given.config

    if given.what == "update":
        if not given.path:
            raise SettingsError("expected `hauberk recommend update PATH`, got no path")
        return recommending.update(given)
    if given.path:
        raise SettingsError(f"expected -i for images and -f for manifests, got `{given.path}` alone")
    return recommending.recommend(given)
