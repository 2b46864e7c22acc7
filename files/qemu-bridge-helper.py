# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""qemu-bridge-helper: what the launcher starts as `python3 -I -S -B` with CAP_NET_ADMIN and the caller's arguments.

No more than the way in: a script is compiled anew at every start, the package `tapfd` beside it is not.
"""

import posix
import sys

# The role puts the directory of this very version here: a start that came before an upgrade stays with its own package.
LIBRARY = "/usr/local/lib/qemu-bridge-helper"

status = 1
try:
    # -I leaves the script's own directory out.
    sys.path.insert(0, LIBRARY)
    # The last hook is for directories; the one before would look for a zip archive in each.
    sys.path_hooks[:] = sys.path_hooks[-1:]
    from tapfd.helper import main

    status = main(sys.argv[1:])
except BaseException as error:  # a broken installation, or a caller's limits (open files, memory)
    way_out = "the caller's limits must leave it room, or an administrator installs it anew"
    posix.write(2, f"qemu-bridge-helper: cannot run: {error!r}; {way_out}\n".encode("ascii", "backslashreplace"))
finally:
    # No clean-up of the interpreter: the kernel's is quicker and can't fail.
    posix._exit(status)
