# SPDX-License-Identifier: Apache-2.0
"""What `hauberk policy` and the documentation ask: explain, lint, diff, backtest, test cases, events from logs."""
