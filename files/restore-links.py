# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes the saved links again: `python3 -I -B -X utf8 restore-links.py STATE SECONDS` is the role's service.

No more than the way in to links/boot.py, which lies with its package below the directory of this file.
"""

import os.path
import sys

try:
    # -I leaves the script's own directory out.
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from hostnet_qemu.links.boot import main

    status = main(sys.argv[1:])
except Exception as error:  # a broken installation
    sys.stderr.write(f"Can't make the saved links again: {error!r}. Run the role qemu_bridge again: it mends this.\n")
    status = 1
sys.exit(status)
