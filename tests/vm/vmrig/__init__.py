# SPDX-License-Identifier: Apache-2.0
"""Stock Debian kernels under qemu: fetched, booted with this checkout and its environment, asked to run something, powered off.

Always `-accel tcg`: kernels hang under a nested KVM that opens and then does not run. `run.py` beside this directory is the
command, `test_kernels.py` the tests.
"""
