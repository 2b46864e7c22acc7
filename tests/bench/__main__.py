# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`, that is `python -m tests.bench` in the checkout."""

from __future__ import annotations

import sys

from tests.bench.hand_over import main

sys.exit(main())
