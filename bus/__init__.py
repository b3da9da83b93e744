# SPDX-License-Identifier: Apache-2.0
"""How words travel: the contract, the embedded log, the pump, the spool."""
