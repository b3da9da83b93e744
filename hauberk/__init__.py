# SPDX-License-Identifier: Apache-2.0
"""The front door: command line, settings, service runner, wiring of `up`."""
