# SPDX-License-Identifier: Apache-2.0
"""One file per verb: `parser()` says its options, `main(argv)` does it and returns the exit code."""
