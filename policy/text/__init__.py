# SPDX-License-Identifier: Apache-2.0
"""From text to checked documents, with every diagnostic at its line and column."""
