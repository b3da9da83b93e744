# SPDX-License-Identifier: Apache-2.0
"""The kernel edge: bpf(2), BTF, header tree, loader, rings and pins; the only room that touches bcc."""
