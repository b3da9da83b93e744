# SPDX-License-Identifier: Apache-2.0
"""Container images read without an engine: OCI layouts, archives, registries; layers to the names in them."""
