# SPDX-License-Identifier: Apache-2.0
"""A raw stream in a file: written, read and replayed."""
