# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-bridge-run: what users start, by a first line that the role adds: `#!VERSION/python3 -ISB`.

No more than the way in, see qemu-bridge-helper.py.
"""

import posix
import sys

# The role puts the directory of this very version here: a start that came before an upgrade stays with its own package.
LIBRARY = "/usr/local/lib/qemu-bridge-helper"

status = 125
try:
    # -I leaves the script's own directory out.
    sys.path.insert(0, LIBRARY)
    # The last hook is for directories; the one before would look for a zip archive in each.
    sys.path_hooks[:] = sys.path_hooks[-1:]
    from tapfd.run import main

    status = main(sys.argv[1:])
except BaseException as error:  # a broken installation, or the caller's limits (open files, memory)
    way_out = "the limits of this process must leave it room, or an administrator installs it anew"
    posix.write(2, f"qemu-bridge-run: cannot run: {error!r}; {way_out}\n".encode("ascii", "backslashreplace"))
finally:
    # No clean-up of the interpreter: the kernel's is quicker and can't fail.
    posix._exit(status)
