# SPDX-License-Identifier: Apache-2.0
"""Globs, automata and regular expressions: matching in time linear in the text."""
