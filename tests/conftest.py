# SPDX-License-Identifier: Apache-2.0
"""What holds for every room's tests: Hypothesis judges examples, never how long a busy machine took over one."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# By default an example over 200 ms fails its test, and so do drawings over a second: on a loaded machine both say nothing of us.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("patient")
