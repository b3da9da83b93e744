# SPDX-License-Identifier: Apache-2.0
"""Network policies learnt from connections: who an address was, flows, one intermediate form, what CNIs read, and the check."""
