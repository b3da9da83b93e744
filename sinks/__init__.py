# SPDX-License-Identifier: Apache-2.0
"""Alerts, telemetry and summaries out to the world."""
