# SPDX-License-Identifier: Apache-2.0
"""The bus without a server: logs in SQLite, shared by the processes of one machine."""
