#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# What runs first in the image. `node` begins as root, makes its directory in bpffs, joins the groups of the runtimes' sockets
# and gives up root: six capabilities stay, for good. Every other verb starts as it is. Must never start anything as root.
set -eu

verb=${1:---help}
if [ "$verb" != node ] || [ "$(id -u)" != 0 ]; then
    exec hauberk "$@"
fi

user=10001
# The parent is ours and the pins lie one level below: the loader replaces its directory, and bpffs itself may be root's alone.
parent=$(dirname "$HAUBERK__SENSOR__PIN_DIR")
mkdir -p "$parent" && chown "$user:$user" "$parent" || {
    echo "hauberk node: expected to own \`$parent\`, could not; mount /sys/fs/bpf into this container and give it CAP_CHOWN" >&2
    exit 3
}

# A directory of the host is root's when it is made.
for directory in "$HAUBERK_STATE" /var/cache/hauberk; do
    [ ! -d "$directory" ] || [ "$(stat -c %u "$directory")" = "$user" ] || chown "$user:$user" "$directory"
done

groups=$user
for socket in /var/run/docker.sock /run/containerd/containerd.sock /var/run/crio/crio.sock; do
    [ -S "$socket" ] && groups=$groups,$(stat -c %g "$socket")
done

keep=+bpf,+perfmon,+net_admin,+sys_ptrace,+dac_read_search,+audit_read
exec setpriv --reuid "$user" --regid "$user" --groups "$groups" --no-new-privs \
    --inh-caps="-all,$keep" --ambient-caps="-all,$keep" --bounding-set="-all,$keep" hauberk "$@"
