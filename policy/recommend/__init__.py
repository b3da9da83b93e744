# SPDX-License-Identifier: Apache-2.0
"""Hardening policies recommended for what an image contains, checked against what its workload was seen doing."""
