# SPDX-License-Identifier: Apache-2.0
"""`python -m hauberk`."""

import sys

from hauberk.cli import main

sys.exit(main())
