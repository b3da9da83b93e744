# SPDX-License-Identifier: Apache-2.0
"""Counts and alerts kept for questions: the contract, its SQLite form, the sink that fills it."""
