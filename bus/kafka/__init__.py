# SPDX-License-Identifier: Apache-2.0
"""The bus across machines: topics of an Apache Kafka cluster."""
