# Copyright: the hostnet.qemu authors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds a tap as a guest does, and sends a frame through it ten times a second: `hold.py helper|TAP NOTE`.

With `helper` the tap is one of br0 that the helper hands over. Its name and the process go into the file NOTE, and the
end of the process is the end of its hold.
"""

from __future__ import annotations

import array
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import time

HELPER = "/usr/local/libexec/qemu-bridge-helper"
# <linux/if_tun.h>
TUNSETIFF = 0x400454CA
TUNGETIFF = 0x800454D2
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
# To all, from an address of nobody, of a type that is for experiments, and as short as a frame can be.
FRAME = b"\xff" * 6 + b"\x02\x00\x00\x00\x00\x01" + b"\x88\xb5" + bytes(46)


def from_helper() -> int:
    ours, theirs = socket.socketpair()
    subprocess.run([HELPER, "--br=br0", f"--fd={theirs.fileno()}"], pass_fds=[theirs.fileno()], check=True)
    fds = array.array("i")
    _data, ancillary, _flags, _address = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize))
    fds.frombytes(ancillary[0][2])
    return fds[0]


def attached(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


way, note = sys.argv[1:]
tap = from_helper() if way == "helper" else attached(way)
name = fcntl.ioctl(tap, TUNGETIFF, bytes(40))[:16].rstrip(b"\0").decode()
with open(note, "w", encoding="utf-8") as file:
    json.dump({"name": name, "pid": os.getpid()}, file)
while True:
    os.write(tap, FRAME)
    time.sleep(0.1)
