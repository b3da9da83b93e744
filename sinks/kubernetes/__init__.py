# SPDX-License-Identifier: Apache-2.0
"""What became of the policies that are objects of a cluster, told to the cluster: status and Events."""
