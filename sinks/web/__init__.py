# SPDX-License-Identifier: Apache-2.0
"""The web page: shows what a store sink kept. Reads the store's contract alone and writes nothing; without it nothing else changes."""
