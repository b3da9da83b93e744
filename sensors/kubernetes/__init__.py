# SPDX-License-Identifier: Apache-2.0
"""A cluster watched: facts of its pods, namespaces, nodes and services, and the policies that are its objects."""
