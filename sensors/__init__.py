# SPDX-License-Identifier: Apache-2.0
"""On the node: rings drained into frames, containers told apart, recordings replayed."""
