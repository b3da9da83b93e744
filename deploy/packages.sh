#!/usr/bin/env bash
# Installs the distribution packages that Hauberk needs and this machine lacks. Usage: deploy/packages.sh run|test
# Asks nothing, changes nothing that is already there. Without root or apt it says what is missing and goes on:
# `hauberk up --replay` and every test that needs none of these still work.
set -euo pipefail

run=(python3-bpfcc)
test=(rsyslog rsyslog-gnutls prometheus docker.io containerd runc crun podman busybox-static iproute2 openssl gcc libc6-dev
    default-jdk-headless maven util-linux qemu-system-x86 zstd kmod debian-archive-keyring apparmor curl mmdebstrap iptables)
# For the tests of the web page; any other of this family on PATH does as well. Ubuntu has none as a package: skipped with a reason.
browser=chromium-headless-shell

case "${1:-}" in
    run) wanted=("${run[@]}") ;;
    test) wanted=("${run[@]}" "${test[@]}") ;;
    *) echo "usage: $0 run|test" >&2; exit 2 ;;
esac

if ! command -v dpkg-query >/dev/null; then
    echo "packages: this is no Debian or Ubuntu; install the equivalents of: ${wanted[*]}" >&2
    exit 0
fi
missing=()
for package in "${wanted[@]}"; do
    state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$state" = installed ] || missing+=("$package")
done
if [ "$1" = test ] && ! command -v "$browser" chromium chromium-browser google-chrome >/dev/null; then
    missing+=("$browser")
fi
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "packages: not root, so these are not installed: ${missing[*]} (try: sudo $0 $1)" >&2
    exit 0
fi
echo "packages: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
if [[ " ${missing[*]} " == *" $browser "* ]] && ! apt-cache show "$browser" >/dev/null 2>&1; then
    echo "packages: $browser is not to be had here, so the page is not tested in a browser" >&2
    for index in "${!missing[@]}"; do [ "${missing[index]}" != "$browser" ] || unset "missing[index]"; done
    [ ${#missing[@]} -gt 0 ] || exit 0
fi
# Services that a package would start are not wanted here: the tests start their own, on loopback.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy"
    trap 'rm -f "$policy"' EXIT
fi
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
