#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tries the compose stacks for real: builds the image, starts the services in a Docker engine of its own, makes events in a
# container, looks for the alert and for the refusal, and removes everything. Too slow for `make test`: `make test-compose`.
# TRY_STACK=kafka takes docker-compose.yml (Kafka, two processors, Prometheus), else it is compose.embedded.yml. Without a registry
# Kafka's jars (those of the tests) and this machine's Prometheus stand in for their images, and Grafana is left out.
# TRY_DATA=DIR keeps the engine's images and layers there for the next time, and nothing else.
#   sudo deploy/docker/try.sh          the whole way
#   sudo deploy/docker/try.sh idle     the same, and then what the stack takes in a minute of nothing else (what the host does is watched too)
#   sudo deploy/docker/try.sh caps     the whole way, and then what `hauberk node` lacks without each of its capabilities
# Needs root, runc, ip, nsenter, curl, a static busybox; an engine since 23 with compose v2 and buildx, or Debian's archive to unpack
# one from (tests/vm/vmrig/docker.py); mmdebstrap for a base image when there is no registry to pull one from (TRY_BASE=debian:bookworm-slim pulls instead; TRY_BASE_TAR=FILE takes that root file system).
# The engine lives in a network namespace of its own, so that nothing here meets the machine's own Docker or its ports.
set -euo pipefail

