# SPDX-License-Identifier: Apache-2.0
"""Alerts, logs, metrics and tables as text. Pure."""
