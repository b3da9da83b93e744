# SPDX-License-Identifier: Apache-2.0
"""Documents as flat rules: normalised, selected for a workload, ranked, and checked against what a backend can enforce."""
