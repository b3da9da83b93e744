# SPDX-License-Identifier: Apache-2.0
"""Stateless: frames in; alerts, telemetry and summaries out."""
