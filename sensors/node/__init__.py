# SPDX-License-Identifier: Apache-2.0
"""The kernel's rings drained into frames on one node."""
