# SPDX-License-Identifier: Apache-2.0
"""Compiled rules and the verdict on a behaviour."""
