# SPDX-License-Identifier: Apache-2.0
"""The policy language: parse, diagnose, normalise, select, compile, judge. Pure: no I/O."""
