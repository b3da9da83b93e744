#!/bin/bash
# `throwaway_root.sh DIRECTORY COMMAND...`: COMMAND in mount and pid namespaces of its own, on an overlay of this machine's root.
# What it writes lies under DIRECTORY/upper; nothing of the machine changes. BELOW: the
# DIRECTORY of an earlier one to build on, which stays as it is. Root only.
set -eu
export THROWAWAY=$1
shift
mkdir -p "$THROWAWAY"/{upper,work,root}
exec unshare --mount --pid --fork --kill-child --propagation private bash -c '
set -eu
lower=/
if [ -n "${BELOW:-}" ]; then
    lower=$THROWAWAY/below
    mkdir -p "$lower"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$BELOW/upper,workdir=$BELOW/work" "$lower"
fi
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$THROWAWAY/upper,workdir=$THROWAWAY/work" "$THROWAWAY/root"
cd "$THROWAWAY/root"
mount -t proc proc proc
mount --rbind /dev dev
mount --rbind /sys sys
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs run
mkdir -p run/lock oldroot
pivot_root . oldroot
umount -l /oldroot
cd /
exec env -i "INSIDE=${INSIDE:-}" PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 "$@"
' throwaway "$@"
