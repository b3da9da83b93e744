# SPDX-License-Identifier: Apache-2.0
"""The API server of a Kubernetes cluster: the only room that speaks to it."""
