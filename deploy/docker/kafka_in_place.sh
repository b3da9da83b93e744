#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Stands in for the entry point of the image apache/kafka where try.sh has none to pull: KAFKA_A_B=value becomes a.b=value, the
# directory is formatted once, the broker started. For the stack's own settings, not for every one of that image.
set -eu

properties=/tmp/server.properties
env | sed -n 's/^KAFKA_\([A-Z_]*\)=\(.*\)$/\1 \2/p' | grep -v '^HEAP_OPTS ' | while read -r key value; do
    echo "$(printf %s "$key" | tr 'A-Z_' 'a-z.')=$value"
done >"$properties"
kafka=(java "${KAFKA_HEAP_OPTS%% *}" "${KAFKA_HEAP_OPTS##* }" -XX:+UseSerialGC -XX:TieredStopAtLevel=1
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp '/opt/kafka/libs/*')
[ -f /var/lib/kafka/data/meta.properties ] || "${kafka[@]}" kafka.tools.StorageTool format -t "$CLUSTER_ID" -c "$properties"
exec "${kafka[@]}" kafka.Kafka "$properties"
