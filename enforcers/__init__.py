# SPDX-License-Identifier: Apache-2.0
"""Policies and inventory in; plans, map updates and receipts out."""
