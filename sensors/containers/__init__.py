# SPDX-License-Identifier: Apache-2.0
"""Who a cgroup belongs to: container runtimes asked on their sockets, cgroup paths read where nobody answers."""