root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d /tmp/hauberk-try.XXXXXX)
name=${work##*.}
name=hbtry${name,,}
began=$SECONDS
export DOCKER_HOST=unix://$work/docker.sock COMPOSE_PROJECT_NAME=$name
export HAUBERK_IMAGE=hauberk:try HAUBERK_NODE=try HAUBERK_BASE=${TRY_BASE:-base:try} HAUBERK_BUILD_NETWORK=host
export HAUBERK_DOCKER_SOCKET=$work/docker.sock HAUBERK_PAGE=true
data=${TRY_DATA:-$work/data}
python=${PYTHON:-$root/.venv/bin/python}

say() { printf '%4ds  %s\n' $((SECONDS - began)) "$*"; }
die() { say "FAILED: $*" >&2; exit 1; }
stack=${TRY_STACK:-embedded}
file=compose.embedded.yml services=() containers=(node-1 processor-1 planner-1 sink-1)
if [ "$stack" = kafka ]; then
    file=docker-compose.yml services=(kafka topics pins node processor planner sink prometheus)
    containers=(node-1 processor-1 processor-2 planner-1 sink-1)
    export HAUBERK_KAFKA_IMAGE=kafka:try HAUBERK_PROMETHEUS_IMAGE=prometheus:try
fi
compose() { docker compose --project-directory "$root" -f "$root/$file" "$@"; }
until_true() { # SECONDS WHAT COMMAND...: poll
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$work/last" 2>&1; do
        [ $SECONDS -lt $deadline ] || { cat "$work/last" >&2; die "$what did not happen"; }
        sleep 0.1
    done
}

counted() { # STAGE: its metrics
    docker exec "$name-$1" python3 -c 'import urllib.request as u; print(u.urlopen("http://127.0.0.1:9644/metrics").read().decode())'
}
counts() { # what each stage counted, for whoever looks for the cause of a failure
    for stage in "${containers[@]}"; do
        echo "== $stage"
        counted "$stage" | grep -E '^hauberk_(pump|spool|sensor|sink|planner)_' | grep -vE ' 0(\.0)?$'
    done
}
engine_up() { # PREFIX...: start dockerd, in a namespace or not
    # Networks of the time before, of another bridge.
    rm -rf "$data/network"
    "$@" setsid dockerd --data-root "$data" --exec-root "$work/exec" --pidfile "$work/pid" -H "$DOCKER_HOST" \
        --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false "--bridge=$bridge" --storage-driver overlay2 \
        >>"$work/log" 2>&1 </dev/null &
    engine=$!
    started() { docker version || ! kill -0 "$engine"; }
    until_true 120 "the start of dockerd" started
    docker version >/dev/null 2>&1 || { tail -5 "$work/log" >&2; die "dockerd ended"; }
}
engine_down() {
    [ -f "$work/pid" ] || return 0
    kill "$(cat "$work/pid")" || return 0
    # Its child removes the state below the directories after the pid file is gone: the next engine must not meet it.
    for _ in $(seq 600); do kill -0 "$engine" 2>/dev/null || return 0; sleep 0.1; done
    say "dockerd did not end in a minute" >&2
}
clean() {
    local code=$?
    trap - EXIT
    set +e
    say "removing everything"
    if docker version >/dev/null 2>&1; then
        [ $code = 0 ] || { compose logs --tail 20; counts; } >&2
        docker ps -aq | xargs -r docker rm -f -v >/dev/null
        docker volume ls -q | xargs -r docker volume rm >/dev/null
    fi
    say "no container is left"
    engine_down
    say "the engine has ended"
    ip netns list | grep -q "^$name\b" && ip netns delete "$name"
    # ip(8) makes a mount of this directory for its first namespace.
    [ "$named" = yes ] || [ -n "$(ls -A /run/netns 2>/dev/null)" ] || umount /run/netns
    awk -v under="$work/" -v too="$data/" 'index($2, under) == 1 || index($2, too) == 1 {print $2}' /proc/self/mounts | sort -r | xargs -r -n1 umount -l
    # The engine leaves its parent cgroup; another engine's containers in it keep it.
    for top in $(awk '$3 ~ /^cgroup/ {print $2 "/docker"}' /proc/self/mounts); do rmdir "$top/buildkit" "$top" 2>/dev/null; done
    rm -rf "$work"
    [ $code = 0 ] && say "everything is removed"
    exit $code
}
named=$(awk '$2 == "/run/netns" {print "yes"; exit}' /proc/self/mounts)
trap clean EXIT

[ "$(id -u)" = 0 ] || die "expected root, got uid $(id -u)"
given=$(cd / && PYTHONPATH=$root/tests/vm "$python" -m vmrig.docker) || die "no engine"
eval "$given"
docker compose version >/dev/null || die "expected docker with compose v2"

# Building needs the machine's network, running must not touch it: the engine starts twice over the same images.
bridge=none
engine_up env
kept() { docker image inspect "$1" >/dev/null 2>&1; }
root_of() { # TAR PACKAGES: a root file system of Debian in $work/base
    local tar=$1
    [ -f "$tar" ] || mmdebstrap --quiet --variant=minbase "--include=$2" bookworm "$tar"
    mkdir -p "$work/base/dev" && tar -C "$work/base" --exclude=./dev -xf "$tar"
}
if [ -z "${TRY_BASE:-}" ] && ! kept "$HAUBERK_BASE"; then
    root_of "${TRY_BASE_TAR:-$work/base.tar}" ca-certificates
    # This machine's certificates: where TLS goes through a proxy, the distribution's alone do not do.
    cp -L /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/ca-certificates.crt"
    tar -C "$work/base" -c . |
        docker import -c 'ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt' - "$HAUBERK_BASE" >/dev/null
    rm -rf "$work/base" "$work/base.tar"
fi
say "base image $HAUBERK_BASE: $(docker images --format '{{.Size}}' "$HAUBERK_BASE")"
compose build -q node
say "image built: $(docker images --format '{{.Size}}' "$HAUBERK_IMAGE")"
mkdir -p "$work/busy/bin" "$work/busy/etc" "$work/busy/proc" "$work/busy/dev" "$work/busy/sys" "$work/busy/tmp"
cp "$(command -v busybox)" "$work/busy/bin/busybox"
for applet in sh sleep cat nc; do ln -s busybox "$work/busy/bin/$applet"; done
echo 'root:x:0:0:root:/:/bin/sh' >"$work/busy/etc/passwd"
# The policy names the link, the kernel sees what it points at: the node has to look into the container.
ln -s passwd "$work/busy/etc/accounts"
# A file for each time that an alert is waited for: an engine opens others of a container's files by itself.
mkdir "$work/busy/marks" && touch "$work"/busy/marks/{1,2,3,4}
tar -C "$work/busy" -c . | docker import - busy:try >/dev/null
if [ "$stack" = kafka ]; then
    jars=$("$python" -c 'import sys; sys.path.append(sys.argv[1]); import kafka_jars; print(kafka_jars.fetch())' "$root/tests/kafka")
    if ! kept "java:try"; then
        root_of "${TRY_JAVA_TAR:-$work/java.tar}" default-jre-headless
        tar -C "$work/base" -c . | docker import - java:try >/dev/null
        rm -rf "$work/base" "$work/java.tar"
    fi
    # As the official image has it: user 1000, who owns the directory of the log.
    mkdir -p "$work/kafka/libs" && cp "$jars"/jars/*.jar "$work/kafka/libs/"
    cp "$root/deploy/docker/kafka_in_place.sh" "$work/kafka/"
    docker build -q --network none -t kafka:try -f - "$work/kafka" >/dev/null <<'IMAGE'
FROM java:try
COPY libs /opt/kafka/libs
COPY --chmod=755 kafka_in_place.sh /usr/local/bin/kafka
RUN useradd --uid 1000 appuser && install -d -o appuser -g appuser /var/lib/kafka/data
USER appuser
VOLUME /var/lib/kafka/data
CMD ["/usr/local/bin/kafka"]
IMAGE
    rm -rf "$work/kafka"
    say "in Kafka's place: $(docker images --format '{{.Size}}' kafka:try), $(basename "$jars")"
    mkdir -p "$work/prom/bin" "$work/prom/tmp" "$work/prom/prometheus"
    cp "$(command -v prometheus)" "$(command -v promtool)" "$work/prom/bin/"
    # Debian's is linked dynamically, if only to the C library.
    ldd "$work/prom/bin/prometheus" "$work/prom/bin/promtool" 2>/dev/null | grep -o '/[^ ]*' | grep -v ':$' | sort -u |
        xargs -r -I{} cp -L --parents {} "$work/prom/"
    # As the official image has it: user nobody, who owns the directory of the series.
    chown 65534:65534 "$work/prom/prometheus"
    tar -C "$work/prom" -c . | docker import -c 'ENV PATH=/bin' -c 'USER 65534' -c 'ENTRYPOINT ["/bin/prometheus"]' - prometheus:try >/dev/null
    rm -rf "$work/prom"
fi
engine_down
ip netns add "$name"
inside=(nsenter "--net=/run/netns/$name")
"${inside[@]}" ip link set lo up
"${inside[@]}" ip link add hb0 type bridge
"${inside[@]}" ip address add 10.211.9.1/24 dev hb0
"${inside[@]}" ip link set hb0 up
bridge=hb0
engine_up "${inside[@]}"

compose up -d --no-build --quiet-pull "${services[@]}" 2>"$work/up" || { cat "$work/up" >&2; die "compose up"; }
# As the engine sees it, by each service's own check.
sick() { docker ps -a --filter "label=com.docker.compose.project=$name" --format '{{.Names}} {{.Status}}' | grep -v -e '(healthy)' -e 'Exited (0)'; }
all_well() { ! sick; }
until_true "${TRY_SECONDS:-180}" "a healthy state of every service" all_well
say "up, and healthy by every service's own check:"
docker ps -a --filter "label=com.docker.compose.project=$name" --format '        {{.Names}}: {{.Status}}'
for stage in "${containers[@]}"; do
    pid=$(docker inspect -f '{{.State.Pid}}' "$name-$stage")
    say "  $stage: $(awk '/^(Uid|CapEff|CapBnd|NoNewPrivs|Seccomp|VmRSS):/ {printf "%s %s  ", $1, $2}' "/proc/$pid/status")"
    [ "$(awk '/^Uid:/ {print $2}' "/proc/$pid/status")" != 0 ] || die "$stage runs as root"
done

docker run -d --name try-web --label app=try --network none busy:try /bin/sleep 600 >/dev/null
knock() { docker exec try-web /bin/nc -w 2 127.0.0.1 9 2>&1 || true; }
# Nobody listens on port 9: without a rule the kernel says so, with the rule it says that it may not be asked.
knock | grep -q refused || die "expected "Connection refused" before the policy, got: $(knock)"
cat >"$work/policy.yaml" <<'POLICY'
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: try
spec:
  selector:
    matchLabels: {app: try}
  severity: 5
  network:
    message: a connection was attempted
    matchProtocols:
    - protocol: tcp
    action: Block
  file:
    message: the account list was opened
    matchPaths:
    - path: /etc/accounts
    matchDirectories:
    - dir: /marks/
      recursive: true
    action: Audit
  action: Block
POLICY
compose exec -T planner hauberk apply -f - --wait 30 <"$work/policy.yaml"
denied() { knock | grep -q 'not permitted'; }
until_true 10 "the refusal of a connection" denied
say "enforced: $(knock)"
docker exec try-web /bin/cat /etc/passwd >/dev/null
shown() { head -1 "$work/last" | grep -oE '"(ContainerName|PolicyName|Operation|Resource|Action|Result)":"[^"]*"' | paste -sd' '; }
alert() { compose exec -T sink grep -E "\"ContainerName\":\"try-web\".*$1" /var/lib/hauberk/alerts.jsonl; }
until_true 15 "an alert of the connection" alert '"Action":"Block".*"PolicyName":"try"|"PolicyName":"try".*"Action":"Block"'
say "alert: $(shown)"
until_true 15 "an alert of the open" alert '/etc/passwd'
say "alert: $(shown)"
"${inside[@]}" curl -sf http://127.0.0.1:9642/metrics >"$work/metrics"
say "metrics: $(grep -m1 'policy="try".*Block' "$work/metrics")" || die "expected alerts among the metrics"
page() { # a stream that goes on: curl ends by its time, which it calls a failure
    "${inside[@]}" curl -sN --max-time 2 http://127.0.0.1:9643/events >"$work/events" || true
    grep -q 'try-web' "$work/events"
}
until_true 30 "the container on the page" page
say "the page shows it: $("${inside[@]}" curl -s http://127.0.0.1:9643/ | grep -o '<title>.*</title>')"
compose exec -T planner hauberk get nodes

mark() { docker exec try-web /bin/cat "/marks/$1"; }
marked() { alert "\"Resource\":\"/marks/$1\""; }
if [ "$stack" = kafka ]; then
    compose exec -T planner hauberk topic list
    targets() { [ "$("${inside[@]}" curl -sf http://127.0.0.1:9090/api/v1/targets | grep -o '"health":"up"' | wc -l)" -ge 5 ]; }
    until_true 90 "five targets of Prometheus that answer" targets
    scraped() { "${inside[@]}" "$python" "$root/tests/deploy/promql.py" http://127.0.0.1:9090 bus cluster handover hashes syslog; }
    until_true 60 "every metric of rules and dashboards in the scrape" scraped
    say "Prometheus: $(cat "$work/last")"
    say "Prometheus has $("${inside[@]}" curl -sf http://127.0.0.1:9090/api/v1/targets | grep -o '"health":"up"' | wc -l) targets up, $(
        "${inside[@]}" curl -sf http://127.0.0.1:9090/api/v1/rules | grep -o '"type":"alerting"' | wc -l) alerting rules"
    # The one that has this node's frames: they lie in one partition.
    records() { counted "$1" | awk '/^hauberk_pump_records_total/ {print int($2)}'; }
    victim=processor-1
    [ "$(records processor-1)" -ge "$(records processor-2)" ] || victim=processor-2
    had=$(records "$victim")
    docker kill -s KILL "$name-$victim" >/dev/null
    say "the one of two processors that had the node's frames ($had) is killed"
    mark 1
    until_true 120 "the alert by way of the other" marked 1
    say "the other took over: its alert is there"
    compose stop kafka 2>/dev/null
    mark 2
    denied || die "expected the rule to hold without the broker, got: $(knock)"
    say "the rule holds while the broker is away"
    ! marked 2 >/dev/null || die "expected no alert without the broker"
    compose start kafka 2>/dev/null
    until_true 240 "the alert of what happened while the broker was away" marked 2
    say "what happened while the broker was away was told when it was back"
fi

before=$(date +%s%N)
mark 3
until_true 60 "the alert of an open" marked 3
say "an open was in the file after $((($(date +%s%N) - before) / 1000000)) ms, two docker execs of it"

compose stop node 2>/dev/null
denied || die "expected the rule to hold while the node is stopped, got: $(knock)"
say "the rule holds while the node is stopped"
compose start node 2>/dev/null
until_true 60 "a healthy node" compose exec -T node health node
denied || die "expected the rule to hold after the restart, got: $(knock)"
mark 4
until_true 60 "the alert of an open after the restart" marked 4
say "and after it started again, and alerts come"

# Without each capability in turn: does it load, does it enforce, whom does it still see?
caps() {
    local all=(bpf perfmon net_admin sys_ptrace dac_read_search audit_read) one less found try outcome
    local pid=$(docker inspect -f '{{.State.Pid}}' try-web) pins=$data/volumes/${name}_pins/_data
    mkdir -m 700 "/proc/$pid/root/tmp/private" && echo x >"/proc/$pid/root/tmp/private/x"
    for one in none "${all[@]}"; do
        less=-all
        for found in "${all[@]}"; do [ "$found" = "$one" ] || less=$less,+$found; done
        try=(setpriv --reuid 10001 --regid 10001 --groups "10001,$(stat -c %g "$HAUBERK_DOCKER_SOCKET")" --no-new-privs
            "--inh-caps=$less" "--ambient-caps=$less" "--bounding-set=$less")
        rm -rf "$pins/hauberk-container" && mkdir "$pins/hauberk-container" && chown 10001:10001 "$pins/hauberk-container"
        compose run -d --no-deps --name "$name-less" --entrypoint "${try[0]}" node "${try[@]:1}" hauberk node >/dev/null 2>&1
        for _ in $(seq 600); do
            docker logs "$name-less" 2>&1 | grep -q running && break
            [ "$(docker inspect -f '{{.State.Running}}' "$name-less")" = true ] || break
            sleep 0.1
        done
        outcome="does not start: $(docker logs "$name-less" 2>&1 | tail -1 | cut -c 1-200)"
        if docker logs "$name-less" 2>&1 | grep -q running; then
            outcome="starts, does not enforce"
            for _ in $(seq 50); do denied && outcome="starts, enforces" && break; sleep 0.1; done
            [ "$outcome" = "starts, enforces" ] || outcome="$outcome ($(compose exec -T planner hauberk get nodes -o wide --no-headers 2>&1 | cut -c 1-300))"
        fi
        docker rm -f "$name-less" >/dev/null
        say "without $one: $outcome"
        compose run --rm --no-deps -T --entrypoint "${try[0]}" node "${try[@]:1}" sh -c "
            readlink /proc/$pid/exe >/dev/null 2>&1 && echo exe; ls /proc/$pid/root/bin >/dev/null 2>&1 && echo root
            cat /proc/$pid/root/tmp/private/x >/dev/null 2>&1 && echo private; true" 2>/dev/null | xargs echo "          sees of a container's process:"
    done
}
if [ "${1:-}" = idle ]; then # what the stack costs when nothing else happens, its own health checks included
    sleep 5
    rows() { compose exec -T planner hauberk topic list --no-headers | grep events.raw; }
    say "$(rows)"; docker stats --no-stream; sleep 60; docker stats --no-stream; say "$(rows)"
fi

if [ "${1:-}" = caps ]; then
    compose stop node 2>/dev/null
    caps
    compose start node 2>/dev/null
    until_true 60 "a healthy node" compose exec -T node health node
fi
if [ "$stack" = kafka ]; then
    docker start "$name-$victim" >/dev/null
    until_true 120 "a healthy processor after its start" docker exec "$name-$victim" health processor
fi

compose stop node processor planner sink 2>/dev/null
for stage in "${containers[@]}"; do
    code=$(docker inspect -f '{{.State.ExitCode}}' "$name-$stage")
    [ "$code" = 0 ] || die "expected $stage to end with 0, got $code"
done
say "stopped: every exit code is 0"
denied || die "expected the rule to hold while every stage is stopped, got: $(knock)"
"$python" "$root/tests/deploy/pinned.py" "$data/volumes/${name}_pins/_data" >"$work/pinned"
compose down 2>/dev/null
released() { knock | grep -q refused; }
until_true 10 "the end of enforcement after down" released
gone() { "$python" "$root/tests/deploy/pinned.py" --left <"$work/pinned"; }
until_true 30 "the end of every program and link" gone
say "down: nothing is enforced; of programs and links $(cat "$work/last")"
compose down -v 2>/dev/null
[ -z "$(docker volume ls -q)" ] || die "expected no volume after down -v, got: $(docker volume ls -q)"
