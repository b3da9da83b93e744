# SPDX-License-Identifier: Apache-2.0
"""Least-privilege policies learnt from what workloads were seen doing."""
