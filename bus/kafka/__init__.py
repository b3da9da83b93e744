# SPDX-License-Identifier: Apache-2.0
"""The bus on Apache Kafka, for many machines. Read `bus` first."""
