# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench`, that is `python -m tests.bench` in the checkout: every benchmark, or the one that is named first."""

from __future__ import annotations

import os
import sys

from tests.bench import hand_over, links, run

BENCHES = {"hand-over": hand_over.main, "run": run.main, "links": links.main}


def main(arguments: list[str]) -> int:
    """Run what the arguments ask for, and return the exit status."""
    if os.geteuid() != 0:
        print("The benchmarks make network and mount namespaces: run them as root, or with sudo.", file=sys.stderr)
        return 1
    os.umask(0o022)
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    if arguments and arguments[0] in BENCHES:
        return BENCHES[arguments[0]](arguments[1:])
    if arguments:
        print(f"The first argument is one of {', '.join(BENCHES)}, or there is none.", file=sys.stderr)
        return 2
    return max(bench([]) for bench in BENCHES.values())


sys.exit(main(sys.argv[1:]))
