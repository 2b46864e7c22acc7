# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The sessions of antsibull-nox.toml, for public continuous integration; `nox --list` shows them."""

# /// script
# dependencies = ["nox>=2025.02.09", "antsibull-nox>=1.10"]
# ///

from __future__ import annotations

import antsibull_nox

antsibull_nox.load_antsibull_nox_toml()
