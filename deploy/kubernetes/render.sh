#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Writes hauberk.yaml, the plain manifests, from the chart's default values. HELM names another program.
set -eu
cd "$(dirname "$0")"
{
    echo "# SPDX-License-Identifier: Apache-2.0"
    echo "# What the chart makes of its default values, for the namespace \`hauberk\`; deploy/kubernetes/render.sh writes it."
    "${HELM:-helm}" template hauberk chart --namespace hauberk --no-hooks
} >hauberk.yaml.part
mv hauberk.yaml.part hauberk.yaml
