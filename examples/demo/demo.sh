#!/usr/bin/env bash
# Does three things that the demonstration policy speaks of, in a cgroup of its own: a connection (denied), an exec (killed),
# a read (audited). Needs root and a running `make run`. Touches nothing else and removes what it made.
set -uo pipefail

mount=$(awk '$3 == "cgroup2" {print $2; exit}' /proc/self/mounts)
[ -n "$mount" ] || { echo "demo: expected a cgroup2 mount, found none" >&2; exit 3; }
[ "$(id -u)" = 0 ] || { echo "demo: expected root, got uid $(id -u); run with sudo" >&2; exit 3; }
cgroup=$mount/hauberk-demo
# One at a time: the cgroup has one name, and whoever ends removes it. The lock is on this file, and ends with the process.
exec 9<"$0"
flock 9
work=$(mktemp -d)
clean() { rm -rf "$work"; for _ in $(seq 500); do rmdir "$cgroup" 2>/dev/null && return; sleep 0.02; done; }
trap clean EXIT
mkdir -p "$cgroup"
cp "$(type -P true)" "$work/nc"
# The plan for a new cgroup is in force some milliseconds after its birth; a demonstration should not race it.
sleep 1

inside() { bash -c 'echo $$ > "$0/cgroup.procs"; shift 0; exec "$@"' "$cgroup" "$@"; }
connect() { inside bash -c 'exec 3<>/dev/tcp/127.0.0.1/9' 2>&1; }
echo "demo: connecting to 127.0.0.1 port 9"
said=$(connect)
for try in $(seq 60); do
    [[ $said == *"not permitted"* ]] && break
    [ "$try" = 1 ] && echo "demo: the policy is not in force yet; waiting up to 30 s (is \`make run\` running?)" >&2
    sleep 0.5
    said=$(connect)
done
echo "$said" | sed -n 's/^.*: \(socket\|connect\): /  /p;s/^.*: \(.*not permitted\)$/  \1/p' | head -1
echo "demo: starting nc"
inside "$work/nc" -l 4444 2>/dev/null
echo "  exit code $?"
echo "demo: reading /etc/passwd"
inside cat /etc/passwd >/dev/null && echo "  read"
