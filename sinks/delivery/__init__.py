# SPDX-License-Identifier: Apache-2.0
"""From the bus to a sink: read, filter, batch, send, retry, commit."""
